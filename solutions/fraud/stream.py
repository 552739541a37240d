"""The scoring service, Kafka to Kafka, at least once: offsets are committed after everything they led to is acknowledged.

One owner consumes all partitions. Within a poll, labels come before payments and payments are ordered by (event time,
partition, offset). What can not be processed goes to the dead-letter topic with its original bytes and its cause.
On a restart the state is rebuilt from the topics, up to the committed offsets, without output.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from solutions.fraud.messages import (
    BadRecordError,
    Label,
    Payment,
    Score,
    encode_label,
    encode_payment,
    encode_score,
    parse_label,
    parse_payment,
)

log = logging.getLogger("vigil.fraud.stream")
CONNECT_SECONDS = 15.0


class StreamError(RuntimeError):
    """The stream can not be served: broker or topic is missing."""

    exit_code = 2


class ScoresPayments(Protocol):
    """What the service needs of a scorer (`scorer.Scorer`)."""

    def score(self, payments: Sequence[Payment]) -> list[Score]: ...

    def apply_labels(self, labels: Sequence[Label]) -> list[str]: ...


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Topics and batching. max_wait_ms: how long a payment may wait for company."""

    bootstrap_servers: str
    transactions: str = "transactions"
    labels: str = "fraud_labels"
    scores: str = "fraud_scores"
    dead_letters: str = "fraud_dead_letters"
    group: str = "vigil-fraud"
    max_records: int = 256
    max_wait_ms: int = 10
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_records < 1 or self.max_wait_ms < 1:
            raise ValueError(
                "`max_records` and `max_wait_ms` must be >= 1. "
                f"Received: max_records={self.max_records}, max_wait_ms={self.max_wait_ms}."
            )


@dataclass
class Served:
    """Running totals since the start."""

    payments: int = 0
    labels: int = 0
    dead_letters: int = 0
    decisions: dict[str, int] = field(default_factory=lambda: {"allow": 0, "step_up": 0, "block": 0})


def _client(make: Callable[..., Any], settings: StreamSettings, **options: Any) -> Any:
    """Build a client, retrying while the broker is down, for a bounded time."""
    from kafka.errors import KafkaError

    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return make(bootstrap_servers=settings.bootstrap_servers, **options)
        except KafkaError as error:
            if time.monotonic() > deadline:
                raise StreamError(
                    f"no Kafka broker answers at {settings.bootstrap_servers} ({type(error).__name__} for "
                    f"{CONNECT_SECONDS:.0f} s). Check the address (`--bootstrap-servers`) and that the broker runs."
                ) from error
            time.sleep(0.5)


def _partitions(consumer: Any, topic: str) -> list[Any]:
    from kafka import TopicPartition

    deadline = time.monotonic() + CONNECT_SECONDS
    while not (found := consumer.partitions_for_topic(topic)):
        if time.monotonic() > deadline:
            raise StreamError(f"topic `{topic}` does not exist on the broker. Create it, or name another by flag.")
        time.sleep(0.2)
    return [TopicPartition(topic, p) for p in sorted(found)]


class Service:
    """Consumes, scores, produces, commits. `step` does one poll; `run` repeats it until told to stop."""

    def __init__(self, settings: StreamSettings, scorer: ScoresPayments) -> None:
        from kafka import KafkaConsumer, KafkaProducer

        self.settings, self.scorer, self.served = settings, scorer, Served()
        self.consumer = _client(
            KafkaConsumer,
            settings,
            group_id=settings.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_poll_records=settings.max_records,
            fetch_max_wait_ms=settings.max_wait_ms,
            session_timeout_ms=6000,
        )
        self.producer = _client(KafkaProducer, settings, acks="all", linger_ms=2)
        assigned = _partitions(self.consumer, settings.transactions) + _partitions(self.consumer, settings.labels)
        for topic in (settings.scores, settings.dead_letters):
            _partitions(self.consumer, topic)
        self.consumer.assign(assigned)
        self._rebuild(assigned)

    def _rebuild(self, assigned: list[Any]) -> None:
        """Apply what was already answered before a restart, in order of time, without answering again."""
        committed = {tp: self.consumer.committed(tp) or 0 for tp in assigned}
        behind = {tp for tp, offset in committed.items() if offset > 0}
        if not behind:
            return
        self.consumer.seek_to_beginning(*behind)
        events: list[tuple[float, int, Payment | Label]] = []
        idle = 0
        while behind and idle < 100:
            polled = self.consumer.poll(timeout_ms=100, max_records=5000)
            idle = 0 if polled else idle + 1
            for records in polled.values():
                for record in records:
                    if record.offset < committed[self._of(record)]:
                        events.extend(self._parsed(record))
            behind = {tp for tp in behind if self.consumer.position(tp) < committed[tp]}
        for tp, offset in committed.items():
            self.consumer.seek(tp, offset)
        events.sort(key=lambda e: (e[0], e[1]))
        for _, _, event in events:
            if isinstance(event, Payment):
                self.scorer.score([event])
            else:
                self.scorer.apply_labels([event])
        log.info("state rebuilt from %d events", len(events))

    def _of(self, record: Any) -> Any:
        from kafka import TopicPartition

        return TopicPartition(record.topic, record.partition)

    def _parsed(self, record: Any) -> list[tuple[float, int, Payment | Label]]:
        try:
            if record.topic == self.settings.labels:
                label = parse_label(record.value)
                return [(label.label_time, 0, label)]
            payment = parse_payment(record.value, self.settings.columns)
            return [(payment.event_time, 1, payment)]
        except BadRecordError:
            return []  # was dead-lettered when it was first read

    def step(self) -> int:
        """One poll; returns the number of records that were dealt with."""
        polled = self.consumer.poll(timeout_ms=self.settings.max_wait_ms, max_records=self.settings.max_records)
        records = [record for part in polled.values() for record in part]
        if not records:
            return 0
        labels: list[tuple[Any, Label]] = []
        payments: list[tuple[Any, Payment]] = []
        for record in records:
            try:
                if record.topic == self.settings.labels:
                    labels.append((record, parse_label(record.value or b"")))
                else:
                    payments.append((record, parse_payment(record.value or b"", self.settings.columns)))
            except BadRecordError as bad:
                self._dead_letter(record, str(bad))
        unknown = self._apply(labels)
        payments.sort(key=lambda item: (item[1].event_time, item[0].partition, item[0].offset))
        for (record, _), score in zip(payments, self.scorer.score([p for _, p in payments]), strict=True):
            self.served.decisions[score.decision] += 1
            value = encode_score(score, record.partition, record.offset)
            self.producer.send(self.settings.scores, value=value, key=record.key)
        for record, _ in self._apply(unknown):  # its payment may have come in the same poll
            self._dead_letter(record, "label for a payment that is not known: never seen here, or forgotten by now")
        self.served.payments += len(payments)
        self.producer.flush(timeout=30)
        self.consumer.commit()
        return len(records)

    def _apply(self, labels: list[tuple[Any, Label]]) -> list[tuple[Any, Label]]:
        """Apply labels; returns those whose payment is unknown."""
        outcomes = self.scorer.apply_labels([label for _, label in labels]) if labels else []
        self.served.labels += sum(outcome != "unknown_payment" for outcome in outcomes)
        return [item for item, outcome in zip(labels, outcomes, strict=True) if outcome == "unknown_payment"]

    def _dead_letter(self, record: Any, cause: str) -> None:
        headers = [
            ("cause", cause.encode()),
            ("topic", record.topic.encode()),
            ("partition", str(record.partition).encode()),
            ("offset", str(record.offset).encode()),
        ]
        self.producer.send(self.settings.dead_letters, value=record.value, key=record.key, headers=headers)
        self.served.dead_letters += 1
        log.warning("dead letter from %s[%d]@%d: %s", record.topic, record.partition, record.offset, cause)

    def run(self, stop: Callable[[], bool], progress: Callable[[Served], None] | None = None) -> Served:
        """Serve until `stop()`; a poll that has begun is finished, answered and committed first."""
        try:
            while not stop():
                self.step()
                if progress is not None:
                    progress(self.served)
        finally:
            self.close()
        return self.served

    def close(self) -> None:
        self.producer.close(timeout=10)
        self.consumer.close()


def publish(
    frame: pd.DataFrame,
    settings: StreamSettings,
    *,
    also_due: pd.DataFrame | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Send a canonical frame's payments, and the fraud labels when they are due, in the order of time.

    Args:
        also_due: earlier payments, whose labels fall due while `frame` is sent.

    Returns the numbers of payments and labels sent. Labels due after the last payment are not sent.
    """
    from kafka import KafkaProducer

    from solutions.fraud.engine import seconds

    event_time = seconds(frame["event_time"])
    known = frame if also_due is None else pd.concat([also_due, frame], ignore_index=True)
    label_time = seconds(known["label_time"])
    in_time = (label_time >= event_time[0]) & (label_time < event_time[-1])
    frauds = np.flatnonzero((known["is_fraud"].to_numpy() == 1) & in_time)
    due = frauds[np.argsort(label_time[frauds], kind="stable")]
    known_names = known["transaction_id"].tolist()
    producer = _client(KafkaProducer, settings, linger_ms=5, acks=1)
    devices = frame["device"] if "device" in frame else pd.Series([None] * len(frame))
    rows = zip(
        frame["transaction_id"], event_time, frame["payer"], frame["payee"], frame["amount"], devices, strict=True
    )
    sent = 0
    for n, (name, when, payer, payee, amount, device) in enumerate(rows):
        while sent < len(due) and label_time[due[sent]] < when:
            label = Label(known_names[due[sent]], True, float(label_time[due[sent]]), "chargeback")
            producer.send(settings.labels, value=encode_label(label))
            sent += 1
        payment = Payment(name, float(when), payer, payee, float(amount), None if pd.isna(device) else device)
        producer.send(settings.transactions, value=encode_payment(payment))
        if progress is not None and n % 500 == 0:
            progress(n)
    producer.flush(timeout=60)
    producer.close()
    return len(frame), sent


def lag(settings: StreamSettings) -> int:
    """Records that wait to be scored: newest offset less committed offset, over the partitions of both topics."""
    from kafka import KafkaConsumer

    consumer = _client(KafkaConsumer, settings, group_id=settings.group, enable_auto_commit=False)
    try:
        waiting = 0
        for topic in (settings.transactions, settings.labels):
            for tp in _partitions(consumer, topic):
                consumer.assign([tp])
                consumer.seek_to_beginning(tp)
                deadline = time.monotonic() + 5.0
                while consumer.highwater(tp) is None and time.monotonic() < deadline:
                    consumer.poll(timeout_ms=200, max_records=1)
                waiting += (consumer.highwater(tp) or 0) - (consumer.committed(tp) or 0)
        return waiting
    finally:
        consumer.close()
