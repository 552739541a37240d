"""What other workers of the group have answered changes this worker's graph too: their markers are followed as they come.

So every worker's graph holds every payment and label, those of others one transaction later, and a payment whose payer and
payee are known to different workers is scored with both.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from solutions.fraud.changelog import Marker, RecoveryError
from solutions.fraud.recovery import Recovered, Told, tell
from solutions.fraud.tail import Partition, TailReader
from solutions.fraud.wire import StreamSettings, insist, reader

EVERY_SECONDS = 0.003  # looking costs some 0.1 ms
WAIT_MS = 20


class Follower:
    """Reads the changelog on from where the state stands."""

    def __init__(self, settings: StreamSettings, state: Recovered, take_over: Callable[[Sequence[Told]], None]) -> None:
        from kafka import TopicPartition

        self.settings, self.state, self._take_over = settings, state, take_over
        self._changelog = TopicPartition(settings.changelog, 0)
        self._markers: deque[Marker] = deque()
        self._consumer = reader(settings)
        self._consumer.assign([self._changelog])
        self._consumer.seek(self._changelog, state.changelog_next)
        self._reader = TailReader(settings, {})
        self._looked = 0.0

    def watch(self, others: Mapping[Partition, int]) -> None:
        """Whose records are followed from now on, and from where."""
        self._reader.watch(others)

    def step(self) -> int:
        """Follow what is there; returns the number of payments and labels."""
        if time.monotonic() - self._looked < EVERY_SECONDS:
            return 0
        self._look(0)
        self._looked = time.monotonic()
        return self._follow(wait=False)

    def catch_up(self, goal: Mapping[Partition, int]) -> int:
        """Follow until these offsets were committed by their owner, which the group says they were.

        Raises:
            RecoveryError: their markers do not come.
        """
        count = self._follow(wait=True)
        deadline = time.monotonic() + self.settings.outage_seconds
        while any(self.state.positions.get(place, 0) < offset for place, offset in goal.items()):
            self._look(WAIT_MS)
            count += self._follow(wait=True)
            if time.monotonic() > deadline:
                raise RecoveryError(
                    f"topic `{self.settings.changelog}` lacks the markers of offsets that group `{self.settings.group}` "
                    f"has committed (waited {self.settings.outage_seconds:g} s)."
                )
        return count

    def close(self) -> None:
        self._consumer.close()
        self._reader.close()

    def _look(self, wait_ms: int) -> None:
        polled: dict[Any, Any] = insist(
            self.settings, lambda: self._consumer.poll(timeout_ms=wait_ms, max_records=2_000)
        )
        for record in polled.get(self._changelog, ()):
            self._markers.append(Marker.decode(record.value, record.offset + 1))
        insist(self.settings, self._reader.read_ahead)

    def _follow(self, *, wait: bool) -> int:
        """Follow markers whose records are at hand, or wait for the records."""
        count = 0
        while self._markers:
            marker = self._markers[0]
            if self.state.has(marker):  # its own
                self.state.changelog_next = marker.next_offset
                self._markers.popleft()
                continue
            if not wait and not self._reader.holds(marker.applied):
                break
            told = tell(self.settings, marker, self._reader)
            self._take_over(told)
            self._reader.forget(marker)
            self.state.follow(marker)
            self._markers.popleft()
            count += len(told)
        return count
