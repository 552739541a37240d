"""How the fraud solution reaches Kafka: settings, clients that wait a bounded time, topics, lag."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.tables import InputError

_WORKER = re.compile(r"[A-Za-z0-9._-]{1,100}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:,/]+):(\d{1,5})")


class StreamError(RuntimeError):
    """The stream can not be served: broker or topic is missing, or stopped answering."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """Topics, batching and waiting.

    bootstrap_servers: HOST:PORT, or several with commas between.
    worker: a name among those that share the group's partitions; without one, this process owns all of them.
    max_records: payments and labels per batch, and at most about so many per transaction.
    max_wait_ms: how long the broker may wait for more before it answers a fetch.
    commit_ms: how long decisions may wait for company before their transaction begins; it also waits for the one before.
    retry_backoff_ms: pause before asking again while the broker ends the transaction before; decides the latency.
    snapshots: directory of this group's snapshots; without one, a restart goes through the whole changelog.
    snapshot_seconds: how often. snapshots_kept: how many.
    columns: our field -> the field of their payments.
    connect_seconds: how long a missing broker or topic is waited for at the start.
    outage_seconds: how long a broker that stopped answering is waited for.
    patience_seconds: how long a label waits for its payment, and all streams for one that is behind but silent.
    max_ahead_days: an event further ahead of this machine's clock is refused: it would move the clocks of the state.
    remembered: payments whose answer is kept, so that a repeated one is answered the same and counted once.
    """

    bootstrap_servers: str
    transactions: str = "transactions"
    labels: str = "fraud_labels"
    scores: str = "fraud_scores"
    dead_letters: str = "fraud_dead_letters"
    group: str = "vigil-fraud"
    worker: str | None = None
    max_records: int = 256
    max_wait_ms: int = 10
    commit_ms: int = 2
    retry_backoff_ms: int = 2
    snapshots: Path | None = None
    snapshot_seconds: float = 30.0
    snapshots_kept: int = 3
    columns: dict[str, str] = field(default_factory=dict)
    connect_seconds: float = 15.0
    outage_seconds: float = 60.0
    patience_seconds: float = 1.0
    max_ahead_days: float = 1.0
    remembered: int = 50_000

    def __post_init__(self) -> None:
        for address in self.bootstrap_servers.split(","):
            if not _ADDRESS.fullmatch(address.strip()):
                raise InputError(f"a Kafka broker is named HOST:PORT. Received: {address.strip() or 'nothing'!r}.")
        if self.worker is not None and not _WORKER.fullmatch(self.worker):
            raise InputError(f"a worker is named by letters, digits, `.`, `_` and `-`. Received: {self.worker!r}.")
        topics = self.topics()
        if len(set(topics)) < len(topics):
            raise InputError(f"the four topics must differ. Received: {', '.join(topics)}.")
        for name in ("max_records", "max_wait_ms", "remembered", "retry_backoff_ms", "snapshots_kept"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be >= 1. Received: {name}={getattr(self, name)}.")
        if not self.outage_seconds >= 1:
            raise InputError(f"`outage_seconds` must be >= 1. Received: outage_seconds={self.outage_seconds}.")
        for name in ("connect_seconds", "patience_seconds", "max_ahead_days", "commit_ms", "snapshot_seconds"):
            if not getattr(self, name) >= 0:
                raise InputError(f"`{name}` must be >= 0. Received: {name}={getattr(self, name)}.")

    @property
    def changelog(self) -> str:
        """The topic of the state markers; made by the service, of one partition."""
        return f"{self.group}.changelog"

    @property
    def identity(self) -> str:
        """Who writes: a second process of the same identity takes over from the first."""
        return self.worker or "owner"

    def topics(self) -> tuple[str, str, str, str]:
        return self.transactions, self.labels, self.scores, self.dead_letters


def connect(make: Callable[..., Any], settings: StreamSettings, **options: Any) -> Any:
    """Build a client, retrying while the broker is down, for a bounded time.

    Raises:
        StreamError: when no broker answers in `connect_seconds`.
    """
    from kafka.errors import KafkaConfigurationError, KafkaError

    deadline = time.monotonic() + settings.connect_seconds
    while True:
        left = max(deadline - time.monotonic(), 0.2)
        servers = [address.strip() for address in settings.bootstrap_servers.split(",")]
        try:
            return make(bootstrap_servers=servers, bootstrap_timeout_ms=int(left * 1000), **options)
        except KafkaConfigurationError:
            raise  # a mistake of ours: waiting does not help
        except KafkaError as error:
            if time.monotonic() > deadline - 0.2:
                raise StreamError(
                    f"no Kafka broker answers at {settings.bootstrap_servers} ({type(error).__name__}, waited "
                    f"{settings.connect_seconds:g} s). Check the address (`--bootstrap-servers`) and that it runs."
                ) from error
            time.sleep(0.2)


def reader(settings: StreamSettings) -> Any:
    """A consumer of committed records that belongs to no group: partitions and offsets are told to it."""
    from kafka import KafkaConsumer

    return connect(
        KafkaConsumer,
        settings,
        group_id=None,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=10,
    )


def insist(settings: StreamSettings, call: Callable[[], Any]) -> Any:
    """Ask again while the broker is away, for a bounded time; only for calls that may be made twice.

    Raises:
        StreamError: it stayed away, or refuses.
    """
    from kafka.errors import KafkaError, RetriableError

    deadline = time.monotonic() + settings.outage_seconds
    while True:
        try:
            return call()
        except KafkaError as error:
            if not isinstance(error, RetriableError) or time.monotonic() > deadline:
                raise StreamError(
                    f"{settings.bootstrap_servers} stopped answering or refuses ({type(error).__name__}, waited "
                    f"up to {settings.outage_seconds:g} s). What was not committed is answered after the restart."
                ) from error
            time.sleep(0.1)


def partitions_of(consumer: Any, topic: str, settings: StreamSettings) -> list[Any]:
    """Partitions of a topic, in order.

    Raises:
        StreamError: when it does not exist after `connect_seconds`.
    """
    from kafka import TopicPartition

    deadline = time.monotonic() + settings.connect_seconds
    while not (found := consumer.partitions_for_topic(topic)):
        if time.monotonic() > deadline:
            raise StreamError(
                f"topic `{topic}` does not exist on {settings.bootstrap_servers}. Create it (topics are not made "
                "automatically), or name another with its --...-topic option."
            )
        time.sleep(0.2)
    return [TopicPartition(topic, p) for p in sorted(found)]


def ensure_changelog(settings: StreamSettings) -> None:
    """Create the changelog topic of a group if it is not there: one partition, kept for ever.

    Raises:
        StreamError: it is not there, and may not be made.
    """
    from kafka.admin import KafkaAdminClient, NewTopic
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    admin = connect(KafkaAdminClient, settings)
    try:
        # -1: as many replicas as the broker's default
        topic = NewTopic(settings.changelog, 1, -1, topic_configs={"retention.ms": "-1"})
        admin.create_topics([topic])
    except TopicAlreadyExistsError:
        return
    except KafkaError as error:
        raise StreamError(
            f"topic `{settings.changelog}` does not exist on {settings.bootstrap_servers} and can not be made "
            f"({type(error).__name__}). Create it with one partition and unlimited retention."
        ) from error
    finally:
        admin.close()


def lag(settings: StreamSettings) -> int:
    """Records that wait to be scored, over the partitions of both topics: high watermark less committed offset.

    Raises:
        StreamError: no broker, no topic, or no answer about a partition.
    """
    from kafka import KafkaConsumer

    consumer = connect(
        KafkaConsumer, settings, group_id=settings.group, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        topics = (settings.transactions, settings.labels)
        partitions = [tp for topic in topics for tp in partitions_of(consumer, topic, settings)]
        consumer.assign(partitions)
        committed = {tp: consumer.committed(tp) for tp in partitions}
        for tp, offset in committed.items():
            consumer.seek_to_beginning(tp) if offset is None else consumer.seek(tp, offset)
        start = {tp: consumer.position(tp) for tp in partitions}
        # a fetch tells the high watermark; `end_offsets` is wrong on the embedded broker
        deadline = time.monotonic() + settings.connect_seconds
        while any(consumer.highwater(tp) is None for tp in partitions):
            consumer.poll(timeout_ms=50, max_records=1)
            if time.monotonic() > deadline:
                raise StreamError(f"{settings.bootstrap_servers} does not tell how long its topics are.")
        return sum(max(0, consumer.highwater(tp) - start[tp]) for tp in partitions)
    finally:
        consumer.close()
