"""A scorer whose answers show its state, topics of one's own, and a service to be killed.

python -m tests.solutions.fraud.stub ADDRESS NAME SECONDS_PER_PAYMENT UNTIL_IDLE [SNAPSHOTS [POINT COUNT]] [worker=NAME]

POINT is where the process kills itself, the COUNTth time it gets there: produced (sent, not committed), committed (not
yet known to the service), snapshot (half a snapshot is on the disk).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.logs import show_events
from solutions.fraud.broker import create_topics
from solutions.fraud.messages import Label, Payment, Score
from solutions.fraud.snapshots import Arrays, Contents, Packed
from solutions.fraud.stream import Service, StreamSettings


class CountingScorer:
    """Scores by how often a payer was seen, so that a lost state shows; knows which payments it has seen."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause
        self.seen: dict[str, int] = {}
        self.known: set[str] = set()
        self.heard: list[str] = []  # everything in the order in which it came: names of payments, "label of ..."

    def score(self, payments: Sequence[Payment]) -> list[Score]:
        scores = []
        for p in payments:
            time.sleep(self.pause)
            self.heard.append(p.transaction_id)
            self.seen[p.payer] = self.seen.get(p.payer, 0) + 1
            self.known.add(p.transaction_id)
            scores.append(Score(p.transaction_id, p.event_time, 1.0 / (1 + self.seen[p.payer]), "allow", (), "count/1"))
        return scores

    def observe(self, payments: Sequence[Payment], scores: Sequence[Score]) -> None:
        pause, self.pause = self.pause, 0.0
        self.score(payments)
        self.pause = pause

    def apply_labels(self, labels: Sequence[Label]) -> list[str]:
        outcomes = ["applied" if label.transaction_id in self.known else "unknown_payment" for label in labels]
        self.heard += [
            f"label of {label.transaction_id}"
            for label, outcome in zip(labels, outcomes, strict=True)
            if outcome == "applied"
        ]
        return outcomes

    kind = "count"

    def contents(self) -> Contents:
        return {"none": Packed.whole(np.zeros(0))}, {"seen": self.seen, "known": sorted(self.known)}

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        self.seen, self.known = values["seen"], set(values["known"])


def expected_counts(payers: Sequence[str]) -> list[float]:
    """What CountingScorer says to payments of these payers, in this order."""
    times: dict[str, int] = {}
    scores = []
    for payer in payers:
        times[payer] = times.get(payer, 0) + 1
        scores.append(round(1.0 / (1 + times[payer]), 6))
    return scores


def settings_for(address: str, name: str, *, partitions: int = 1, **changes: Any) -> StreamSettings:
    """Topics and a group of one's own."""
    settings = StreamSettings(
        bootstrap_servers=address,
        transactions=f"{name}.transactions",
        labels=f"{name}.labels",
        scores=f"{name}.scores",
        dead_letters=f"{name}.dead",
        group=name,
        **{"patience_seconds": 0.2, **changes},
    )
    create_topics(address, settings.topics()[:2], partitions=partitions)
    create_topics(address, settings.topics()[2:])
    return settings


def send(address: str, topic: str, *values: bytes, key: bytes | None = None, partition: int | None = None) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=address, max_request_size=1 << 24)
    futures = [producer.send(topic, value=value, key=key, partition=partition) for value in values]
    producer.flush(30)
    producer.close()
    for future in futures:
        future.get(0)


def read(address: str, topic: str, count: int, *, seconds: float = 30.0, drain: bool = True) -> list[Any]:
    """At least `count` records of a topic; `drain`: and all that follow at once."""
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=address,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        group_id=None,
        fetch_max_wait_ms=10,
    )
    records: list[Any] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        polled = [record for part in consumer.poll(timeout_ms=200).values() for record in part]
        records.extend(polled)
        if len(records) >= count and not (drain and polled):
            break
    consumer.close()
    return records


def die_at(point: str, count: int, service: Service) -> None:
    """Arrange the death of this process."""
    from solutions.fraud import snapshots

    me, left = os.getpid(), [count]

    def arrive() -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(me, signal.SIGKILL)

    producer = service.transactions._writer._producer
    commit, header = producer.commit_transaction, snapshots.Packed.whole

    def dying_commit() -> None:
        if point == "produced":
            producer.flush()
            arrive()
        commit()
        if point == "committed":
            arrive()

    def dying_blocks() -> Iterator[Any]:
        arrive()
        time.sleep(0.05)  # the child outlives its parent, and may even end the snapshot
        yield np.zeros(0)

    def contents() -> Contents:
        arrays, values = contents_of(service.scorer)
        return {**arrays, "last": header(np.zeros(0))._replace(blocks=dying_blocks())}, values

    producer.commit_transaction = dying_commit
    if point == "snapshot":
        contents_of = type(service.scorer).contents
        left[0] = 1  # counted by the child, which is forked anew every time
        service.scorer.contents = contents  # type: ignore[method-assign]


def main() -> None:
    words = [word for word in sys.argv[1:] if not word.startswith("worker=")]
    workers = [word.removeprefix("worker=") for word in sys.argv[1:] if word.startswith("worker=")]
    address, name, pause, until_idle, *more = words
    show_events()
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    directory = Path(more[0]) if more else None
    changes: dict[str, Any] = {"worker": workers[0]} if workers else {}
    settings = settings_for(address, name, max_records=64, snapshots=directory, snapshot_seconds=0.2, **changes)
    service = Service(settings, CountingScorer(float(pause)))
    if len(more) > 1:
        die_at(more[1], int(more[2]), service)
    print("ready", flush=True)
    service.run(lambda: bool(stopping), until_idle=float(until_idle) or None)


if __name__ == "__main__":
    main()
