"""The changelog topic: one marker per transaction, which tells in what order records changed the state.

Live, records of several partitions are taken as they come in, so their order can not be told from their times. The marker
makes the rebuilding of a state after a crash exact: the same records in the same order, none twice. Only the owner of the
state writes it, in the transaction that also holds the decisions and the consumed offsets.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from solutions.fraud.wire import StreamError, StreamSettings, connect

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
    """One transaction. applied: records that changed the state or were answered, in order; refused: dead letters;
    positions: for every partition, the offset that was committed."""

    sequence: int
    applied: Runs = field(default_factory=Runs)
    refused: Runs = field(default_factory=Runs)
    positions: dict[tuple[str, int], int] = field(default_factory=dict)
    next_offset: int = -1  # where the changelog goes on after it

    def encode(self) -> bytes:
        positions = [[*place, offset] for place, offset in self.positions.items()]
        record = {"sequence": self.sequence, "applied": self.applied.rows, "refused": self.refused.rows}
        return json.dumps(record | {"positions": positions}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, raw: bytes, next_offset: int) -> Marker:
        record = json.loads(raw)
        marker = cls(record["sequence"], next_offset=next_offset)
        marker.applied.rows, marker.refused.rows = record["applied"], record["refused"]
        marker.positions = {(topic, partition): offset for topic, partition, offset in record["positions"]}
        return marker


def read_changelog(settings: StreamSettings, start: int) -> list[Marker]:
    """All committed markers from an offset on.

    Raises:
        RecoveryError: they begin later than that: somebody shortened the topic.
    """
    from kafka import KafkaConsumer, TopicPartition

    tp = TopicPartition(settings.changelog, 0)
    consumer = connect(
        KafkaConsumer,
        settings,
        group_id=None,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=10,
    )
    try:
        consumer.assign([tp])
        consumer.seek(tp, start)
        markers: list[Marker] = []
        deadline = time.monotonic() + settings.outage_seconds
        while True:
            for record in consumer.poll(timeout_ms=WAIT_MS, max_records=2000).get(tp, []):
                markers.append(Marker.decode(record.value, record.offset + 1))
                deadline = time.monotonic() + settings.outage_seconds
            newest = consumer.highwater(tp)
            if newest is not None and (consumer.position(tp) or 0) >= newest:
                break
            if time.monotonic() > deadline:
                raise RecoveryError(f"topic `{tp.topic}` on {settings.bootstrap_servers} does not tell its end.")
    finally:
        consumer.close()
    for before, after in pairwise(markers):
        if after.sequence != before.sequence + 1:
            raise RecoveryError(
                f"topic `{tp.topic}` must hold one marker after the other. Received: {after.sequence} after {before.sequence}."
            )
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


class TailReader:
    """Reads input records again, in any order within what is read ahead."""

    def __init__(self, settings: StreamSettings, start: Mapping[tuple[str, int], int]) -> None:
        from kafka import KafkaConsumer, TopicPartition

        self.settings = settings
        self.consumer = connect(
            KafkaConsumer,
            settings,
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=10,
        )
        self._partitions = {place: TopicPartition(*place) for place in start}
        self.consumer.assign(list(self._partitions.values()))
        for place, offset in start.items():
            self.consumer.seek(self._partitions[place], offset)
        self._records: dict[tuple[str, int], dict[int, Any]] = {place: {} for place in start}

    def take(self, topic: str, partition: int, offset: int) -> Any:
        """The record of a place, once.

        Raises:
            RecoveryError: it is gone, or the broker does not give it.
        """
        place = (topic, partition)
        if place not in self._records:
            raise RecoveryError(f"the changelog names partition {partition} of topic `{topic}`, which does not exist.")
        held = self._records[place]
        deadline = time.monotonic() + self.settings.outage_seconds
        while offset not in held:
            if (self.consumer.position(self._partitions[place]) or 0) > offset:
                raise RecoveryError(
                    f"record {offset} of partition {partition} of topic `{topic}` is needed to rebuild the state and is "
                    "gone. Keep the topic for longer than the oldest snapshot is old."
                )
            polled = self.consumer.poll(timeout_ms=WAIT_MS, max_records=5000)
            for tp, records in polled.items():
                self._records[tp.topic, tp.partition].update((r.offset, r) for r in records)
            if not polled and time.monotonic() > deadline:
                raise RecoveryError(f"topic `{topic}` on {self.settings.bootstrap_servers} stopped answering.")
        return held.pop(offset)

    def close(self) -> None:
        self.consumer.close()
