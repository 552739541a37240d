"""The service on a real wire: nothing lost, bad records dead-lettered with their bytes, state rebuilt after a stop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from solutions.fraud.broker import create_topics, embedded_broker, free_port
from solutions.fraud.messages import Label, Payment, Score
from solutions.fraud.stream import Service, StreamError, StreamSettings, lag, publish
from tests.solutions.fraud.streams import random_stream

TOPICS = ("transactions", "fraud_labels", "fraud_scores", "fraud_dead_letters")


class CountingScorer:
    """Scores by how often a payer was seen, so that a lost state shows; knows which payments it has seen."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.known: set[str] = set()

    def score(self, payments: Sequence[Payment]) -> list[Score]:
        scores = []
        for p in payments:
            self.seen[p.payer] = self.seen.get(p.payer, 0) + 1
            self.known.add(p.transaction_id)
            scores.append(Score(p.transaction_id, p.event_time, 1.0 / (1 + self.seen[p.payer]), "allow", (), "count/1"))
        return scores

    def apply_labels(self, labels: Sequence[Label]) -> list[str]:
        return ["applied" if label.transaction_id in self.known else "unknown_payment" for label in labels]


@pytest.fixture(scope="module")
def tansu() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Apache Kafka: KAFKA_BOOTSTRAP_SERVERS, else KAFKA_HOME or ../shared/kafka with Java, else skip."""
    if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield servers
        return
    home = Path(os.environ.get("KAFKA_HOME", Path(__file__).parents[4] / "shared" / "kafka"))
    starter = home / "bin" / "kafka-local"
    if not starter.exists() or shutil.which("java") is None:
        pytest.skip("no Apache Kafka: set KAFKA_BOOTSTRAP_SERVERS, or KAFKA_HOME with Java on the PATH")
    directory = tmp_path_factory.mktemp("kafka")
    port = free_port()
    subprocess.run([starter, "start", directory, "--port", str(port)], check=True, capture_output=True, timeout=120)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([starter, "stop", directory], check=False, capture_output=True, timeout=60)


def settings_for(address: str, name: str) -> StreamSettings:
    topics = [f"{name}.{topic}" for topic in TOPICS]
    create_topics(address, topics)
    transactions, labels, scores, dead = topics
    return StreamSettings(
        bootstrap_servers=address,
        transactions=transactions,
        labels=labels,
        scores=scores,
        dead_letters=dead,
        group=name,
    )


def drain(service: Service, payments: int, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while service.served.payments < payments and time.monotonic() < deadline:
        service.step()
    for _ in range(5):
        service.step()


def read(address: str, topic: str, count: int) -> list[Any]:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(topic, bootstrap_servers=address, auto_offset_reset="earliest", group_id=None)
    records: list[Any] = []
    deadline = time.monotonic() + 20
    while len(records) < count and time.monotonic() < deadline:
        for part in consumer.poll(timeout_ms=200).values():
            records.extend(part)
    consumer.close()
    return records


def scored_and_dead_lettered(address: str, name: str) -> None:
    """300 payments with labels; then 1 % poison; then a new service that must continue where the old one stopped."""
    from kafka import KafkaProducer

    settings = settings_for(address, name)
    frame = random_stream(300, days=30)
    first, second = frame.head(200), frame.tail(100)
    publish(first, settings)
    poison = [b"not json", b'{"transaction_id": "x"}', b""]
    producer = KafkaProducer(bootstrap_servers=address)
    for raw in poison:
        producer.send(settings.transactions, value=raw)
    producer.send(settings.labels, value=b'{"transaction_id":"nobody","is_fraud":true,"label_time":1714557600000}')
    producer.flush()
    producer.close()
    service = Service(settings, CountingScorer())
    drain(service, 200)
    service.close()

    publish(second, settings)
    assert lag(settings) >= 100
    again = Service(settings, CountingScorer())
    drain(again, 100)
    again.close()
    assert lag(settings) == 0

    scores = [json.loads(r.value) for r in read(address, settings.scores, 300)]
    assert {s["transaction_id"] for s in scores} == set(frame["transaction_id"])
    times: dict[str, int] = {}
    expected = []
    for payer in frame["payer"]:
        times[payer] = times.get(payer, 0) + 1
        expected.append(1.0 / (1 + times[payer]))
    by_name = {s["transaction_id"]: s["probability"] for s in scores}
    assert [by_name[t] for t in frame["transaction_id"]] == pytest.approx(expected, abs=1e-6)

    dead = read(address, settings.dead_letters, 4)
    assert {r.value for r in dead} >= {b"not json", b'{"transaction_id": "x"}'}
    causes = {dict(r.headers)["cause"].decode() for r in dead}
    assert "record is not JSON in UTF-8" in causes
    assert any("label for a payment that is not known" in cause for cause in causes)
    assert all(dict(r.headers)["topic"].decode().startswith(name) for r in dead)


def test_on_the_embedded_broker(tansu: str) -> None:
    scored_and_dead_lettered(tansu, "quick")


def test_on_apache_kafka(kafka: str) -> None:
    scored_and_dead_lettered(kafka, "real")


def test_a_missing_topic_is_named(tansu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solutions.fraud.stream.CONNECT_SECONDS", 0.5)
    with pytest.raises(StreamError, match="topic `no_such_topic` does not exist"):
        Service(StreamSettings(bootstrap_servers=tansu, transactions="no_such_topic"), CountingScorer())


def test_an_unreachable_broker_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solutions.fraud.stream.CONNECT_SECONDS", 0.5)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(StreamError, match=f"no Kafka broker answers at {address}"):
        Service(StreamSettings(bootstrap_servers=address), CountingScorer())
