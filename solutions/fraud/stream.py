"""The scoring service, Kafka to Kafka, exactly once.

Decisions, dead letters, consumed offsets and a marker of the order become visible in one transaction (see `transactions`).
After a crash the newest good snapshot is loaded and the markers after it are followed (see `recovery`), so the state is the
one that had been committed, to the bit. What can not be processed goes to the dead-letter topic with its original bytes;
headers tell cause, topic, partition and offset. A repeated payment gets the answer that it had.

One process owns all partitions, or workers share them (see `ownership`) and follow each other's markers (see `follower`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Protocol

from core.logs import EventLog
from solutions.fraud import ownership
from solutions.fraud.answers import Answers, fingerprint
from solutions.fraud.changelog import Marker
from solutions.fraud.exposition import Histogram, ScoreDrift
from solutions.fraud.feed import publish as publish
from solutions.fraud.follower import Follower
from solutions.fraud.inbox import Inbox, Item
from solutions.fraud.messages import Label, Payment, Score, encode_score
from solutions.fraud.ownership import Ownership, SharedOwner, SoleOwner, all_partitions
from solutions.fraud.recovery import Recovered, Told, follow_to, recover, take_over
from solutions.fraud.snapshots import Arrays, Contents, Snapshots
from solutions.fraud.transactions import Output, Transaction, Transactions
from solutions.fraud.wire import StreamError as StreamError
from solutions.fraud.wire import StreamSettings as StreamSettings
from solutions.fraud.wire import connect, ensure_changelog, insist
from solutions.fraud.wire import lag as lag

log = EventLog(
    "vigil.fraud.stream",
    fields=(
        "cause",
        "topic",
        "partition",
        "offset",
        "group",
        "worker",
        "payments",
        "labels",
        "dead_letters",
        "events",
        "partitions",
        "seconds",
    ),
)
LABEL_SOURCES = ("chargeback", "analyst", "other")  # what is counted apart; any source is taken
QUIET_COMMIT_SECONDS = 1.0  # offsets of records that led to nothing


class ScoresPayments(Protocol):
    """What the service needs of a scorer (`scorer.Scorer`); the last three for snapshots only."""

    def score(self, payments: Sequence[Payment]) -> list[Score]: ...

    def observe(self, payments: Sequence[Payment], scores: Sequence[Score]) -> None: ...

    def apply_labels(self, labels: Sequence[Label]) -> list[str]: ...

    @property
    def kind(self) -> str: ...

    def contents(self) -> Contents: ...

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None: ...


@dataclass
class Served:
    """Running totals since the start. rebuilt: payments and labels that only rebuilt the state; followed: that other
    workers answered."""

    payments: int = 0
    labels: int = 0
    dead_letters: int = 0
    repeated: int = 0
    rebuilt: int = 0
    followed: int = 0
    decisions: dict[str, int] = field(default_factory=lambda: {"allow": 0, "step_up": 0, "block": 0})
    labels_by_source: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABEL_SOURCES, 0))


class Service:
    """Consumes, scores, commits. `step` does one poll; `run` repeats it until told to stop; `settle` commits what is open."""

    def __init__(self, settings: StreamSettings, scorer: ScoresPayments) -> None:
        from kafka import KafkaConsumer

        self.settings, self.scorer, self.served = settings, scorer, Served()
        self.consumer = connect(
            KafkaConsumer,
            settings,
            group_id=settings.group,
            group_instance_id=settings.worker,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=settings.max_records,
            fetch_max_wait_ms=settings.max_wait_ms,
            metadata_max_age_ms=int(ownership.NEW_PARTITIONS_SECONDS * 1000),
            session_timeout_ms=ownership.SESSION_MS,
            heartbeat_interval_ms=ownership.SESSION_MS // 4,
        )
        everything = all_partitions(self.consumer, settings)
        ensure_changelog(settings)
        self.transactions = Transactions(settings)  # from here on, nobody else commits as this one
        self.snapshots = (
            Snapshots(settings.snapshots, keep=settings.snapshots_kept, worker=settings.identity)
            if settings.snapshots
            else None
        )
        self._answers = Answers(settings.remembered)
        self._inbox = Inbox(self.consumer, settings)
        self._committed = dict.fromkeys(everything, 0)  # by this process, or before it
        self._unknown: list[tuple[float, Item]] = []  # labels whose payment may still come
        self._outbox: list[Output] = []
        self._since: float | None = None  # when the oldest of what is not in a transaction yet was done
        self._reads: list[float] = []  # when the payments of the outbox were read
        self._in_flight: list[float] = []
        self.latency, self.drift = Histogram(), ScoreDrift()
        self._failed = False
        self._backlog = False  # more comes than a small batch
        began = time.monotonic()
        self._state: Recovered = recover(settings, scorer, self._answers, self.snapshots)
        self.transactions.resume_after(self._state.changelog_next)
        self._marker = self._next_marker()
        self._snapshot_at, self._snapshot_offset = time.monotonic(), self._state.snapshot
        self._changed_since_snapshot = self._state.events > 0
        self._quiet_at = time.monotonic()
        self._rebuilding = False
        self.served.rebuilt = self._state.events
        self._follower: Follower | None = None
        self._ownership: Ownership
        if settings.worker is None:
            self._ownership = SoleOwner(self.consumer, settings)
        else:
            self._follower = Follower(settings, self._state, self._follow)
            self._ownership = SharedOwner(self.consumer, settings, self._before_giving_up)
        self._look_for_changes()
        if self._state.sequences and not self._rebuilding:
            self._say_rebuilt(time.monotonic() - began)

    def _next_marker(self) -> Marker:
        name = self.settings.identity
        return Marker(name, self._state.sequences.get(name, 0) + 1)

    def _say_rebuilt(self, seconds: float) -> None:
        log.info("state rebuilt", events=self.served.rebuilt, group=self.settings.group, seconds=round(seconds, 3))

    def _look_for_changes(self) -> None:
        change = self._ownership.change()
        if change is None:
            return
        committed = {tp: insist(self.settings, partial(self.consumer.committed, tp)) or 0 for tp in change.gained}
        if self._follower is not None:
            self._catch_up(self._follower, committed)
        for tp, offset in committed.items():
            start = self._state.positions.get((tp.topic, tp.partition))
            answered = max(offset, start or 0)
            self._committed[tp] = answered
            self._rebuilding |= offset > (start or 0)
            self._inbox.own(tp, start, answered)
        if self.settings.worker is not None:
            log.info("partitions taken over", worker=self.settings.worker, partitions=len(committed))

    def _catch_up(self, follower: Follower, committed: dict[Any, int]) -> None:
        """The partitions were given out anew: follow what their owners before have committed, and then all other owners."""
        assert not self._inbox.owned
        places = [(tp.topic, tp.partition) for tp in all_partitions(self.consumer, self.settings)]
        mine = {(tp.topic, tp.partition): offset for tp, offset in committed.items()}
        follower.watch({place: self._state.positions.get(place, 0) for place in places})
        follower.catch_up(mine)
        follower.watch({place: self._state.positions.get(place, 0) for place in places if place not in mine})

    def _before_giving_up(self) -> None:
        """Commit all that was done, in the consumer's thread while `poll` waits, and begin nothing more."""
        if not self._failed:
            self.settle()
        self._inbox.give_up()
        self._unknown = []  # they are not committed: whoever owns them reads them again

    def _follow(self, told: Sequence[Told]) -> None:
        take_over(self.scorer, self._answers, told)
        self.served.followed += len(told)
        self._changed_since_snapshot = True

    def step(self) -> int:
        """One poll and one batch; returns the number of records that were dealt with."""
        try:
            return self._step()
        except BaseException:
            self._failed = True
            raise

    def _step(self) -> int:
        # without a backlog, waiting costs no time of the processor and asking does; records gather meanwhile
        self._collect(0.0 if self._backlog else self.settings.max_wait_ms / 1000.0)
        bad = self._inbox.poll(self._wait_ms(), self._state.settled)
        self._look_for_changes()
        for record, cause, answered in bad:
            self._dead_letter(record, cause, answered)
        if self._follower is not None:
            self._follower.step()
        batch = self._inbox.take()
        self._backlog = len(batch) >= self.settings.max_records // 2
        for is_label, items in groupby(batch, key=lambda item: isinstance(item.event, Label)):
            if is_label:
                self._apply(list(items))
            else:
                self._score(list(items))
        late = self._retry_unknown(any(isinstance(item.event, Payment) for item in batch))
        self._commit()
        if self._rebuilding and self._inbox.answered_all():
            self._rebuilding = False
            self._say_rebuilt(0.0)
        self._snapshot()
        return len(bad) + len(batch) + late

    def _wait_ms(self) -> int:
        """How long the next poll may wait for records."""
        if self._inbox and not self._rebuilding:
            return 0
        if self._since is None:
            return self.settings.max_wait_ms
        if self.transactions.busy:
            return 1
        left = self._since + self.settings.commit_ms / 1000.0 - time.monotonic()
        return max(0, min(int(left * 1000.0), self.settings.max_wait_ms))

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
            self._marker.answer(answer.score if new else None)
            if item.answered:
                self.served.rebuilt += 1
                continue
            assert isinstance(item.event, Payment)
            score = answer.to(item.event)
            self.served.payments += 1
            self.served.repeated += not new
            self.served.decisions[score.decision] += 1
            self.drift.observe(score.probability)
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
                assert isinstance(item.event, Label)
                self.served.labels += 1
                source = item.event.source if item.event.source in LABEL_SOURCES else "other"
                self.served.labels_by_source[source] += 1

    def _retry_unknown(self, new_payments: bool) -> int:
        """Try waiting labels again after new payments; give up those that waited too long. Returns how many."""
        if self._unknown and (new_payments or self._follower is not None):
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
            self._collect(None)
        if full or self._since is None or now - self._since >= self.settings.commit_ms / 1000.0:
            self._begin(self._news())

    def _news(self) -> dict[Any, int]:
        """Offsets to commit: up to the oldest record of each partition that still waits."""
        done = self._inbox.heads()
        for _, item in self._unknown:
            tp = next(tp for tp in done if tp.topic == item.record.topic and tp.partition == item.record.partition)
            done[tp] = min(done[tp], item.record.offset)
        return {
            tp: offset for tp, offset in done.items() if offset != self._state.positions.get((tp.topic, tp.partition))
        }

    def _begin(self, news: dict[Any, int]) -> None:
        self._quiet_at = time.monotonic()
        marker = self._marker
        self._state.sequences[marker.worker] = marker.sequence
        self._marker = self._next_marker()
        outbox, self._outbox = self._outbox, []
        self._in_flight, self._reads = self._reads, []
        self._since = None
        self._changed_since_snapshot = True
        for tp, offset in news.items():
            place = (tp.topic, tp.partition)
            marker.positions[place] = self._state.positions[place] = offset
            self._committed[tp] = max(self._committed[tp], offset)  # a state that is rebuilt takes nothing back
            self._state.forget_below(place, offset)
        offsets = {tp: self._committed[tp] for tp in news}
        self.transactions.begin(Transaction(outbox, marker, offsets, self._ownership.member()))

    def _collect(self, seconds: float | None) -> None:
        """See whether the running transaction is done, or wait for it; None: for as long as it takes."""
        if self.transactions.busy:
            done = self.transactions.finished(seconds)
            if done is not None:
                if self._follower is None:
                    self._state.changelog_next = done
                now = time.monotonic()
                for read in self._in_flight:
                    self.latency.observe(now - read)

    @property
    def snapshot_offset(self) -> int:
        """Place in the changelog of the newest snapshot that was begun; -1: none yet."""
        return self._snapshot_offset

    @property
    def lags(self) -> dict[tuple[str, int], int]:
        """Records on the broker that were not dealt with yet, by partition that is owned."""
        newest = self._inbox.highwater()
        return {(tp.topic, tp.partition): max(0, end - self._committed.get(tp, 0)) for tp, end in newest.items()}

    @property
    def shadow_differs(self) -> int:
        return int(getattr(self.scorer, "shadow_differs", 0))

    def change_scorer(self, change: Callable[[], None]) -> None:
        """Change the scorer's model between two transactions."""
        self.settle()
        change()
        self.drift.start_anew()

    def adopt(self, scorer: ScoresPayments, state: Recovered) -> bool:
        """Go on with a scorer that was rebuilt beside this one as far as `state`; the rest is followed now.

        False: it knows what this one does not know yet; ask again.
        """
        if any(self._state.sequences.get(worker, 0) < last for worker, last in state.sequences.items()):
            return False
        self.settle()
        follow_to(self.settings, scorer, state, self._state.sequences)
        self.scorer = scorer
        self._changed_since_snapshot = True
        self.drift.start_anew()
        return True

    def settle(self) -> None:
        """Commit everything that was done so far."""
        self._collect(None)
        while self._since is not None or self._news():
            self._begin(self._news())
            self._collect(None)

    def _snapshot(self) -> None:
        """Every so often: commit, then let a child write down what the state is at this moment."""
        if self.snapshots is None:
            return
        self.snapshots.finished()
        early = time.monotonic() - self._snapshot_at < self.settings.snapshot_seconds
        if early or self._rebuilding or self.snapshots.busy or not self._changed_since_snapshot:
            return
        self.settle()
        self.snapshots.begin(self._snapshot_begun(), self._contents)

    def _snapshot_begun(self) -> int:
        self._snapshot_at, self._snapshot_offset = time.monotonic(), self._state.changelog_next
        self._changed_since_snapshot = False
        return self._snapshot_offset

    def _contents(self) -> Contents:
        """What a snapshot holds; the state must be the committed one."""
        arrays, values = self.scorer.contents()
        own = {"kind": self.scorer.kind, "answers": self._answers.snapshot(), **self._state.to_json()}
        return arrays, {"scorer": values, **own}

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
                if now or not (self._inbox.told() or time.monotonic() - began > self.settings.connect_seconds):
                    heard = time.monotonic()
                if progress is not None:
                    progress(self.served)
                if max_records is not None and records >= max_records:
                    break
                if until_idle is not None and time.monotonic() - heard > until_idle:
                    break
            self.settle()
            if self.snapshots is not None and self._changed_since_snapshot:
                self.snapshots.take(self._snapshot_begun(), self._contents)
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
                self._ownership.leave()
        finally:
            self._failed = True  # what is done from here on is nobody's
            self.transactions.close()
            self.consumer.close()
            if self._follower is not None:
                self._follower.close()
            if self.snapshots is not None:
                self.snapshots.finished(wait=True)
