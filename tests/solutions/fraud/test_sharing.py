"""Workers that share a group's partitions come, go and are killed: every payment is answered once, with all history."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from solutions.fraud.messages import Label, encode_label
from solutions.fraud.ownership import OwnershipLostError
from solutions.fraud.stream import Service, StreamSettings, lag
from tests.solutions.fraud.streams import random_stream
from tests.solutions.fraud.stub import CountingScorer, expected_counts, read, send, settings_for
from tests.solutions.fraud.test_stream import NOON, fresh_name, payment, scores_of, start_stub, with_poison

PARTITIONS = 4


def partition_of(payer: str) -> int:
    return int(payer[1:]) % PARTITIONS


def step_until(services: list[Service], done, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "nothing came"
        for service in services:
            service.step()


def worker(settings: StreamSettings, name: str) -> tuple[Service, CountingScorer]:
    from dataclasses import replace

    scorer = CountingScorer()
    return Service(replace(settings, worker=name), scorer), scorer


def test_each_worker_answers_its_partitions_and_knows_everything(kafka: str) -> None:
    settings = settings_for(kafka, fresh_name(), partitions=PARTITIONS, patience_seconds=5.0)
    (a, heard_a), (b, heard_b) = worker(settings, "a"), worker(settings, "b")
    step_until([a, b], lambda: len(a._inbox.owned) == len(b._inbox.owned) == PARTITIONS)  # two of each topic
    for i in range(40):
        send(kafka, settings.transactions, payment(f"t{i}", NOON + i, payer=f"c{i % 8}"), partition=i % PARTITIONS)
    step_until([a, b], lambda: a.served.payments + b.served.payments == 40)
    send(kafka, settings.labels, encode_label(Label("t1", True, NOON, "test")), partition=0)
    send(kafka, settings.labels, encode_label(Label("t2", True, NOON, "test")), partition=3)
    step_until([a, b], lambda: len(heard_a.heard) == len(heard_b.heard) == 42)
    assert a.served.payments == b.served.payments == 20
    assert Counter(heard_a.heard) == Counter(heard_b.heard)
    assert heard_a.seen == heard_b.seen
    # a repeated payment gets its answer from whoever owns its partition by then
    b.settle()
    b._ownership.leave()
    b._failed = True
    b.close()
    step_until([a], lambda: len(a._inbox.owned) == 2 * PARTITIONS)
    send(kafka, settings.transactions, *[payment(f"t{i}", NOON + i, payer=f"c{i % 8}") for i in (2, 3)], partition=2)
    step_until([a], lambda: a.served.repeated == 2)
    a.close()
    scores = scores_of(settings, 42)
    answers = {(s["transaction_id"], s["probability"]) for s in scores}
    assert len(scores) == 42
    assert len(answers) == 40
    assert lag(settings) == 0


def test_a_worker_that_was_thought_dead_can_not_commit(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, fresh_name(), partitions=2)
    a, _ = worker(settings, "a")
    step_until([a], lambda: len(a._inbox.owned) == 4)
    send(kafka, settings.transactions, payment("t1"), partition=0)
    a._ownership.leave()  # as the broker does with one that is silent
    b, _ = worker(settings, "b")
    step_until([b], lambda: b.served.payments == 1)
    with pytest.raises(OwnershipLostError, match="the group went on without this worker"):
        step_until([a], lambda: False)
    a.close()
    b.close()
    assert len(scores_of(settings, 1)) == 1


def start_worker(settings: StreamSettings, name: str, directory: Path) -> subprocess.Popen[str]:
    return start_stub(settings.bootstrap_servers, settings.group, 0.002, 0, directory, f"worker={name}")


def test_workers_come_and_go_and_nothing_is_lost_or_repeated(kafka: str, tmp_path: Path) -> None:
    settings = settings_for(kafka, fresh_name(), partitions=PARTITIONS)
    frame = random_stream(3000, days=30)
    mixed, poison = with_poison(frame)
    payers = iter(frame["payer"])
    for partition, values in enumerate(shared_out(mixed, payers)):
        send(kafka, settings.transactions, *values, partition=partition)
    running = {name: start_worker(settings, name, tmp_path) for name in ("a", "b")}
    done = 0
    for name, number in (("b", signal.SIGTERM), ("b", None), ("a", signal.SIGKILL), ("a", None)):
        done += 300
        read(kafka, settings.scores, done, drain=False)
        if number is None:
            running[name] = start_worker(settings, name, tmp_path)
            continue
        running[name].send_signal(number)
        _, errors = running[name].communicate(timeout=60)
        assert running[name].returncode in (0, -signal.SIGKILL), errors
    scores = scores_of(settings, len(frame))
    for process in running.values():
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert Counter(s["transaction_id"] for s in scores) == Counter(frame["transaction_id"])
    told = {s["transaction_id"]: s["probability"] for s in scores}
    assert [told[name] for name in frame["transaction_id"]] == expected_counts(frame["payer"].tolist())
    dead = read(kafka, settings.dead_letters, len(poison))
    assert Counter(r.value for r in dead) == Counter(poison)
    assert lag(settings) == 0


def shared_out(mixed: list[bytes], payers) -> list[list[bytes]]:  # type: ignore[no-untyped-def]
    """Records by partition: payments by their payer, as senders key them; bad ones where the payment before went."""
    out: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    last = 0
    for value in mixed:
        if value.startswith(b"{"):
            last = partition_of(next(payers))
        out[last].append(value)
    return out
