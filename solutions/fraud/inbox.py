"""Records of the partitions that this process owns: read, parsed, given out in the order of event time.

A partition keeps the order in which it arrived; between partitions and topics the earliest event time goes first, ties by
partition (see `alignment`). So how a stream is cut into batches changes no order.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from solutions.fraud.alignment import Alignment
from solutions.fraud.messages import BadRecordError, Label, Payment, parse_label, parse_payment
from solutions.fraud.tail import Partition
from solutions.fraud.wire import StreamSettings, insist

DAY = 86_400.0
LOOK_SECONDS = 0.02  # a position is asked of another thread, at some cost
MOST_WAITING = 16_384  # parsed records per partition; one that runs that far ahead of the others is held back


class Item(NamedTuple):
    """A record, what it says, and whether it was answered before this process began to own its partition."""

    record: Any
    event: Payment | Label
    answered: bool
    read: float  # monotonic seconds


class Bad(NamedTuple):
    """A record that can not be read."""

    record: Any
    cause: str
    answered: bool


class Inbox:
    """The consumer's records. `heads`: what may be committed, as far as this knows."""

    def __init__(self, consumer: Any, settings: StreamSettings) -> None:
        self.consumer, self.settings = consumer, settings
        self._alignment: Alignment[Any, Item] = Alignment([])
        self._answered: dict[Any, int] = {}  # offsets below were answered before
        self._heard: dict[Any, float] = {}  # when a partition last gave something
        self._held: set[Any] = set()
        self._next: dict[Any, int] = {}  # the offset after the last record that was read, or passed over
        self._looked = 0.0

    @property
    def owned(self) -> Collection[Any]:
        return self._answered.keys()

    def __len__(self) -> int:
        return len(self._alignment)

    def own(self, tp: Any, start: int | None, answered: int) -> None:
        """Give out a partition's records from `start` on (None: from its first), and say of those below `answered` so."""
        self._answered[tp], self._heard[tp], self._next[tp] = answered, time.monotonic(), start or 0
        self._alignment.add(tp)
        if start is None:
            self.consumer.seek_to_beginning(tp)
        else:
            self.consumer.seek(tp, start)

    def give_up(self) -> None:
        """Own nothing any more; what was read and not given out is dropped."""
        self._alignment = Alignment([])
        self._answered, self._heard, self._next = {}, {}, {}
        self._held = set()

    def poll(self, wait_ms: int, settled: Mapping[Partition, Collection[int]]) -> list[Bad]:
        """Read on, passing over what is settled; returns the records that can not be read."""
        most = self.settings.max_records
        polled = insist(self.settings, lambda: self.consumer.poll(timeout_ms=wait_ms, max_records=most))
        bad = []
        for tp, records in polled.items():
            if tp not in self._answered or tp in self._held:  # its owner changed while it was read, or it is read again
                continue
            self._heard[tp] = time.monotonic()
            self._next[tp] = records[-1].offset + 1
            done = settled.get((tp.topic, tp.partition), ())
            for record in records:
                if record.offset in done:
                    continue
                answered = record.offset < self._answered[tp]
                try:
                    event = self._parse(record)
                except BadRecordError as cause:
                    bad.append(Bad(record, str(cause), answered))
                    continue
                when = event.event_time if isinstance(event, Payment) else event.label_time
                self._alignment.push(tp, when, Item(record, event, answered, self._heard[tp]))
            if self._alignment.size(tp) > MOST_WAITING:
                self._hold(tp)
        return bad

    def _hold(self, tp: Any) -> None:
        """Read no more of a partition for a while, by looking at its end.

        The client's own `pause` may never give out again what it had fetched when it was paused (3.0.12: the records are
        parked, and taken back only when another slot is None, which it is not once it was used).
        """
        newest = self.consumer.highwater(tp)
        if newest is not None:
            self.consumer.seek(tp, newest)
            self._held.add(tp)

    def take(self) -> list[Item]:
        """The next batch, as far as no partition must be waited for."""
        self.pass_over()
        items = self._alignment.take(self.settings.max_records, self._caught_up)
        for tp in [tp for tp in self._held if self._alignment.size(tp) < MOST_WAITING // 2]:
            self.consumer.seek(tp, self._next[tp])
            self._held.remove(tp)
        return items

    def heads(self) -> dict[Any, int]:
        """By partition, the first record that was not given out."""
        heads = dict(self._next)
        for tp in heads:
            if (head := self._alignment.first(tp)) is not None:
                heads[tp] = head.record.offset
        return heads

    def told(self) -> bool:
        """Whether the broker has said how long each partition is."""
        return all(self.consumer.highwater(tp) is not None for tp in self._answered)

    def answered_all(self) -> bool:
        """Whether everything was given out that had been answered before."""
        return not self._alignment and all(answered <= self._next[tp] for tp, answered in self._answered.items())

    def highwater(self) -> dict[Any, int]:
        newest = {tp: self.consumer.highwater(tp) for tp in tuple(self._answered)}
        return {tp: end for tp, end in newest.items() if end is not None}

    def pass_over(self) -> None:
        """Go past what the broker never gives out, like the marks that senders' transactions leave; not at every call."""
        now = time.monotonic()
        if self._alignment or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for tp, newest in self.highwater().items():
            if self._next[tp] < newest and tp not in self._held:
                position = insist(self.settings, partial(self.consumer.position, tp)) or 0
                self._next[tp] = max(self._next[tp], position)

    def _caught_up(self, tp: Any) -> bool:
        """Whether a partition with nothing at hand has nothing on the broker either, or has been silent for long."""
        newest = self.consumer.highwater(tp)
        if newest is not None and self._next[tp] >= newest:
            return True
        return time.monotonic() - self._heard[tp] > self.settings.patience_seconds

    def _parse(self, record: Any) -> Payment | Label:
        latest = time.time() + self.settings.max_ahead_days * DAY
        raw = record.value or b""
        if record.topic == self.settings.labels:
            label = parse_label(raw)
            if label.label_time > latest:
                raise BadRecordError(self._ahead("label_time"))
            return label
        payment = parse_payment(raw, self.settings.columns)
        if payment.event_time > latest:
            raise BadRecordError(self._ahead("event_time"))
        return payment

    def _ahead(self, name: str) -> str:
        return f"`{name}` lies more than {self.settings.max_ahead_days:g} days ahead of the scorer's clock"
