"""The changelog topic: one marker per transaction, which tells in what order records changed the state, and the answers.

Live, records of several partitions are taken as they come in, so their order can not be told from their times. The marker
makes the rebuilding of a state after a crash exact: the same records in the same order, none twice, and no payment is scored
again, so a model that changed meanwhile changes no answer. Workers that share a group follow each other's markers. A marker
is written in the transaction that also holds the decisions and the consumed offsets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from solutions.fraud.decisions import ACTIONS
from solutions.fraud.messages import Payment, Score
from solutions.fraud.wire import StreamError, StreamSettings, connect, reader

Place = tuple[str, int, int]  # topic, partition, offset
WAIT_MS = 200
LAST_RECORDS = 64  # a transaction that was given up, and one that ends it, leave records without a marker


class RecoveryError(StreamError):
    """The state can not be rebuilt exactly."""


class Runs:
    """Places in order; consecutive offsets of a partition are kept as one run."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []  # [topic, partition, first offset, count]

    def add(self, topic: str, partition: int, offset: int) -> None:
        last = self.rows[-1] if self.rows else None
        if last is not None and last[:2] == [topic, partition] and last[2] + last[3] == offset:
            last[3] += 1
        else:
            self.rows.append([topic, partition, offset, 1])

    def __iter__(self) -> Iterator[Place]:
        for topic, partition, first, count in self.rows:
            for offset in range(first, first + count):
                yield topic, partition, offset

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass
class Marker:
    """One transaction.

    worker, sequence: whose, and which of its own. applied: records that changed the state or were answered, in order;
    refused: dead letters. positions: of each partition that went on, the offset that was committed. answers: of the applied
    payments in their order, (probability, place in `ACTIONS`, reasons), or None where an earlier answer was repeated.
    """

    worker: str
    sequence: int
    version: str = ""  # of the model that answered
    applied: Runs = field(default_factory=Runs)
    refused: Runs = field(default_factory=Runs)
    positions: dict[tuple[str, int], int] = field(default_factory=dict)
    answers: list[Any] = field(default_factory=list)
    next_offset: int = -1  # where the changelog goes on after it

    def answer(self, score: Score | None) -> None:
        """Write down the answer to the payment that was applied last."""
        if score is None:
            self.answers.append(None)
            return
        self.version = score.model_version
        self.answers.append([score.probability, ACTIONS.index(score.decision), list(score.reasons)])

    def scores(self, payments: Sequence[Payment]) -> list[Score | None]:
        """The answers to its applied payments, given what they say."""
        told: list[Score | None] = []
        for payment, answer in zip(payments, self.answers, strict=True):
            if answer is None:
                told.append(None)
                continue
            p, action, reasons = answer
            told.append(Score("", payment.event_time, p, ACTIONS[action], tuple(reasons), self.version))
        return told

    def encode(self) -> bytes:
        record = {
            "worker": self.worker,
            "sequence": self.sequence,
            "version": self.version,
            "applied": self.applied.rows,
            "refused": self.refused.rows,
            "positions": [[*place, offset] for place, offset in self.positions.items()],
            "answers": self.answers,
        }
        return json.dumps(record, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes, next_offset: int) -> Marker:
        record = json.loads(raw)
        marker = cls(record["worker"], record["sequence"], record["version"], next_offset=next_offset)
        marker.applied.rows, marker.refused.rows = record["applied"], record["refused"]
        marker.positions = {(topic, partition): offset for topic, partition, offset in record["positions"]}
        marker.answers = record["answers"]
        return marker


def read_changelog(settings: StreamSettings, start: int) -> list[Marker]:
    """All committed markers from an offset on.

    Raises:
        RecoveryError: one is missing between two of the same worker.
    """
    from kafka import TopicPartition

    tp = TopicPartition(settings.changelog, 0)
    consumer = reader(settings)
    try:
        consumer.assign([tp])
        consumer.seek(tp, start)
        markers: list[Marker] = []
        deadline = time.monotonic() + settings.outage_seconds
        goal: int | None = None  # others may go on writing
        while True:
            for record in consumer.poll(timeout_ms=WAIT_MS, max_records=2000).get(tp, []):
                markers.append(Marker.decode(record.value, record.offset + 1))
                deadline = time.monotonic() + settings.outage_seconds
            goal = consumer.highwater(tp) if goal is None else goal
            if goal is not None and (consumer.position(tp) or 0) >= goal:
                break
            if time.monotonic() > deadline:
                raise RecoveryError(f"topic `{tp.topic}` on {settings.bootstrap_servers} does not tell its end.")
    finally:
        consumer.close()
    last: dict[str, int] = {}
    for marker in markers:
        expected = last.get(marker.worker, marker.sequence - 1) + 1
        if marker.sequence != expected:
            raise RecoveryError(
                f"topic `{tp.topic}` must hold one marker of worker `{marker.worker}` after the other. "
                f"Received: {marker.sequence}, expected: {expected}."
            )
        last[marker.worker] = marker.sequence
    return markers


def newest_marker(settings: StreamSettings) -> Marker | None:
    """The last committed marker; None when there is none yet."""
    from kafka import KafkaConsumer, TopicPartition

    tp = TopicPartition(settings.changelog, 0)
    consumer = connect(KafkaConsumer, settings, group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=10)
    try:
        if not consumer.partitions_for_topic(settings.changelog):
            return None
        consumer.assign([tp])
        consumer.seek(tp, 0)
        deadline = time.monotonic() + settings.connect_seconds
        while consumer.highwater(tp) is None and time.monotonic() < deadline:
            consumer.poll(timeout_ms=50, max_records=1)
        newest = consumer.highwater(tp) or 0
    finally:
        consumer.close()
    markers = read_changelog(settings, max(newest - LAST_RECORDS, 0))
    return markers[-1] if markers else None
