"""Reads input records again, by their places: to rebuild a state after a crash, and to follow what other workers answered."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from solutions.fraud.changelog import Marker, Place, RecoveryError
from solutions.fraud.wire import StreamSettings, reader

Partition = tuple[str, int]
WAIT_MS = 200
AT_ONCE = 5_000


class TailReader:
    """Records of some partitions from given offsets on; each is given out once, in any order within what was read ahead."""

    def __init__(self, settings: StreamSettings, start: Mapping[Partition, int]) -> None:

        self.settings = settings
        self.consumer = reader(settings)
        self._records: dict[Partition, dict[int, Any]] = {}
        self.watch(start)

    def watch(self, start: Mapping[Partition, int]) -> None:
        """Read these partitions from now on, and no others."""
        from kafka import TopicPartition

        self._partitions = {place: TopicPartition(*place) for place in start}
        self._records = {place: {} for place in start}
        self.consumer.assign(list(self._partitions.values()))
        for place, offset in start.items():
            self.consumer.seek(self._partitions[place], offset)

    def read_ahead(self, wait_ms: int = 0) -> bool:
        """Take in what the broker has; returns whether that was anything."""
        if not self._partitions:
            return False
        polled = self.consumer.poll(timeout_ms=wait_ms, max_records=AT_ONCE)
        for tp, records in polled.items():
            self._records[tp.topic, tp.partition].update((r.offset, r) for r in records)
        return bool(polled)

    def holds(self, places: Iterable[Place]) -> bool:
        """Whether all these records were read already."""
        return all(o in self._records.get((topic, partition), ()) for topic, partition, o in places)

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
            if not self.read_ahead(WAIT_MS) and time.monotonic() > deadline:
                raise RecoveryError(f"topic `{topic}` on {self.settings.bootstrap_servers} stopped answering.")
        return held.pop(offset)

    def forget(self, marker: Marker) -> None:
        """Drop the records that a marker refused or went past."""
        for topic, partition, offset in marker.refused:
            self._records.get((topic, partition), {}).pop(offset, None)
        for place, offset in marker.positions.items():
            held = self._records.get(place)
            if held:
                self._records[place] = {o: r for o, r in held.items() if o >= offset}

    def close(self) -> None:
        self.consumer.close()
