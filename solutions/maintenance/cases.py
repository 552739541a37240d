"""Cases: at most one open per asset, from the first alarm to a finding; the finding becomes a label.

open -> acknowledged -> closed, with a finding: the code of what was found, or NOTHING. A person closes a case, or the records
do: a failure, a repair (maintenance with a code that failures have), or that nothing came of it. A case is named by its
asset and the hour it opened, so that scoring the same hours again (late data, a kill in between) finds the same case.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from core.files import replacing
from core.tables import InputError
from solutions.maintenance.alarms import WARNING, Episode
from solutions.maintenance.data import HOUR, History
from solutions.maintenance.panel import hours_of

OPEN, ACKNOWLEDGED, CLOSED = "open", "acknowledged", "closed"
NOTHING = "nothing"
FAILURE, REPAIR, EXPIRY, PERSON = "failure", "repair", "expiry", "person"
SETTLED = 24  # hours after a failure or repair in which an alarm still speaks of the readings before it


@dataclass(frozen=True)
class Outcome:
    """What became of an asset at an hour: the finding, by failure or by repair."""

    hour: int
    finding: str
    by: str


def outcomes_of(history: History) -> dict[str, list[Outcome]]:
    """Failures and repairs of each asset in the order of time. Maintenance whose code no failure has is routine, no repair."""
    events = history.events
    codes = {str(code) for code in history.failures()["code"] if code}
    chosen = events[(events["kind"] == "failure") | ((events["kind"] == "maintenance") & events["code"].isin(codes))]
    found: dict[str, list[Outcome]] = {}
    for asset, hour, kind, code in zip(
        chosen["asset"], hours_of(chosen["time"]), chosen["kind"], chosen["code"], strict=True
    ):
        by = FAILURE if kind == "failure" else REPAIR
        found.setdefault(str(asset), []).append(Outcome(int(hour), str(code) or FAILURE, by))
    return {asset: sorted(each, key=lambda o: (o.hour, o.by)) for asset, each in found.items()}


@dataclass(frozen=True)
class Case:
    """opened, last, closed: hours since 1970; last is the newest hour of the alarm. peak: its highest probability.

    by: what closed it (person, failure, repair, expiry).
    """

    asset: str
    opened: int
    last: int
    peak: float
    state: str = OPEN
    closed: int | None = None
    finding: str = ""
    by: str = ""

    @property
    def name(self) -> str:
        return f"{self.asset}@{pd.Timestamp(self.opened * 3600, unit='s'):%Y-%m-%dT%H}"


class CaseBook:
    """All cases in one JSON file, replaced in one step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cases: list[Case] = []
        if path.exists():
            self.cases = [Case(**case) for case in json.loads(path.read_text())]

    def save(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps([asdict(case) for case in self.cases], indent=1))

    def active(self) -> list[Case]:
        """Cases that wait for a finding, the most pressing first."""
        return sorted((c for c in self.cases if c.state != CLOSED), key=lambda c: -c.peak)

    def take(
        self,
        found: Sequence[Episode],
        assets: Sequence[str],
        outcomes: dict[str, list[Outcome]] | None = None,
        *,
        now: int | None = None,
    ) -> list[Case]:
        """Fit alarms into the book in the order of time; returns the cases that are new.

        An asset whose case is open opens no second one. Before each alarm, and at last at the hour `now`, cases are closed
        by what is known to have become of their asset by then.
        """
        new: list[str] = []
        known = outcomes or {}
        for episode in sorted(found, key=lambda e: e.opened):
            asset = assets[episode.asset]
            self._settle(asset, known.get(asset, []), episode.opened)
            same = next((c for c in self.cases if c.asset == asset and self._covers(c, episode)), None)
            if same is None:
                case = Case(asset, episode.opened, episode.closed, episode.peak)
                self.cases.append(case)
                new.append(case.name)
            elif same.state != CLOSED:
                self._replace(
                    same, replace(same, last=max(same.last, episode.closed), peak=max(same.peak, episode.peak))
                )
        if now is not None:
            for asset in sorted({case.asset for case in self.active()}):
                self._settle(asset, known.get(asset, []), now)
        return [case for case in self.cases if case.name in new]

    def _settle(self, asset: str, outcomes: Sequence[Outcome], hour: int) -> None:
        """Close the case of an asset by its first failure or repair since, or for want of one; a person's case stays."""
        for case in [c for c in self.cases if c.asset == asset and c.state != CLOSED]:
            expiry = int(min(case.last, case.opened + WARNING) + WARNING)
            came = next((o for o in outcomes if case.opened < o.hour <= hour), None)
            if came is not None and (case.state == ACKNOWLEDGED or came.hour <= expiry):
                self._replace(case, replace(case, state=CLOSED, closed=came.hour, finding=came.finding, by=came.by))
            elif case.state == OPEN and hour > expiry:
                self._replace(case, replace(case, state=CLOSED, closed=expiry, finding=NOTHING, by=EXPIRY))

    @staticmethod
    def _covers(case: Case, episode: Episode) -> bool:
        """Whether an alarm belongs to a case: it waits for its finding, or was closed after the alarm began."""
        if case.state != CLOSED:
            return episode.closed >= case.opened
        assert case.closed is not None
        until = {PERSON: max(case.closed, case.last), EXPIRY: case.closed}.get(case.by, case.closed + SETTLED)
        return case.opened <= episode.closed and episode.opened <= until

    def acknowledge(self, name: str) -> Case:
        """Somebody looks after it."""
        case = self._find(name, (OPEN,))
        return self._replace(case, replace(case, state=ACKNOWLEDGED))

    def close(self, name: str, finding: str, hour: int) -> Case:
        """End a case with what was found; `nothing` when the alarm was false."""
        if not finding.strip():
            raise InputError("a case is closed with a finding: the code of what was found, or `nothing`.")
        case = self._find(name, (OPEN, ACKNOWLEDGED))
        return self._replace(case, replace(case, state=CLOSED, closed=hour, finding=finding.strip(), by=PERSON))

    def _find(self, name: str, states: tuple[str, ...]) -> Case:
        found = [case for case in self.cases if case.name == name]
        if not found:
            known = ", ".join(case.name for case in self.active()[:5]) or "none"
            raise InputError(f"no case `{name}`. Active cases: {known}.")
        if found[0].state not in states:
            raise InputError(f"case `{name}` is {found[0].state}. Expected: {' or '.join(states)}.")
        return found[0]

    def _replace(self, old: Case, new: Case) -> Case:
        self.cases[self.cases.index(old)] = new
        return new

    def labels(self) -> pd.DataFrame:
        """Findings as failures of a history: what was found would have failed, at the hour it was found."""
        rows = [case for case in self.cases if case.state == CLOSED and case.finding != NOTHING]
        times = [np.datetime64(0, "us") + (case.closed or 0) * HOUR for case in rows]
        return pd.DataFrame(
            {
                "asset": [case.asset for case in rows],
                "time": np.array(times, "datetime64[us]"),
                "arrived": np.array(times, "datetime64[us]"),
                "kind": "failure",
                "code": [case.finding for case in rows],
                "text": "",
            }
        )


def with_findings(history: History, book: CaseBook) -> History:
    """The history with the findings of closed cases as failures.

    A failure that is recorded within a day of a finding counts once; when its record has no code, the finding is its code.
    """
    found, events = book.labels(), history.events.copy()
    keep = []
    for asset, time, code in zip(found["asset"], found["time"], found["code"], strict=True):
        mine = (events["kind"] == "failure") & (events["asset"] == asset)
        near = mine & ((events["time"] - time).abs() <= pd.Timedelta(days=1))
        keep.append(not bool(near.any()))
        events.loc[near & (events["code"] == ""), "code"] = code
    return replace(history, events=pd.concat([events, found[np.array(keep, bool)]], ignore_index=True))
