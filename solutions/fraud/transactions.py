"""Decisions, dead letters, consumed offsets and the state marker in one Kafka transaction, or none of them.

A transaction is written by a thread of its own, one at a time, while the next payments are scored. Some calls of the client
have no timeout, and may never come back when a broker dies at the wrong moment: whoever waits is the watchdog. The
transactional id is the owner's: a process that takes its place ends the open transaction of the one before and fences it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from core.logs import EventLog
from solutions.fraud.changelog import Marker, read_changelog
from solutions.fraud.ownership import SESSION_MS, OwnershipLostError
from solutions.fraud.wire import StreamError, StreamSettings, connect

log = EventLog("vigil.fraud.transactions", fields=("cause", "group", "sequence"))
STUCK_SECONDS = 5.0
SHORTENED = 65_536  # bytes kept of a record that is too large for the dead-letter topic


class FencedError(StreamError):
    """Another process owns the state now."""


class Output(NamedTuple):
    topic: str
    value: bytes
    key: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Transaction:
    """What becomes visible together. offsets: by partition; member: as whose they are committed."""

    outputs: Sequence[Output]
    marker: Marker
    offsets: dict[Any, int]
    member: Any


class Transactions:
    """Writes transactions in order, one at a time."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.committed = 0
        self._writer = Writer(settings, 0)
        self._writer.start()
        self._running: Transaction | None = None
        self._began = 0.0

    @property
    def busy(self) -> bool:
        return self._running is not None

    def resume_after(self, changelog_next: int) -> None:
        """Where the changelog ends, as far as its owner has read it."""
        self._writer.changelog_next = changelog_next

    def begin(self, transaction: Transaction) -> None:
        assert not self.busy
        self._running, self._began = transaction, time.monotonic()
        self._writer.todo.put((transaction, False))

    def finished(self, timeout: float | None) -> int | None:
        """The changelog's next offset when the running transaction is committed, None while it is not.

        `timeout` None waits for as long as an outage may last.

        Raises:
            StreamError: it took longer than an outage may last, or the broker refuses. FencedError: the owner changed.
        """
        assert self._running is not None
        limit = self._began + self.settings.outage_seconds + 5.0
        until = limit if timeout is None else min(time.monotonic() + timeout, limit)
        while True:
            wait = min(until - time.monotonic(), STUCK_SECONDS)
            try:
                outcome = self._writer.done.get(timeout=wait) if wait > 0.0 else self._writer.done.get_nowait()
            except queue.Empty:
                now = time.monotonic()
                if now >= limit:
                    raise silent(self.settings, None) from None
                if self._writer.stuck(now):
                    self._replace_writer(self._running)
                if now >= until:
                    return None
                continue
            self._running = None
            if isinstance(outcome, BaseException):
                raise outcome
            self.committed += 1
            return outcome

    def _replace_writer(self, transaction: Transaction) -> None:
        """Give up a client that never came back from a call, and let another one find out what became of the transaction."""
        log.warning("client given up", cause="it does not answer", sequence=transaction.marker.sequence)
        before, self._writer = self._writer, Writer(self.settings, self._writer.changelog_next, before=self._writer)
        before.give_up()
        self._writer.start()
        self._writer.todo.put((transaction, True))

    def close(self) -> None:
        """End the thread and the client; an unfinished transaction is ended by the next owner, or by its timeout."""
        self._writer.close(0.0 if self.busy else 10.0)


class Writer(threading.Thread):
    """A transactional client with a thread of its own."""

    def __init__(self, settings: StreamSettings, changelog_next: int, before: Writer | None = None) -> None:
        """Opens its client, unless another one of the same owner is to be replaced: then when it writes."""
        super().__init__(name="vigil-transactions", daemon=True)
        self.settings, self.changelog_next = settings, changelog_next
        self.todo: queue.SimpleQueue[tuple[Transaction, bool] | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self._producer: Any = self._open() if before is None else before._producer
        self._attempted: float | None = None  # when the attempt that is going on began
        self._closed = False

    def stuck(self, now: float) -> bool:
        """Whether a call has not come back: the client waits for some answers without a limit."""
        return self._attempted is not None and now - self._attempted > STUCK_SECONDS

    def give_up(self) -> None:
        self._closed = True
        self.todo.put(None)

    def close(self, seconds: float) -> None:
        self.give_up()
        self.join(seconds)
        self._abandon(seconds)

    def run(self) -> None:
        while (job := self.todo.get()) is not None:
            try:
                self.done.put(self._write(*job))
            except BaseException as error:
                self.done.put(error)

    def _write(self, transaction: Transaction, again: bool) -> int:
        """Commit, whatever happens to the broker meanwhile; returns where the changelog goes on.

        again: another client tried before.
        """
        from kafka.errors import (
            CommitFailedError,
            FencedInstanceIdError,
            InvalidProducerEpochError,
            KafkaError,
            ProducerFencedError,
        )

        deadline = time.monotonic() + self.settings.outage_seconds
        outputs = list(transaction.outputs)
        while True:
            if again:
                committed = self._open_again(deadline, transaction.marker)
                if committed is not None:
                    self.changelog_next = committed
                    return committed
            again = True
            futures: list[Any] = []
            self._attempted = time.monotonic()
            try:
                self.changelog_next = self._attempt(outputs, transaction, futures)
                return self.changelog_next
            except CommitFailedError as error:
                raise OwnershipLostError(
                    "the group went on without this worker: it was silent for too long."
                ) from error
            except (ProducerFencedError, InvalidProducerEpochError, FencedInstanceIdError) as error:
                raise FencedError(
                    f"another process owns group `{self.settings.group}` on {self.settings.bootstrap_servers}, or this "
                    "one was silent for too long. What it did not commit, the owner answers."
                ) from error
            except KafkaError as error:
                shorter = self._shortened(outputs, futures)
                if self._closed or (shorter == outputs and (_refuses(error) or time.monotonic() > deadline)):
                    raise silent(self.settings, error) from error
                log.warning("transaction tried again", cause=type(error).__name__, sequence=transaction.marker.sequence)
                outputs = shorter
            finally:
                self._attempted = None

    def _attempt(self, outputs: Sequence[Output], transaction: Transaction, futures: list[Any]) -> int:
        from kafka.structs import OffsetAndMetadata

        producer, settings = self._producer, self.settings
        producer.begin_transaction()
        for o in outputs:
            futures.append(producer.send(o.topic, value=o.value, key=o.key, headers=o.headers))
        marker = transaction.marker
        written = producer.send(settings.changelog, value=marker.encode(), partition=0)
        offsets = {tp: OffsetAndMetadata(o, str(marker.sequence), -1) for tp, o in transaction.offsets.items()}
        if offsets:
            producer.send_offsets_to_transaction(offsets, transaction.member)
        producer.commit_transaction()
        return int(written.get(0).offset) + 1

    @staticmethod
    def _shortened(outputs: list[Output], futures: list[Any]) -> list[Output]:
        """Dead letters that were too large, without their ends: the whole of them stays at its source."""
        from kafka.errors import MessageSizeTooLargeError

        shorter = list(outputs)
        for i, future in enumerate(futures):
            output = outputs[i]
            if isinstance(future.exception, MessageSizeTooLargeError) and len(output.value) > SHORTENED:
                headers = [*output.headers, ("shortened_from", str(len(output.value)).encode())]
                shorter[i] = output._replace(value=output.value[:SHORTENED], headers=headers)
        return shorter

    def _open(self) -> Any:
        """A producer that owns the group's transactional id; ends what the owner before left open."""
        from kafka import KafkaProducer

        settings = self.settings
        outage_ms = int(settings.outage_seconds * 1000)
        producer = connect(
            KafkaProducer,
            settings,
            transactional_id=f"{settings.group}-{settings.identity}",
            # others wait for the open transaction of a worker that is dead; a sole owner's successor ends it
            transaction_timeout_ms=outage_ms if settings.worker is None else min(outage_ms, 2 * SESSION_MS),
            acks="all",
            linger_ms=0,  # a commit flushes
            retry_backoff_ms=settings.retry_backoff_ms,
            max_request_size=1 << 26,  # what is too large, the broker says
            max_block_ms=outage_ms,
            delivery_timeout_ms=outage_ms,
            request_timeout_ms=min(30_000, outage_ms // 2),  # must be shorter than the delivery
        )
        producer.init_transactions()
        return producer

    def _open_again(self, deadline: float, marker: Marker) -> int | None:
        """A new client; then where the changelog goes on if the transaction had been committed after all."""
        from kafka.errors import KafkaError

        self._abandon(0.0)
        while True:
            try:
                self._producer = self._open()
                name = (marker.worker, marker.sequence)
                done = [m for m in read_changelog(self.settings, self.changelog_next) if (m.worker, m.sequence) == name]
                return done[0].next_offset if done else None
            except (KafkaError, StreamError) as error:
                if self._closed or time.monotonic() > deadline:
                    raise silent(self.settings, error) from error
                time.sleep(0.2)

    def _abandon(self, seconds: float) -> None:
        from kafka.errors import KafkaError

        with suppress(KafkaError):  # it says so when something was not sent, which the next owner finds out anyway
            self._producer.close(timeout=seconds)


def silent(settings: StreamSettings, error: BaseException | None) -> StreamError:
    cause = type(error).__name__ if error is not None else "no answer to a commit"
    return StreamError(
        f"{settings.bootstrap_servers} stopped answering or refuses ({cause}, waited up to "
        f"{settings.outage_seconds:g} s). What was not committed is answered after the restart."
    )


def _refuses(error: BaseException) -> bool:
    """Whether waiting would not help."""
    from kafka.errors import IllegalStateError, UnsupportedVersionError

    return "Authorization" in type(error).__name__ or isinstance(error, IllegalStateError | UnsupportedVersionError)
