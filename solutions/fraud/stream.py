"""The scoring service, Kafka to Kafka, exactly once.

Order. One owner consumes all partitions (run one service per group: each is its own graph). A partition keeps the order in
which it arrived; between partitions and topics the earliest event time goes first, ties by partition (see `alignment`). So
how a stream is cut into batches changes no score, and a backlog is scored as the file would be replayed.

Decisions, dead letters, consumed offsets and a marker of the order become visible in one transaction (see `transactions`).
After a crash the newest good snapshot is loaded and the markers after it are followed (see `recovery`), so the state is the
one that had been committed, to the bit. What can not be processed goes to the dead-letter topic with its original bytes;
headers tell cause, topic, partition and offset. A repeated payment gets the answer that it had.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from core.logs import EventLog
from solutions.fraud.alignment import Alignment
from solutions.fraud.answers import Answers, fingerprint
from solutions.fraud.changelog import Marker
from solutions.fraud.exposition import Histogram
from solutions.fraud.feed import publish as publish
from solutions.fraud.messages import BadRecordError, Label, Payment, Score, encode_score, parse_label, parse_payment
from solutions.fraud.recovery import Recovered, recover
from solutions.fraud.snapshots import Arrays, Contents, Snapshots
from solutions.fraud.transactions import Output, Transaction, Transactions
from solutions.fraud.wire import StreamError as StreamError
from solutions.fraud.wire import StreamSettings as StreamSettings
from solutions.fraud.wire import connect, ensure_changelog, partitions_of
from solutions.fraud.wire import lag as lag

log = EventLog(
    "vigil.fraud.stream",
    fields=(
        "cause",
        "topic",
        "partition",
        "offset",
        "group",
        "payments",
        "labels",
        "dead_letters",
        "events",
        "seconds",
    ),
)
DAY = 86_400.0
MOST_WAITING = 4_096  # parsed records per partition; a partition that runs that far ahead of the others is paused
NEW_PARTITIONS_SECONDS = 30.0
QUIET_COMMIT_SECONDS = 1.0  # offsets of records that led to nothing


class ScoresPayments(Protocol):
    """What the service needs of a scorer (`scorer.Scorer`); the last three for snapshots only."""

    def score(self, payments: Sequence[Payment]) -> list[Score]: ...

    def apply_labels(self, labels: Sequence[Label]) -> list[str]: ...

    @property
    def kind(self) -> str: ...

    def contents(self) -> Contents: ...

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None: ...


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
    read: float  # monotonic seconds


class Service:
    """Consumes, scores, commits. `step` does one poll; `run` repeats it until told to stop; `settle` commits what is open."""

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
        for topic in settings.topics():
            partitions_of(self.consumer, topic, settings)
        ensure_changelog(settings)
        self.transactions = Transactions(settings)  # from here on, nobody else commits
        self.snapshots = Snapshots(settings.snapshots, keep=settings.snapshots_kept) if settings.snapshots else None
        self._answers = Answers(settings.remembered)
        self._alignment: Alignment[Any, Item] = Alignment([])
        self._answered: dict[Any, int] = {}  # offsets below were answered by an earlier run
        self._committed: dict[Any, int] = {}
        self._heard: dict[Any, float] = {}  # when a partition last gave something
        self._paused: set[Any] = set()
        self._unknown: list[tuple[float, Item]] = []  # labels whose payment may still come
        self._outbox: list[Output] = []
        self._since: float | None = None  # when the oldest of what is not in a transaction yet was done
        self._reads: list[float] = []  # when the payments of the outbox were read
        self._in_flight: list[float] = []
        self.latency = Histogram()
        self._failed = False
        began = time.monotonic()
        self._state: Recovered = recover(settings, scorer, self._answers, self.snapshots)
        self.transactions.resume_after(self._state.changelog_next)
        self._marker = Marker(self._state.sequence + 1)
        self._snapshot_at, self._snapshot_sequence = time.monotonic(), self._state.snapshot_sequence
        self._quiet_at = time.monotonic()
        self._rebuilding = False
        self._look_for_partitions()
        self.served.rebuilt = self._state.events
        if self._state.sequence and not self._rebuilding:
            self._say_rebuilt(time.monotonic() - began)

    def _say_rebuilt(self, seconds: float) -> None:
        log.info("state rebuilt", events=self.served.rebuilt, group=self.settings.group, seconds=round(seconds, 3))

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
            start = self._state.positions.get((tp.topic, tp.partition))
            committed = self._insist(partial(self.consumer.committed, tp)) or 0
            self._answered[tp] = self._committed[tp] = max(committed, start or 0)
            self._heard[tp] = time.monotonic()
            self._alignment.add(tp)
            self._rebuilding |= committed > (start or 0)
            if start is None:
                self.consumer.seek_to_beginning(tp)
            else:
                self.consumer.seek(tp, start)

    def step(self) -> int:
        """One poll and one batch; returns the number of records that were dealt with."""
        try:
            return self._step()
        except BaseException:
            self._failed = True
            raise

    def _step(self) -> int:
        self._collect(wait=False)
        bad = self._poll()
        batch = self._alignment.take(self.settings.max_records, self._caught_up)
        for is_label, items in groupby(batch, key=lambda item: isinstance(item.event, Label)):
            if is_label:
                self._apply(list(items))
            else:
                self._score(list(items))
        late = self._retry_unknown(any(isinstance(item.event, Payment) for item in batch))
        self._commit()
        if self._rebuilding and not self._alignment and all(self._answered[tp] <= p for tp, p in self._positions()):
            self._rebuilding = False
            self._say_rebuilt(0.0)
        self._snapshot()
        if time.monotonic() - self._looked > NEW_PARTITIONS_SECONDS:
            self._look_for_partitions()
        return bad + len(batch) + late

    def _wait_ms(self) -> int:
        """How long the next poll may wait for records."""
        if self._alignment and not self._rebuilding:
            return 0
        if self._since is None:
            return self.settings.max_wait_ms
        if self.transactions.busy:
            return 1
        left = self._since + self.settings.commit_ms / 1000.0 - time.monotonic()
        return max(0, min(int(left * 1000.0), self.settings.max_wait_ms))

    def _poll(self) -> int:
        """Read and parse into the alignment; returns how many records could not be read."""
        wait = self._wait_ms()
        polled = self._insist(lambda: self.consumer.poll(timeout_ms=wait, max_records=self.settings.max_records))
        bad = 0
        for tp, records in polled.items():
            self._heard[tp] = time.monotonic()
            settled = self._state.settled.get((tp.topic, tp.partition), ())
            for record in records:
                if record.offset in settled:
                    continue
                try:
                    event = self._parse(record)
                except BadRecordError as cause:
                    bad += 1
                    self._dead_letter(record, str(cause), record.offset < self._answered[tp])
                    continue
                when = event.event_time if isinstance(event, Payment) else event.label_time
                self._alignment.push(tp, when, Item(record, event, record.offset < self._answered[tp], self._heard[tp]))
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

    def _told(self) -> bool:
        """Whether the broker has said how long each partition is."""
        return all(self.consumer.highwater(tp) is not None for tp in self._committed)

    def _score(self, items: list[Item]) -> None:
        fresh, claimed = [], []
        for item in items:
            assert isinstance(item.event, Payment)
            answer, new = self._answers.claim(item.event)
            if not new and answer.payment != fingerprint(item.event):
                self._dead_letter(item.record, "`transaction_id` was used before by another payment", item.answered)
                continue
            self._settled(item.record, applied=True)
            claimed.append((item, answer, new))
            if new:
                fresh.append((item.event, answer))
        scores = self.scorer.score([payment for payment, _ in fresh]) if fresh else []
        for (_, answer), score in zip(fresh, scores, strict=True):
            answer.score = score
        for item, answer, new in claimed:
            if item.answered:
                self.served.rebuilt += 1
                continue
            assert isinstance(item.event, Payment)
            score = answer.to(item.event)
            self.served.payments += 1
            self.served.repeated += not new
            self.served.decisions[score.decision] += 1
            value = encode_score(score, item.record.partition, item.record.offset)
            self._outbox.append(Output(self.settings.scores, value, item.record.key, []))
            self._reads.append(item.read)

    def _settled(self, record: Any, *, applied: bool) -> None:
        if self._since is None:
            self._since = time.monotonic()
        runs = self._marker.applied if applied else self._marker.refused
        runs.add(record.topic, record.partition, record.offset)
        self._state.settled.setdefault((record.topic, record.partition), set()).add(record.offset)

    def _apply(self, items: list[Item], since: float | None = None) -> None:
        """Apply labels; those of unknown payments wait a little: their payment may be on its way."""
        labels = [item.event for item in items if isinstance(item.event, Label)]
        outcomes = self.scorer.apply_labels(labels)
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome == "unknown_payment":
                self._unknown.append((time.monotonic() if since is None else since, item))
                continue
            self._settled(item.record, applied=True)
            if item.answered:
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
        self._settled(record, applied=False)
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

    def _commit(self) -> None:
        """Begin a transaction if one is due; wait for the one before only when too much is waiting behind it."""
        now = time.monotonic()
        if self._since is None and (now - self._quiet_at < QUIET_COMMIT_SECONDS or not self._news()):
            return
        full = len(self._outbox) >= self.settings.max_records
        if self.transactions.busy:
            if not full:
                return
            self._collect(wait=True)
        if full or self._since is None or now - self._since >= self.settings.commit_ms / 1000.0:
            self._begin()

    def _news(self) -> dict[Any, int]:
        """Offsets to commit: up to the oldest record of each partition that still waits."""
        done: dict[Any, int] = dict(self._positions())
        for tp in done:
            head = self._alignment.first(tp)
            if head is not None:
                done[tp] = head.record.offset
        for _, item in self._unknown:
            tp = next(tp for tp in done if tp.topic == item.record.topic and tp.partition == item.record.partition)
            done[tp] = min(done[tp], item.record.offset)
        places = {tp: (tp.topic, tp.partition) for tp in done}
        return {tp: offset for tp, offset in done.items() if offset != self._state.positions.get(places[tp])}

    def _begin(self) -> None:
        self._quiet_at = time.monotonic()
        news = self._news()
        marker, self._marker = self._marker, Marker(self._marker.sequence + 1)
        outbox, self._outbox = self._outbox, []
        self._in_flight, self._reads = self._reads, []
        self._since = None
        for tp, offset in news.items():
            place = (tp.topic, tp.partition)
            marker.positions[place] = self._state.positions[place] = offset
            self._committed[tp] = max(self._committed[tp], offset)  # a state that is rebuilt takes nothing back
            self._state.forget_below(place, offset)
        offsets = {tp: self._committed[tp] for tp in news}
        self.transactions.begin(Transaction(outbox, marker, offsets))

    def _collect(self, *, wait: bool) -> None:
        """See whether the running transaction is done."""
        if self.transactions.busy:
            done = self.transactions.finished(None if wait else 0.0)
            if done is not None:
                self._state.changelog_next = done
                now = time.monotonic()
                for read in self._in_flight:
                    self.latency.observe(now - read)

    @property
    def snapshot_sequence(self) -> int:
        return self._snapshot_sequence

    @property
    def lags(self) -> dict[tuple[str, int], int]:
        """Records on the broker that were not dealt with yet, by partition."""
        newest = {tp: self.consumer.highwater(tp) for tp in tuple(self._committed)}
        return {
            (tp.topic, tp.partition): max(0, end - self._committed[tp]) for tp, end in newest.items() if end is not None
        }

    @property
    def shadow_differs(self) -> int:
        return int(getattr(self.scorer, "shadow_differs", 0))

    def change_scorer(self, change: Callable[[], None]) -> None:
        """Change the scorer's model between two transactions, with a snapshot of the state before it.

        So a restart does not score again with the new model what the old one has answered.
        """
        if self._since is not None:  # what was scored but is in no transaction yet counts as well
            self.settle()
        if self.snapshots is not None and self._marker.sequence - 1 > self._snapshot_sequence:
            self.snapshots.finished(wait=True)
            self._snapshot_now()
        change()

    def settle(self) -> None:
        """Commit everything that was done so far."""
        self._collect(wait=True)
        while self._since is not None or self._news():
            self._begin()
            self._collect(wait=True)

    def _snapshot(self) -> None:
        """Every so often: commit, then let a child write down what the state is at this moment."""
        if self.snapshots is None:
            return
        self.snapshots.finished()
        now = time.monotonic()
        idle = self._marker.sequence - 1 <= self._snapshot_sequence
        if self._rebuilding or self.snapshots.busy or idle or now - self._snapshot_at < self.settings.snapshot_seconds:
            return
        self._snapshot_now()

    def _snapshot_now(self) -> None:
        assert self.snapshots is not None
        self.settle()
        self._snapshot_at, self._snapshot_sequence = time.monotonic(), self._marker.sequence - 1
        self.snapshots.begin(self._snapshot_sequence, self._contents)

    def _contents(self) -> Contents:
        """What a snapshot holds; the state must be the committed one."""
        arrays, values = self.scorer.contents()
        own = {"kind": self.scorer.kind, "answers": self._answers.snapshot(), **self._state.to_json()}
        return arrays, {"scorer": values, **own}

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
                    raise StreamError(
                        f"{self.settings.bootstrap_servers} stopped answering or refuses ({type(error).__name__}, waited "
                        f"up to {self.settings.outage_seconds:g} s). What was not committed is answered after the restart."
                    ) from error
                time.sleep(0.1)

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
            until_idle: also stop after so many seconds without a record, counted once the broker has told of all partitions.
            max_records: also stop after at least so many records.
        """
        records = 0
        began = heard = time.monotonic()
        try:
            while not stop():
                now = self.step()
                records += now
                if now or not (self._told() or time.monotonic() - began > self.settings.connect_seconds):
                    heard = time.monotonic()
                if progress is not None:
                    progress(self.served)
                if max_records is not None and records >= max_records:
                    break
                if until_idle is not None and time.monotonic() - heard > until_idle:
                    break
            self.settle()
            if self.snapshots is not None and self._marker.sequence - 1 > self._snapshot_sequence:
                self.snapshots.take(self._marker.sequence - 1, self._contents)
        except BaseException:
            self._failed = True
            raise
        finally:
            self.close()
        log.info(
            "stopped", payments=self.served.payments, labels=self.served.labels, dead_letters=self.served.dead_letters
        )
        return self.served

    def close(self) -> None:
        """Commit what is open, unless something failed, and leave."""
        try:
            if not self._failed:
                self.settle()
        finally:
            self.transactions.close()
            self.consumer.close()
            if self.snapshots is not None:
                self.snapshots.finished(wait=True)
