"""The scoring service, Kafka to Kafka, at least once: offsets are committed after everything they led to is acknowledged.

Order. One owner consumes all partitions (run one service per group: each is its own graph). A partition keeps the order in
which it arrived; between partitions and topics the earliest event time goes first, ties by partition (see `alignment`). So
how a stream is cut into batches changes no score, and a backlog is scored as the file would be replayed.

What can not be processed goes to the dead-letter topic with its original bytes; headers tell cause, topic, partition and
offset. A repeated payment gets the answer that it had. After a restart the state is rebuilt by reading the topics again from
their beginning, without answering what was answered.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from core.logs import EventLog
from solutions.fraud.alignment import Alignment
from solutions.fraud.feed import publish as publish
from solutions.fraud.messages import BadRecordError, Label, Payment, Score, encode_score, parse_label, parse_payment
from solutions.fraud.wire import StreamError as StreamError
from solutions.fraud.wire import StreamSettings as StreamSettings
from solutions.fraud.wire import connect, partitions_of
from solutions.fraud.wire import lag as lag

log = EventLog(
    "vigil.fraud.stream",
    fields=("cause", "topic", "partition", "offset", "group", "payments", "labels", "dead_letters", "events"),
)
DAY = 86_400.0
MOST_WAITING = 4_096  # parsed records per partition; a partition that runs that far ahead of the others is paused
SHORTENED = 65_536  # bytes kept of a record that is too large for the dead-letter topic
NEW_PARTITIONS_SECONDS = 30.0


class ScoresPayments(Protocol):
    """What the service needs of a scorer (`scorer.Scorer`)."""

    def score(self, payments: Sequence[Payment]) -> list[Score]: ...

    def apply_labels(self, labels: Sequence[Label]) -> list[str]: ...


@dataclass
class Served:
    """Running totals since the start. rebuilt: payments and labels that only rebuilt the state."""

    payments: int = 0
    labels: int = 0
    dead_letters: int = 0
    repeated: int = 0
    rebuilt: int = 0
    decisions: dict[str, int] = field(default_factory=lambda: {"allow": 0, "step_up": 0, "block": 0})


class Item(NamedTuple):
    """A record, what it says, and whether an earlier run has answered it already."""

    record: Any
    event: Payment | Label
    answered: bool


class Output(NamedTuple):
    topic: str
    value: bytes
    key: bytes | None
    headers: list[tuple[str, bytes]]


class Service:
    """Consumes, scores, produces, commits. `step` does one poll; `run` repeats it until told to stop."""

    def __init__(self, settings: StreamSettings, scorer: ScoresPayments) -> None:
        from kafka import KafkaConsumer

        self.settings, self.scorer, self.served = settings, scorer, Served()
        self.consumer = connect(
            KafkaConsumer,
            settings,
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=settings.max_records,
            fetch_max_wait_ms=settings.max_wait_ms,
            metadata_max_age_ms=int(NEW_PARTITIONS_SECONDS * 1000),
            session_timeout_ms=6000,
        )
        self.producer = self._new_producer()
        for topic in (settings.scores, settings.dead_letters):
            partitions_of(self.consumer, topic, settings)
        self._alignment: Alignment[Any, Item] = Alignment([])
        self._answered: dict[Any, int] = {}  # offsets below were answered by an earlier run
        self._committed: dict[Any, int] = {}
        self._heard: dict[Any, float] = {}  # when a partition last gave something
        self._paused: set[Any] = set()
        self._unknown: list[tuple[float, Item]] = []  # labels whose payment may still come
        self._answers: OrderedDict[str, tuple[Payment, Score]] = OrderedDict()
        self._outbox: list[Output] = []
        self._rebuilding = False
        self._look_for_partitions()

    def _new_producer(self) -> Any:
        from kafka import KafkaProducer

        outage_ms = int(self.settings.outage_seconds * 1000)
        return connect(
            KafkaProducer,
            self.settings,
            acks="all",
            linger_ms=2,
            max_request_size=1 << 26,  # what is too large, the broker says
            max_block_ms=outage_ms,
            delivery_timeout_ms=outage_ms,
            request_timeout_ms=min(30_000, outage_ms // 2),  # must be shorter than the delivery
        )

    def _look_for_partitions(self) -> None:
        """Take over every partition that is not owned yet: at the start all of them, later those that were added."""
        self._looked = time.monotonic()
        topics = (self.settings.transactions, self.settings.labels)  # at equal times payments go first
        found = [tp for topic in topics for tp in partitions_of(self.consumer, topic, self.settings)]
        new = [tp for tp in found if tp not in self._committed]
        if not new:
            return
        self.consumer.assign([*self._committed, *new])
        for tp in new:
            committed = self._insist(partial(self.consumer.committed, tp)) or 0
            self._answered[tp] = self._committed[tp] = committed
            self._heard[tp] = time.monotonic()
            self._alignment.add(tp)
            self._rebuilding |= committed > 0
        self.consumer.seek_to_beginning(*new)

    def step(self) -> int:
        """One poll and one batch; returns the number of records that were dealt with."""
        bad = self._poll()
        batch = self._alignment.take(self.settings.max_records, self._caught_up)
        for is_label, items in groupby(batch, key=lambda item: isinstance(item.event, Label)):
            if is_label:
                self._apply(list(items))
            else:
                self._score(list(items))
        late = self._retry_unknown(any(isinstance(item.event, Payment) for item in batch))
        self._deliver()
        self._commit()
        if self._rebuilding and not self._alignment and all(self._answered[tp] <= p for tp, p in self._positions()):
            self._rebuilding = False
            log.info("state rebuilt", events=self.served.rebuilt, group=self.settings.group)
        if time.monotonic() - self._looked > NEW_PARTITIONS_SECONDS:
            self._look_for_partitions()
        return bad + len(batch) + late

    def _poll(self) -> int:
        """Read and parse into the alignment; returns how many records could not be read."""
        wait = 0 if self._alignment and not self._rebuilding else self.settings.max_wait_ms
        polled = self._insist(lambda: self.consumer.poll(timeout_ms=wait, max_records=self.settings.max_records))
        bad = 0
        for tp, records in polled.items():
            self._heard[tp] = time.monotonic()
            for record in records:
                try:
                    event = self._parse(record)
                except BadRecordError as cause:
                    bad += 1
                    self._dead_letter(record, str(cause), record.offset < self._answered[tp])
                    continue
                when = event.event_time if isinstance(event, Payment) else event.label_time
                self._alignment.push(tp, when, Item(record, event, record.offset < self._answered[tp]))
            if self._alignment.size(tp) > MOST_WAITING:
                self.consumer.pause(tp)
                self._paused.add(tp)
        for tp in [tp for tp in self._paused if self._alignment.size(tp) < MOST_WAITING // 2]:
            self.consumer.resume(tp)
            self._paused.remove(tp)
        return bad

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

    def _positions(self) -> list[tuple[Any, int]]:
        return [(tp, self.consumer.position(tp) or 0) for tp in self._committed]

    def _caught_up(self, tp: Any) -> bool:
        """Whether a partition with nothing at hand has nothing on the broker either, or has been silent for long."""
        newest = self.consumer.highwater(tp)
        if newest is not None and (self.consumer.position(tp) or 0) >= newest:
            return True
        return time.monotonic() - self._heard[tp] > self.settings.patience_seconds

    def _score(self, items: list[Item]) -> None:
        fresh: dict[str, Payment] = {}
        for item in items:
            assert isinstance(item.event, Payment)
            if item.event.transaction_id not in self._answers:
                fresh.setdefault(item.event.transaction_id, item.event)
        for payment, score in zip(fresh.values(), self.scorer.score(list(fresh.values())), strict=True):
            self._answers[payment.transaction_id] = (payment, score)
        for item in items:
            assert isinstance(item.event, Payment)
            payment, score = self._answers[item.event.transaction_id]
            if payment != item.event:
                self._dead_letter(item.record, "`transaction_id` was used before by another payment", item.answered)
            elif item.answered:
                self.served.rebuilt += 1
            else:
                self.served.payments += 1
                self.served.repeated += payment is not item.event
                self.served.decisions[score.decision] += 1
                value = encode_score(score, item.record.partition, item.record.offset)
                self._outbox.append(Output(self.settings.scores, value, item.record.key, []))
        while len(self._answers) > self.settings.remembered:
            self._answers.popitem(last=False)

    def _apply(self, items: list[Item], since: float | None = None) -> None:
        """Apply labels; those of unknown payments wait a little: their payment may be on its way."""
        labels = [item.event for item in items if isinstance(item.event, Label)]
        outcomes = self.scorer.apply_labels(labels)
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome == "unknown_payment":
                self._unknown.append((time.monotonic() if since is None else since, item))
            elif item.answered:
                self.served.rebuilt += 1
            else:
                self.served.labels += 1

    def _retry_unknown(self, new_payments: bool) -> int:
        """Try waiting labels again after new payments; give up those that waited too long. Returns how many."""
        if new_payments:
            waiting, self._unknown = self._unknown, []
            for since, items in groupby(waiting, key=lambda entry: entry[0]):
                self._apply([item for _, item in items], since)
        given_up = time.monotonic() - self.settings.patience_seconds
        late = [item for since, item in self._unknown if since <= given_up]
        self._unknown = [entry for entry in self._unknown if entry[0] > given_up]
        for item in late:
            cause = "label for a payment that is not known: never seen here, or forgotten by now"
            self._dead_letter(item.record, cause, item.answered)
        return len(late)

    def _dead_letter(self, record: Any, cause: str, answered: bool) -> None:
        if answered:
            return
        headers = [
            ("cause", cause.encode()),
            ("topic", record.topic.encode()),
            ("partition", str(record.partition).encode()),
            ("offset", str(record.offset).encode()),
        ]
        if record.value is None:  # an empty value, because a record needs a key or a value
            headers.append(("null_value", b"true"))
        self._outbox.append(Output(self.settings.dead_letters, record.value or b"", record.key, headers))
        self.served.dead_letters += 1
        log.warning("dead letter", topic=record.topic, partition=record.partition, offset=record.offset, cause=cause)

    def _deliver(self) -> None:
        """Send what is in the outbox and see it acknowledged.

        Raises:
            StreamError: the broker stopped answering, or refuses. Nothing is committed: the next run answers again.
        """
        from kafka.errors import KafkaError, MessageSizeTooLargeError

        while self._outbox:
            outbox, self._outbox = self._outbox, []
            try:
                futures = [self.producer.send(o.topic, value=o.value, key=o.key, headers=o.headers) for o in outbox]
                self.producer.flush(timeout=self.settings.outage_seconds + 5.0)
            except KafkaError as error:
                raise self._silent(error) from error
            # a flush alone does not tell of failures
            failed = [(o, f.exception) for o, f in zip(outbox, futures, strict=True) if f.failed()]
            if not failed:
                return
            self._outbox = [self._shortened(output) for output, _ in failed]
            other = [error for _, error in failed if not isinstance(error, MessageSizeTooLargeError)]
            if other or self._outbox == [output for output, _ in failed]:
                raise self._silent(other[0] if other else failed[0][1], failed[0][0].topic)
            self.producer.close(timeout=10)  # an idempotent producer gives up everything with the record refused
            self.producer = self._new_producer()

    @staticmethod
    def _shortened(output: Output) -> Output:
        """A dead letter that is too large, without its end: the whole of it stays at its source."""
        size = len(output.value)
        if size <= SHORTENED:
            return output
        headers = [*output.headers, ("shortened_from", str(size).encode())]
        return output._replace(value=output.value[:SHORTENED], headers=headers)

    def _insist(self, call: Callable[[], Any]) -> Any:
        """Ask again while the broker is away, for a bounded time; only for calls that may be made twice.

        Raises:
            StreamError: it stayed away, or refuses.
        """
        from kafka.errors import KafkaError, RetriableError

        deadline = time.monotonic() + self.settings.outage_seconds
        while True:
            try:
                return call()
            except KafkaError as error:
                if not isinstance(error, RetriableError) or time.monotonic() > deadline:
                    raise self._silent(error) from error
                time.sleep(0.1)

    def _silent(self, error: BaseException, topic: str | None = None) -> StreamError:
        where = f"topic `{topic}` on {self.settings.bootstrap_servers}" if topic else self.settings.bootstrap_servers
        return StreamError(
            f"{where} stopped answering or refuses ({type(error).__name__}, waited up to "
            f"{self.settings.outage_seconds:g} s). What was not acknowledged is answered again after the restart."
        )

    def _commit(self) -> None:
        """Commit up to the oldest record of each partition that still waits."""
        from kafka.structs import OffsetAndMetadata

        done: dict[Any, int] = dict(self._positions())
        for tp in done:
            head = self._alignment.first(tp)
            if head is not None:
                done[tp] = head.record.offset
        for _, item in self._unknown:
            tp = next(tp for tp in done if tp.topic == item.record.topic and tp.partition == item.record.partition)
            done[tp] = min(done[tp], item.record.offset)
        news = {tp: offset for tp, offset in done.items() if offset > self._committed[tp]}
        if not news:
            return
        offsets = {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in news.items()}
        self._insist(lambda: self.consumer.commit(offsets, timeout_ms=5000))
        self._committed.update(news)

    def run(
        self,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Served], None] | None = None,
        *,
        until_idle: float | None = None,
        max_records: int | None = None,
    ) -> Served:
        """Serve until `stop()`; a poll that has begun is finished, answered and committed first.

        Args:
            until_idle: also stop after so many seconds without a record.
            max_records: also stop after at least so many records.
        """
        records, heard = 0, time.monotonic()
        try:
            while not stop():
                now = self.step()
                records, heard = records + now, time.monotonic() if now else heard
                if progress is not None:
                    progress(self.served)
                if max_records is not None and records >= max_records:
                    break
                if until_idle is not None and time.monotonic() - heard > until_idle:
                    break
        finally:
            self.close()
        log.info(
            "stopped", payments=self.served.payments, labels=self.served.labels, dead_letters=self.served.dead_letters
        )
        return self.served

    def close(self) -> None:
        self.producer.close(timeout=10)
        self.consumer.close()
