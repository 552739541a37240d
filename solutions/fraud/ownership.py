"""Who answers which partitions: one process all of them, or workers that share them as a Kafka consumer group.

Workers that share: before a partition changes hands, the one that gives it up commits what it has done; the one that takes it
over first follows what was committed (see `follower`), and goes on at the committed offset. A worker that was thought dead
and wakes up can not commit: its generation of the group is over (KIP-447). A worker is a static member (KIP-345): when it
comes back under its name, the others keep theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from solutions.fraud.wire import StreamError, StreamSettings, connect, partitions_of

NEW_PARTITIONS_SECONDS = 30.0
SESSION_MS = 6_000


class OwnershipLostError(StreamError):
    """The group went on without this worker; what it did meanwhile is not committed, and its state must be rebuilt."""


class Change(NamedTuple):
    """Partitions to own from now on; anew: instead of those before, else beside them."""

    gained: list[Any]
    anew: bool


class Ownership(Protocol):
    def change(self) -> Change | None:
        """What changed since the last time; to be asked after every poll."""

    def member(self) -> Any:
        """As what offsets are committed."""

    def leave(self) -> None: ...


class SoleOwner:
    """All partitions of both topics, also those that are added later."""

    def __init__(self, consumer: Any, settings: StreamSettings) -> None:
        self.consumer, self.settings = consumer, settings
        self._owned: list[Any] = []
        self._looked = -NEW_PARTITIONS_SECONDS

    def change(self) -> Change | None:
        if time.monotonic() - self._looked < NEW_PARTITIONS_SECONDS:
            return None
        self._looked = time.monotonic()
        found = all_partitions(self.consumer, self.settings)
        new = [tp for tp in found if tp not in self._owned]
        if not new:
            return None
        self._owned += new
        self.consumer.assign(self._owned)
        return Change(new, anew=False)

    def member(self) -> Any:
        return self.settings.group

    def leave(self) -> None:
        """Nobody waits for it."""


class SharedOwner:
    """The partitions that the group's protocol gives to this worker."""

    def __init__(self, consumer: Any, settings: StreamSettings, commit: Callable[[], None]) -> None:
        """commit: called before partitions are given up, in the consumer's own thread while `poll` waits."""
        from kafka import ConsumerRebalanceListener

        self.consumer, self.settings = consumer, settings
        self._change: Change | None = None
        self._error: BaseException | None = None
        shared = self

        class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
            def on_partitions_revoked(self, revoked: Any) -> None:
                try:
                    commit()
                except BaseException as error:  # the client would only log it
                    shared._error = error

            def on_partitions_lost(self, lost: Any) -> None:
                shared._error = OwnershipLostError("the group went on without this worker: it was silent for too long.")

            def on_partitions_assigned(self, assigned: Any) -> None:
                shared._change = Change(sorted(assigned), anew=True)

        consumer.subscribe([settings.transactions, settings.labels], listener=Listener())

    def change(self) -> Change | None:
        if self._error is not None:
            raise self._error
        change, self._change = self._change, None
        return change

    def member(self) -> Any:
        return self.consumer.group_metadata()

    def leave(self) -> None:
        """Let the others take over at once: a static member is waited for otherwise."""
        from kafka.admin import KafkaAdminClient, MemberToRemove

        admin = connect(KafkaAdminClient, self.settings)
        try:
            admin.remove_group_members(self.settings.group, [MemberToRemove(group_instance_id=self.settings.identity)])
        finally:
            admin.close()


def all_partitions(consumer: Any, settings: StreamSettings) -> list[Any]:
    """Of both input topics; at equal times payments go first."""
    return [tp for topic in (settings.transactions, settings.labels) for tp in partitions_of(consumer, topic, settings)]
