"""After a restart: the newest good snapshot, then the committed markers after it, followed record by record.

Without a snapshot the markers are followed from the first on. Where they do not reach (they were deleted), the service reads
the rest of the topics again in the order of time, without answering what was answered. A snapshot of any worker of the group
will do: what its markers and those of the others say after it leads to the same place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from core.logs import EventLog
from solutions.fraud.answers import Answers
from solutions.fraud.changelog import Marker, RecoveryError, read_changelog
from solutions.fraud.messages import Label, Payment, Score, parse_label, parse_payment
from solutions.fraud.snapshots import Snapshot, Snapshots
from solutions.fraud.tail import Partition, TailReader
from solutions.fraud.wire import StreamSettings

if TYPE_CHECKING:
    from solutions.fraud.stream import ScoresPayments

log = EventLog("vigil.fraud.recovery", fields=("cause", "snapshot", "group"))
Told = tuple[Payment, Score | None] | tuple[Label, None]  # what a record says, and the answer to it
BATCH = 1024


@dataclass
class Recovered:
    """Where a state stands.

    changelog_next: markers below were followed. sequences: of each worker, the newest marker that was. positions: records
    below were dealt with; settled: and so were these, from there on. snapshot: the one it began with, -1: none.
    """

    changelog_next: int = 0
    snapshot: int = -1
    events: int = 0
    sequences: dict[str, int] = field(default_factory=dict)
    positions: dict[Partition, int] = field(default_factory=dict)
    settled: dict[Partition, set[int]] = field(default_factory=dict)

    def has(self, marker: Marker) -> bool:
        return marker.sequence <= self.sequences.get(marker.worker, 0)

    def forget_below(self, place: Partition, offset: int) -> None:
        if place in self.settled:
            self.settled[place] = {o for o in self.settled[place] if o >= offset}

    def follow(self, marker: Marker) -> None:
        """Take over what a marker says."""
        for topic, partition, offset in (*marker.applied, *marker.refused):
            self.settled.setdefault((topic, partition), set()).add(offset)
        for place, offset in marker.positions.items():
            self.positions[place] = offset
            self.forget_below(place, offset)
        self.sequences[marker.worker], self.changelog_next = marker.sequence, marker.next_offset

    def to_json(self) -> dict[str, Any]:
        return {
            "changelog_next": self.changelog_next,
            "sequences": self.sequences,
            "positions": [[*place, offset] for place, offset in self.positions.items()],
            "settled": [[*place, sorted(offsets)] for place, offsets in self.settled.items() if offsets],
        }

    @classmethod
    def of(cls, snapshot: Snapshot) -> Recovered:
        values = snapshot.values
        positions = {(topic, partition): offset for topic, partition, offset in values["positions"]}
        settled = {(topic, partition): set(offsets) for topic, partition, offsets in values["settled"]}
        return cls(
            values["changelog_next"],
            snapshot.offset,
            sequences=values["sequences"],
            positions=positions,
            settled=settled,
        )


def recover(
    settings: StreamSettings, scorer: ScoresPayments, answers: Answers, snapshots: Snapshots | None
) -> Recovered:
    """Bring scorer and answers to the last committed state; returns where that is.

    Raises:
        RecoveryError: records or markers that are needed are gone.
    """
    snapshot = snapshots.newest_good(scorer.kind) if snapshots is not None else None
    state, markers = Recovered(), None
    if snapshot is not None:
        state = Recovered.of(snapshot)
        markers = _continuing(read_changelog(settings, state.changelog_next), state)
        if markers is None:
            log.warning("snapshot not used", cause="the changelog does not go on from it", snapshot=snapshot.offset)
            state, snapshot = Recovered(), None
    if snapshot is not None:
        scorer.restore(snapshot.arrays, snapshot.values["scorer"])
        answers.restore(snapshot.values["answers"])
    else:
        everything = read_changelog(settings, 0)
        markers = _continuing(everything, state)
        if markers is None:
            log.warning("changelog not used", cause="it does not reach back to the start", group=settings.group)
            state.sequences = {marker.worker: marker.sequence for marker in everything}
            state.changelog_next = everything[-1].next_offset
    if markers:
        _follow(settings, scorer, answers, state, markers)
    return state


def follow_to(settings: StreamSettings, scorer: ScoresPayments, state: Recovered, goal: Mapping[str, int]) -> None:
    """Let a scorer that stands at `state` follow each worker's markers up to those of `goal`.

    Raises:
        RecoveryError: records or markers that are needed are gone.
    """
    markers = _continuing(read_changelog(settings, state.changelog_next), state)
    if markers is None:
        raise RecoveryError(f"topic `{settings.changelog}` does not go on from the state.")
    _follow(settings, scorer, Answers(1), state, [m for m in markers if m.sequence <= goal.get(m.worker, 0)])


def _continuing(markers: list[Marker], state: Recovered) -> list[Marker] | None:
    """The markers that the state lacks, if none of a worker's is missing before them."""
    lacking = [marker for marker in markers if not state.has(marker)]
    first = {marker.worker: marker.sequence for marker in reversed(lacking)}
    if any(sequence != state.sequences.get(worker, 0) + 1 for worker, sequence in first.items()):
        return None
    return lacking


def _follow(
    settings: StreamSettings, scorer: ScoresPayments, answers: Answers, state: Recovered, markers: Sequence[Marker]
) -> None:
    start: dict[Partition, int] = {}
    for marker in markers:
        for topic, partition, first, _ in (*marker.applied.rows, *marker.refused.rows):
            start[topic, partition] = min(first, start.get((topic, partition), first))
    reader = TailReader(settings, start)
    try:
        told: list[Told] = []
        for marker in markers:
            told += tell(settings, marker, reader)
            for place in marker.refused:
                reader.take(*place)
            if len(told) >= BATCH:
                take_over(scorer, answers, told)
                state.events += len(told)
                told = []
            state.follow(marker)
        take_over(scorer, answers, told)
        state.events += len(told)
    finally:
        reader.close()


def tell(settings: StreamSettings, marker: Marker, reader: TailReader) -> list[Told]:
    """What the records that a marker applied say, with the answers that they were given.

    Raises:
        RecoveryError: one of them is gone.
    """
    events: list[Payment | Label] = []
    for topic, partition, offset in marker.applied:
        raw = reader.take(topic, partition, offset).value or b""
        labels = topic == settings.labels
        events.append(parse_label(raw) if labels else parse_payment(raw, settings.columns))
    scores = iter(marker.scores([event for event in events if isinstance(event, Payment)]))
    return [(event, None) if isinstance(event, Label) else (event, next(scores)) for event in events]


def take_over(scorer: ScoresPayments, answers: Answers, told: Sequence[Told]) -> None:
    """Let records that were answered before, or by others, change the state, and remember their answers."""
    for is_label, group in groupby(told, key=lambda entry: isinstance(entry[0], Label)):
        if is_label:
            scorer.apply_labels([event for event, _ in group if isinstance(event, Label)])
            continue
        fresh: list[tuple[Payment, Score]] = []
        for event, score in group:
            assert isinstance(event, Payment)
            if score is None:  # a repeated one, and its answer is known
                continue
            answer, new = answers.claim(event)
            if new:
                answer.score = score
                fresh.append((event, score))
        if fresh:
            scorer.observe([payment for payment, _ in fresh], [score for _, score in fresh])
