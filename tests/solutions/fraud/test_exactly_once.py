"""Killed at any point, cut off by a full disk or a second owner: nothing is lost, nothing repeated, no score changes."""

from __future__ import annotations

import errno
import json
import logging
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solutions.fraud import snapshots as snapshots_module
from solutions.fraud.changelog import Marker, RecoveryError, read_changelog
from solutions.fraud.decisions import DecisionPolicy
from solutions.fraud.graph_state import State
from solutions.fraud.messages import Payment, Score
from solutions.fraud.packing import pack, unpack
from solutions.fraud.scorer import Scorer
from solutions.fraud.snapshots import Packed, SnapshotError, Snapshots, read_snapshot, write_snapshot
from solutions.fraud.stream import Service, StreamSettings, lag, publish
from solutions.fraud.transactions import FencedError
from tests.solutions.fraud.streams import random_stream, tiny_model
from tests.solutions.fraud.stub import CountingScorer, expected_counts, read, send, settings_for
from tests.solutions.fraud.test_stream import NOON, fresh_name, payment, scores_of, serve, start_stub, with_poison

WARY = DecisionPolicy(friction=0.0, friction_fraction=0.0)


def test_kill_9_at_any_point_loses_nothing_and_repeats_nothing(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, fresh_name(), partitions=3)
    frame = random_stream(2400, days=30)
    mixed, poison = with_poison(frame)
    for partition in range(3):
        send(kafka, settings.transactions, *mixed[partition::3], partition=partition)
    rng = random.Random(5)
    done = 0
    for point, count in (("produced", 1), ("committed", 3), ("snapshot", 1), ("produced", 5), ("", 0), ("", 0)):
        victim = start_stub(kafka, settings.group, 0.0005, 0, tmp_path, *([point, count] if point else []))
        if not point:
            done += rng.randint(100, 300)
            read(kafka, settings.scores, 600 + done, drain=False)
            victim.kill()
        _, errors = victim.communicate(timeout=60)
        assert victim.returncode == -signal.SIGKILL, errors
    assert lag(settings) > 0
    last = start_stub(kafka, settings.group, 0.0, 1.0, tmp_path)
    _, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    scores = scores_of(settings, 2400)
    assert Counter(s["transaction_id"] for s in scores) == Counter(frame["transaction_id"])
    payer_of = dict(zip(frame["transaction_id"], frame["payer"], strict=True))
    # in the order in which they came out, every payer's count goes 1, 2, 3: no state was lost, none counted twice
    assert [s["probability"] for s in scores] == expected_counts([payer_of[s["transaction_id"]] for s in scores])
    dead = read(kafka, settings.dead_letters, len(poison))
    assert Counter(r.value for r in dead) == Counter(poison)
    assert lag(settings) == 0
    assert '"event": "state rebuilt"' in errors
    assert "poison" not in errors


def test_scores_of_the_real_scorer_do_not_change_when_it_is_interrupted(tansu: str) -> None:
    frame = random_stream(600, days=30, seed=9)
    told = []
    for lives in (1, 4):
        settings = settings_for(tansu, fresh_name(), max_records=50, patience_seconds=30.0)
        publish(frame, settings)
        for _ in range(lives - 1):
            service = Service(settings, Scorer(tiny_model(), model_version="v", policy=WARY))
            while service.served.payments < 130:
                service.step()
            service._failed = True  # as if killed: what is not committed is lost
            service.close()
        Service(settings, Scorer(tiny_model(), model_version="v", policy=WARY)).run(until_idle=1.0)
        told.append(scores_of(settings, 600))
    assert told[0] == told[1]
    assert len(told[0]) == 600
    assert all(s["reasons"] for s in told[0])  # this policy stops everything


def test_a_snapshot_and_the_tail_give_the_same_scores(tansu: str, tmp_path: Path) -> None:
    frame = random_stream(600, days=30, seed=9)
    settings = settings_for(tansu, fresh_name(), snapshots=tmp_path, snapshots_kept=2, patience_seconds=30.0)
    heard: list[list[Any]] = []
    publish(frame.head(200), settings)
    Service(settings, Scorer(tiny_model(), model_version="v", policy=WARY)).run(until_idle=0.5)
    assert len(Snapshots(tmp_path, keep=2).found()) == 1
    publish(frame.iloc[200:400], settings, also_due=frame.head(200))
    service = Service(settings, Scorer(tiny_model(), model_version="v", policy=WARY))
    while service.served.payments < 200:
        service.step()
    service.settle()
    service._failed = True
    service.close()
    publish(frame.tail(200), settings, also_due=frame.head(400))
    last = Service(settings, Scorer(tiny_model(), model_version="v", policy=WARY))
    assert last._state.snapshot > 0
    assert last.served.rebuilt >= 200  # the tail, and not the whole
    assert last.served.rebuilt < 300
    last.run(until_idle=0.5)
    heard.append(scores_of(settings, 600))
    again = settings_for(tansu, fresh_name(), patience_seconds=30.0)
    publish(frame.head(200), again)
    publish(frame.iloc[200:400], again, also_due=frame.head(200))
    publish(frame.tail(200), again, also_due=frame.head(400))
    Service(again, Scorer(tiny_model(), model_version="v", policy=WARY)).run(until_idle=0.5)
    assert heard[0] == scores_of(again, 600)


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "flipped":
        raw[len(raw) // 2] ^= 1
    path.write_bytes(raw[:-40] if how == "cut" else (b"" if how == "empty" else raw))


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_damaged_snapshot_is_passed_over_for_the_one_before(
    tansu: str, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tansu, fresh_name(), snapshots=tmp_path)
    for i in range(3):
        send(tansu, settings.transactions, payment(f"t{i}"))
        serve(settings)
    (_, newest), (before, _), *_ = Snapshots(tmp_path, keep=3).found()
    damage(newest, how)
    send(tansu, settings.transactions, payment("t3"))
    caplog.set_level(logging.INFO, "vigil.fraud")
    service = Service(settings, CountingScorer())
    assert service._state.snapshot == before
    assert service.served.rebuilt == 1
    service.run(max_records=1)
    assert [s["probability"] for s in scores_of(settings, 4)] == expected_counts(["c1"] * 4)
    assert "snapshot not used" in caplog.text


def test_a_full_disk_stops_snapshots_and_not_the_scoring(
    tansu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(snapshots_module, "write_snapshot", full)
    settings = settings_for(tansu, fresh_name(), snapshots=tmp_path, snapshot_seconds=0.0)
    caplog.set_level(logging.WARNING, "vigil.fraud")
    send(tansu, settings.transactions, *[payment(f"t{i}") for i in range(5)])
    serve(settings)
    assert len(scores_of(settings, 5)) == 5
    failures = [r for r in caplog.records if r.message == "snapshot failed"]
    assert failures
    assert {r.vigil_fields["cause"] for r in failures} == {"ENOSPC"}  # type: ignore[attr-defined]


def test_a_second_owner_fences_the_first(kafka: str) -> None:
    settings = settings_for(kafka, fresh_name())
    first = Service(settings, CountingScorer())
    send(kafka, settings.transactions, payment("t1"))
    while not first.step():
        pass
    first.settle()
    second = Service(settings, scorer := CountingScorer())
    assert scorer.heard == ["t1"]
    send(kafka, settings.transactions, payment("t2"))
    with pytest.raises(FencedError, match=f"another process owns group `{settings.group}`"):
        first.run(max_records=1)
    second.run(max_records=1)
    assert [s["transaction_id"] for s in scores_of(settings, 2)] == ["t1", "t2"]


def test_records_that_are_gone_stop_the_recovery_with_their_place(kafka: str) -> None:
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

    settings = settings_for(kafka, fresh_name())
    send(kafka, settings.transactions, payment("t1"), payment("t2"))
    serve(settings)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_records({TopicPartition(settings.transactions, 0): 1})
    admin.close()
    with pytest.raises(RecoveryError, match=f"record 0 of partition 0 of topic `{settings.transactions}` is needed"):
        Service(settings, CountingScorer())


def test_an_older_version_without_markers_is_taken_over(tansu: str) -> None:
    from kafka import KafkaConsumer, TopicPartition
    from kafka.structs import OffsetAndMetadata

    settings = settings_for(tansu, fresh_name())
    send(tansu, settings.transactions, *[payment(f"t{i}") for i in range(4)])
    consumer = KafkaConsumer(bootstrap_servers=tansu, group_id=settings.group, enable_auto_commit=False)
    consumer.commit({TopicPartition(settings.transactions, 0): OffsetAndMetadata(2, "", -1)})
    consumer.close()
    for _ in range(2):  # what was answered by the older version stays unanswered, also after another restart
        scorer = serve(settings)
        assert scorer.heard == ["t0", "t1", "t2", "t3"]
        assert [s["probability"] for s in scores_of(settings, 2)] == expected_counts(["c1"] * 4)[2:]
    assert [len(m.applied.rows) for m in read_changelog(settings, 0)] != []


def test_a_marker_survives_the_wire_and_keeps_the_order() -> None:
    marker = Marker("owner", 7)
    for place in [("a", 0, 5), ("a", 0, 6), ("b", 1, 2), ("a", 0, 8)]:
        marker.applied.add(*place)
    marker.positions["a", 0] = 9
    told = [Score("", NOON, 1.0 / 3.0, "step_up", ("amount",), "fraud/3"), None]
    for score in told:
        marker.answer(score)
    read_back = Marker.decode(marker.encode(), 3)
    assert list(read_back.applied) == [("a", 0, 5), ("a", 0, 6), ("b", 1, 2), ("a", 0, 8)]
    assert len(marker.applied.rows) == 3
    assert (read_back.sequence, read_back.positions, read_back.next_offset) == (7, {("a", 0): 9}, 3)
    assert read_back.scores([Payment("t", NOON, "c", "m", 1.0)] * 2) == told


def test_a_packed_state_is_the_state_to_the_bit() -> None:
    from solutions.fraud.engine import encode_labels, encode_payments

    model, frame = tiny_model(), random_stream(2000, seed=8)
    engine = model.new_engine()
    events = encode_payments(frame, model.engine)
    engine.observe(events, encode_labels(frame, events.key_TE[:, 0]))
    arrays = {
        name: np.concatenate([b.reshape(-1) for b in p.blocks]).reshape(p.shape)
        for name, p in pack(engine.state).items()
    }
    state = unpack(arrays, model.engine.state)
    for name in State._fields:
        assert (getattr(state, name) == getattr(engine.state, name)).all(), name
    assert arrays["mail_time_NM"].size < state.mail_time_NM.size / 10  # only what is held


def test_a_snapshot_is_whole_or_not_there(tmp_path: Path) -> None:
    def fails() -> Any:
        yield np.zeros(10)
        raise OSError(errno.ENOSPC, "no space left")

    path = tmp_path / "snapshot-x"
    with pytest.raises(OSError, match="no space left"):
        write_snapshot(path, ({"a": Packed(np.float64, (20,), fails())}, {}))
    assert list(tmp_path.iterdir()) == []
    write_snapshot(path, ({"a": Packed.whole(np.arange(6.0).reshape(2, 3))}, {"b": [1]}))
    arrays, values = read_snapshot(path)
    assert (arrays["a"] == np.arange(6.0).reshape(2, 3)).all()
    assert values == {"b": [1]}
    path.write_bytes(b"something else entirely, and long enough to be read as one")
    with pytest.raises(SnapshotError, match="not a snapshot"):
        read_snapshot(path)


def test_no_identifier_is_in_a_snapshot(tansu: str, tmp_path: Path) -> None:
    settings: StreamSettings = settings_for(tansu, fresh_name(), snapshots=tmp_path)
    send(tansu, settings.transactions, payment("transaction-4711", payer="card-0815"))
    Service(settings, Scorer(tiny_model(), model_version="v")).run(until_idle=0.3)
    [(_, path)] = Snapshots(tmp_path, keep=1).found()
    raw = path.read_bytes()
    assert b"4711" not in raw
    assert b"0815" not in raw
    assert json.dumps("answers").encode() in raw
