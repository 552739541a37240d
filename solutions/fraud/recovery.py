"""After a restart: the newest good snapshot, then the committed markers after it, followed record by record.

Without a snapshot the markers are followed from the first on. Where they do not reach (they were deleted, or an older
version wrote none), the service reads the rest of the topics again in the order of time, without answering what was answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from core.logs import EventLog
from solutions.fraud.answers import Answers
from solutions.fraud.changelog import Marker, TailReader, read_changelog
from solutions.fraud.messages import Label, Payment, parse_label, parse_payment
from solutions.fraud.snapshots import Snapshot, Snapshots
from solutions.fraud.wire import StreamSettings

if TYPE_CHECKING:
    from solutions.fraud.stream import ScoresPayments

log = EventLog("vigil.fraud.recovery", fields=("cause", "sequence", "group"))
Partition = tuple[str, int]
BATCH = 1024


@dataclass
class Recovered:
    """Where a state stands. positions: records below were dealt with; settled: and so were these, from there on."""

    sequence: int = 0
    changelog_next: int = 0
    snapshot_sequence: int = 0
    events: int = 0
    positions: dict[Partition, int] = field(default_factory=dict)
    settled: dict[Partition, set[int]] = field(default_factory=dict)

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
        self.sequence, self.changelog_next = marker.sequence, marker.next_offset

    def to_json(self) -> dict[str, Any]:
        return {
            "changelog_next": self.changelog_next,
            "positions": [[*place, offset] for place, offset in self.positions.items()],
            "settled": [[*place, sorted(offsets)] for place, offsets in self.settled.items() if offsets],
        }

    @classmethod
    def of(cls, snapshot: Snapshot) -> Recovered:
        values = snapshot.values
        positions = {(topic, partition): offset for topic, partition, offset in values["positions"]}
        settled = {(topic, partition): set(offsets) for topic, partition, offsets in values["settled"]}
        sequence = snapshot.sequence
        return cls(sequence, values["changelog_next"], sequence, positions=positions, settled=settled)


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
        markers = _continuing(read_changelog(settings, state.changelog_next), state.sequence)
        if markers is None:
            log.warning("snapshot not used", cause="the changelog does not go on from it", sequence=state.sequence)
            state, snapshot = Recovered(), None
    if snapshot is not None:
        scorer.restore(snapshot.arrays, snapshot.values["scorer"])
        answers.restore(snapshot.values["answers"])
    else:
        everything = read_changelog(settings, 0)
        markers = _continuing(everything, 0)
        if markers is None:
            log.warning("changelog not used", cause="it does not reach back to the start", group=settings.group)
            state.sequence, state.changelog_next = everything[-1].sequence, everything[-1].next_offset
    if markers:
        _follow(settings, scorer, answers, state, markers)
    return state


def _continuing(markers: list[Marker], after: int) -> list[Marker] | None:
    """Markers, if the first of them follows on a sequence number."""
    return markers if not markers or markers[0].sequence == after + 1 else None


def _follow(
    settings: StreamSettings, scorer: ScoresPayments, answers: Answers, state: Recovered, markers: Sequence[Marker]
) -> None:
    start: dict[Partition, int] = {}
    for marker in markers:
        for topic, partition, first, _ in (*marker.applied.rows, *marker.refused.rows):
            start[topic, partition] = min(first, start.get((topic, partition), first))
    reader = TailReader(settings, start)
    try:
        events: list[Payment | Label] = []
        for marker in markers:
            for topic, partition, offset in marker.applied:
                raw = reader.take(topic, partition, offset).value or b""
                labels = topic == settings.labels
                events.append(parse_label(raw) if labels else parse_payment(raw, settings.columns))
            for place in marker.refused:
                reader.take(*place)
            if len(events) >= BATCH:
                _apply(scorer, answers, events)
                state.events += len(events)
                events = []
            state.follow(marker)
        _apply(scorer, answers, events)
        state.events += len(events)
    finally:
        reader.close()


def _apply(scorer: ScoresPayments, answers: Answers, events: Sequence[Payment | Label]) -> None:
    for is_label, group in groupby(events, key=lambda event: isinstance(event, Label)):
        if is_label:
            scorer.apply_labels([event for event in group if isinstance(event, Label)])
            continue
        claimed = [(event, answers.claim(event)) for event in group if isinstance(event, Payment)]
        fresh = [(event, answer) for event, (answer, new) in claimed if new]
        scores = scorer.score([event for event, _ in fresh]) if fresh else []
        for (_, answer), score in zip(fresh, scores, strict=True):
            answer.score = score
