"""The service on a real wire: nothing lost, bad records dead-lettered with their bytes, order of time, exact restarts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from solutions.fraud.broker import free_port
from solutions.fraud.messages import Label, Payment, encode_label, encode_payment
from solutions.fraud.stream import Service, StreamError, StreamSettings, lag, publish
from tests.kafka import local_kafka
from tests.solutions.fraud.streams import random_stream
from tests.solutions.fraud.stub import CountingScorer, expected_counts, read, send, settings_for

NOON = 1_714_557_600.0


def payment(name: str, when: float = NOON, payer: str = "c1", amount: float = 10.0) -> bytes:
    return encode_payment(Payment(name, when, payer, "m1", amount))


def label(name: str, when: float = NOON) -> bytes:
    return encode_label(Label(name, True, when, "chargeback"))


def fresh_name() -> str:
    return f"test-{uuid.uuid4().hex[:10]}"


def serve(settings: StreamSettings, scorer: CountingScorer | None = None, idle: float = 0.3) -> CountingScorer:
    """Serve until nothing comes any more."""
    scorer = scorer or CountingScorer()
    Service(settings, scorer).run(until_idle=settings.patience_seconds + idle)
    return scorer


def scores_of(settings: StreamSettings, count: int) -> list[dict[str, Any]]:
    return [json.loads(record.value) for record in read(settings.bootstrap_servers, settings.scores, count)]


def dead_letters_of(settings: StreamSettings, count: int) -> list[tuple[bytes, dict[str, str]]]:
    records = read(settings.bootstrap_servers, settings.dead_letters, count)
    return [(r.value, {name: value.decode() for name, value in r.headers}) for r in records]


def scored_and_dead_lettered(address: str) -> None:
    """300 payments with labels and bad records in between, by two services one after the other."""
    settings = settings_for(address, fresh_name())
    frame = random_stream(300, days=30)
    publish(frame.head(200), settings)
    poison = [b"not json", b'{"transaction_id": "x"}', b"", payment("x").replace(b"10.0", b"NaN"), b"1" * 400]
    send(address, settings.transactions, *poison)
    send(address, settings.labels, label("nobody"), b"{}")
    serve(settings)
    publish(frame.tail(100), settings)
    assert lag(settings) >= 100
    serve(settings)
    assert lag(settings) == 0

    scores = scores_of(settings, 300)
    assert [s["transaction_id"] for s in scores] == frame["transaction_id"].tolist()
    assert [s["probability"] for s in scores] == expected_counts(frame["payer"].tolist())
    dead = dead_letters_of(settings, len(poison) + 2)
    assert Counter(value for value, _ in dead) == Counter([*poison, label("nobody"), b"{}"])
    for value, headers in dead:
        assert headers["topic"] == (settings.labels if value in (label("nobody"), b"{}") else settings.transactions)
        assert headers["partition"] == "0"
        assert int(headers["offset"]) >= 0
    causes = {value: headers["cause"] for value, headers in dead}
    assert causes[b"not json"] == "record is not JSON in UTF-8"
    assert causes[b"1" * 400] == "record is not a JSON object but a int"
    assert causes[label("nobody")].startswith("label for a payment that is not known")


def test_a_stream_is_scored_and_dead_lettered_on_the_embedded_broker(tansu: str) -> None:
    scored_and_dead_lettered(tansu)


def test_a_stream_is_scored_and_dead_lettered_on_apache_kafka(kafka: str) -> None:
    scored_and_dead_lettered(kafka)


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_a_backlog_is_taken_in_the_order_of_time_whatever_the_batch(tansu: str, batch: int) -> None:
    settings = settings_for(tansu, fresh_name(), partitions=3, max_records=batch, patience_seconds=5.0)
    moments = [f"t{i}" for i in range(60)]
    for partition in range(3):
        mine = range(partition, 60, 3)
        send(tansu, settings.transactions, *[payment(f"t{i}", NOON + i) for i in mine], partition=partition)
    # a label says so strictly before the first payment that is later than it is
    send(tansu, settings.labels, label("t4", NOON + 10), label("t5", NOON + 10.5), label("t0", NOON + 99), partition=0)
    expected = [*moments[:11], "label of t4", "label of t5", *moments[11:], "label of t0"]
    scorer = CountingScorer()
    Service(settings, scorer).run(max_records=63)
    assert scorer.heard == expected


def test_a_partition_that_runs_ahead_is_held_back_and_read_on(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solutions.fraud.inbox.MOST_WAITING", 40)
    settings = settings_for(kafka, fresh_name(), partitions=2, max_records=16, patience_seconds=30.0)
    ahead = [payment(f"t{i}", NOON + 1_000 + i) for i in range(600)]
    behind = [payment(f"s{i}", NOON + i) for i in range(300)]
    send(kafka, settings.transactions, *ahead, partition=0)
    send(kafka, settings.transactions, *behind, partition=1)
    service = Service(settings, scorer := CountingScorer())
    most = 0
    while len(scorer.heard) < 900:
        service.step()
        most = max(most, len(service._inbox))
    service.close()
    assert scorer.heard == [*[f"s{i}" for i in range(300)], *[f"t{i}" for i in range(600)]]
    assert most < 150
    assert lag(settings) == 0


def test_late_payments_keep_the_order_of_their_partition(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    times = {"a": NOON + 50, "b": NOON + 10, "c": NOON + 40}
    send(tansu, settings.transactions, *[payment(name, when) for name, when in times.items()])
    assert serve(settings).heard == ["a", "b", "c"]


def test_a_label_waits_for_a_payment_that_is_on_its_way(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name(), patience_seconds=10.0)
    service = Service(settings, scorer := CountingScorer())
    send(tansu, settings.labels, label("t1"))
    for _ in range(30):
        service.step()
    assert lag(settings) == 1  # not committed while it waits
    send(tansu, settings.transactions, payment("t1"))
    service.run(max_records=1)
    assert scorer.heard == ["t1", "label of t1"]
    assert lag(settings) == 0
    assert service.served.dead_letters == 0


@pytest.mark.parametrize("batch", [1, 256])
def test_a_repeated_payment_gets_its_answer_again_and_counts_once(tansu: str, batch: int) -> None:
    settings = settings_for(tansu, fresh_name(), max_records=batch)
    other = payment("t1", amount=99.0)
    send(tansu, settings.transactions, payment("t1"), payment("t1"), payment("t2"), other)
    serve(settings)
    send(tansu, settings.transactions, payment("t1"))
    serve(settings)  # also after a restart
    scores = scores_of(settings, 4)
    assert [(s["transaction_id"], s["probability"], s["offset"]) for s in scores] == [
        ("t1", 0.5, 0),
        ("t1", 0.5, 1),
        ("t2", 0.333333, 2),
        ("t1", 0.5, 4),
    ]
    [(value, headers)] = dead_letters_of(settings, 1)
    assert value == other
    assert headers["cause"] == "`transaction_id` was used before by another payment"


def test_records_without_a_value_are_dead_lettered(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    service = Service(settings, CountingScorer())
    nothing = SimpleNamespace(topic=settings.transactions, partition=0, offset=0, value=None, key=None)
    service._dead_letter(nothing, "cause", answered=False)  # no key either: other languages can send that
    service.close()
    [(value, headers)] = dead_letters_of(settings, 1)
    assert (value, headers["null_value"]) == (b"", "true")


def test_an_event_from_the_future_can_not_move_the_clocks(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    future = datetime.now(UTC).timestamp() + timedelta(days=30).total_seconds()
    send(tansu, settings.transactions, payment("t1", future), payment("t2"))
    send(tansu, settings.labels, label("t2", future))
    assert serve(settings).heard == ["t2"]
    causes = {headers["cause"] for _, headers in dead_letters_of(settings, 2)}
    assert causes == {
        "`event_time` lies more than 1 days ahead of the scorer's clock",
        "`label_time` lies more than 1 days ahead of the scorer's clock",
    }


def test_fields_are_renamed(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name(), columns={"payer": "CUSTOMER_ID"})
    send(tansu, settings.transactions, payment("t1").replace(b'"payer"', b'"CUSTOMER_ID"'))
    assert serve(settings).heard == ["t1"]


def test_what_the_broker_did_not_take_is_not_committed(tansu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

    settings = settings_for(tansu, fresh_name(), outage_seconds=5.0)
    send(tansu, settings.transactions, payment("t1"))
    service = Service(settings, CountingScorer())
    attempt, away = service.transactions._writer._attempt, [KafkaTimeoutError(), TopicAuthorizationFailedError()]

    def failing(*arguments: Any) -> int:
        if away:
            raise away.pop(0)
        return attempt(*arguments)

    monkeypatch.setattr(service.transactions._writer, "_attempt", failing)
    with pytest.raises(StreamError, match="stopped answering or refuses \\(TopicAuthorizationFailedError"):
        service.run(max_records=1)
    assert not away  # a time-out was tried again, a refusal was not
    assert lag(settings) == 1
    serve(settings)
    assert len(scores_of(settings, 1)) == 1


def test_a_commit_that_hangs_is_noticed(tansu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tansu, fresh_name(), outage_seconds=1.0)
    send(tansu, settings.transactions, payment("t1"))
    service = Service(settings, CountingScorer())
    monkeypatch.setattr("solutions.fraud.transactions.Writer._attempt", lambda *_: time.sleep(60))
    start = time.monotonic()
    with pytest.raises(StreamError, match="no answer to a commit"):
        service.run(max_records=1)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("committed", [True, False])
def test_a_client_that_never_comes_back_is_replaced(
    kafka: str, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    monkeypatch.setattr("solutions.fraud.transactions.STUCK_SECONDS", 0.5)
    settings = settings_for(kafka, fresh_name())
    send(kafka, settings.transactions, payment("t1"), payment("t2"))
    service = Service(settings, CountingScorer())
    writer = service.transactions._writer
    attempt = writer._attempt

    def hanging(*arguments: Any) -> int:
        if committed:
            attempt(*arguments)
        time.sleep(60)
        raise AssertionError

    monkeypatch.setattr(writer, "_attempt", hanging)
    service.run(max_records=2)
    assert service.transactions._writer is not writer
    assert [s["transaction_id"] for s in scores_of(settings, 2)] == ["t1", "t2"]


def test_a_record_too_large_for_the_dead_letter_topic_is_shortened(kafka: str) -> None:
    settings = settings_for(kafka, fresh_name())
    huge = b"x" * 1_048_500  # just fits into a topic; with headers it does not
    send(kafka, settings.transactions, huge, payment("t1"))
    assert serve(settings, idle=1.0).heard == ["t1"]
    [(value, headers)] = dead_letters_of(settings, 1)
    assert value == huge[:65_536]
    assert headers["shortened_from"] == "1048500"
    assert headers["offset"] == "0"  # the whole of it is still there


def test_partitions_that_are_added_later_are_served(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kafka.admin import KafkaAdminClient

    monkeypatch.setattr("solutions.fraud.ownership.NEW_PARTITIONS_SECONDS", 0.3)
    settings = settings_for(kafka, fresh_name())
    service = Service(settings, scorer := CountingScorer())
    send(kafka, settings.transactions, payment("t1"))
    while not service.step():
        pass
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_partitions({settings.transactions: 2})
    admin.close()
    send(kafka, settings.transactions, payment("t2"), partition=1)
    service.run(max_records=1, until_idle=10.0)
    assert scorer.heard == ["t1", "t2"]


def start_stub(address: str, name: str, pause: float, until_idle: float, *more: object) -> subprocess.Popen[str]:
    words = [address, name, str(pause), str(until_idle), *map(str, more)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.solutions.fraud.stub", *words],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def with_poison(frame: pd.DataFrame) -> tuple[list[bytes], list[bytes]]:
    """Payments of a frame with 1 % bad records in between, and those bad records."""
    mixed, poison = [], []
    seconds = frame["event_time"].astype("int64") / 1e6
    for i, (row, when) in enumerate(zip(frame.itertuples(), seconds, strict=True)):
        mixed.append(encode_payment(Payment(row.transaction_id, when, row.payer, row.payee, row.amount)))
        if i % 100 == 50:
            poison.append(f"poison {i}".encode())
            mixed.append(poison[-1])
    return mixed, poison


def answered_exactly(settings: StreamSettings, frame: pd.DataFrame, poison: list[bytes]) -> None:
    """Every payment has its right score, once, and every bad record its letter, once."""
    scores = scores_of(settings, len(frame))
    assert [s["transaction_id"] for s in scores] == frame["transaction_id"].tolist()
    assert [s["probability"] for s in scores] == expected_counts(frame["payer"].tolist())
    dead = dead_letters_of(settings, len(poison))
    assert [value for value, _ in dead] == poison
    assert {headers["cause"] for _, headers in dead} == {"record is not JSON in UTF-8"}


def test_sigterm_ends_the_service_with_everything_committed(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    send(tansu, settings.transactions, *[payment(f"t{i}") for i in range(20)])
    service = start_stub(tansu, settings.group, 0.0, 0)
    read(tansu, settings.scores, 20)
    service.send_signal(signal.SIGTERM)
    _, errors = service.communicate(timeout=10)
    assert service.returncode == 0
    assert '"event": "stopped", "payments": 20' in errors
    assert lag(settings) == 0


def test_a_broker_that_is_killed_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    with local_kafka(tmp_path) as broker:
        settings = settings_for(broker.address, fresh_name())
        frame = random_stream(1500, days=30)
        mixed, poison = with_poison(frame)
        send(broker.address, settings.transactions, *mixed)
        service = start_stub(broker.address, settings.group, 0.001, 0)
        read(broker.address, settings.scores, 200, drain=False)
        broker.end(signal.SIGKILL)
        time.sleep(0.5)
        broker.start()
        read(broker.address, settings.scores, 1500, drain=False)
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=60)
        assert service.returncode == 0, errors
        answered_exactly(settings, frame, poison)


def test_a_missing_topic_is_named(tansu: str) -> None:
    settings = StreamSettings(bootstrap_servers=tansu, transactions="no_such_topic", connect_seconds=0.3)
    with pytest.raises(StreamError, match=f"topic `no_such_topic` does not exist on {tansu}|topic `fraud_scores`"):
        Service(settings, CountingScorer())
    with pytest.raises(StreamError, match="topic `no_such_topic` does not exist"):
        lag(settings)


def test_an_unreachable_broker_is_named_in_bounded_time() -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = StreamSettings(bootstrap_servers=address, connect_seconds=0.5)
    start = time.monotonic()
    for call in (lambda: Service(settings, CountingScorer()), lambda: lag(settings)):
        with pytest.raises(StreamError, match=f"no Kafka broker answers at {address}"):
            call()
    with pytest.raises(StreamError, match=f"no Kafka broker answers at {address}"):
        publish(random_stream(10), settings)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bootstrap_servers": "localhost"}, "named HOST:PORT. Received: 'localhost'"),
        ({"bootstrap_servers": ""}, "named HOST:PORT. Received: 'nothing'"),
        ({"bootstrap_servers": "http://a:1"}, "named HOST:PORT"),
        ({"max_records": 0}, "`max_records` must be >= 1. Received: max_records=0"),
        ({"patience_seconds": -1.0}, "`patience_seconds` must be >= 0"),
        ({"scores": "transactions"}, "the four topics must differ"),
    ],
)
def test_settings_refuse_nonsense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        StreamSettings(**{"bootstrap_servers": "127.0.0.1:9092", **change})
    assert refused.value.exit_code == 2  # type: ignore[attr-defined]
