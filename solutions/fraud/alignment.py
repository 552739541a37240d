"""Several streams as one, in the order of event time: each keeps its own order, and the earliest head goes first.

A stream with nothing at hand but more on the broker is waited for, one that is caught up is not (what Kafka Streams does,
KIP-353 and KIP-695). So a backlog is processed as it happened, labels between payments, and live nobody waits.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)
T = TypeVar("T")


class Alignment(Generic[S, T]):
    """One queue per source. At equal times the source that was named earlier goes first."""

    def __init__(self, sources: Sequence[S]) -> None:
        self._queues: dict[S, deque[tuple[float, T]]] = {}
        self._heads: list[tuple[float, int]] = []  # (time, rank) of the head of each queue that has one
        self._sources: list[S] = []
        for source in sources:
            self.add(source)

    def add(self, source: S) -> None:
        self._queues[source] = deque()
        self._sources.append(source)

    def push(self, source: S, time: float, item: T) -> None:
        queue = self._queues[source]
        queue.append((time, item))
        if len(queue) == 1:
            heapq.heappush(self._heads, (time, self._sources.index(source)))

    def take(self, most: int, caught_up: Callable[[S], bool]) -> list[T]:
        """Up to `most` items in order; stops where a source must be waited for."""
        taken: list[T] = []
        if not self._heads or not all(queue or caught_up(source) for source, queue in self._queues.items()):
            return taken
        while self._heads and len(taken) < most:
            _, rank = self._heads[0]
            source = self._sources[rank]
            queue = self._queues[source]
            taken.append(queue.popleft()[1])
            if queue:
                heapq.heapreplace(self._heads, (queue[0][0], rank))
            else:
                heapq.heappop(self._heads)
                if not caught_up(source):
                    break
        return taken

    def first(self, source: S) -> T | None:
        """The oldest item of a source that was not taken yet."""
        queue = self._queues[source]
        return queue[0][1] if queue else None

    def size(self, source: S) -> int:
        return len(self._queues[source])

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))
