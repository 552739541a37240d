"""Cases: at most one open per asset, from the first alarm to a finding; the finding becomes a label.

open -> acknowledged -> closed, with a finding: the code of what was found, or NOTHING. A case is named by its asset and the
hour it opened, so that scoring the same hours again (late data, a kill in between) finds the same case.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from core.tables import InputError
from solutions.maintenance.alarms import Episode
from solutions.maintenance.data import HOUR, History

OPEN, ACKNOWLEDGED, CLOSED = "open", "acknowledged", "closed"
NOTHING = "nothing"


@dataclass(frozen=True)
class Case:
    """opened, last, closed: hours since 1970; last is the newest hour of the alarm. peak: its highest probability."""

    asset: str
    opened: int
    last: int
    peak: float
    state: str = OPEN
    closed: int | None = None
    finding: str = ""

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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps([asdict(case) for case in self.cases], indent=1))
        os.replace(temporary, self.path)

    def active(self) -> list[Case]:
        """Cases that wait for a finding, the most pressing first."""
        return sorted((c for c in self.cases if c.state != CLOSED), key=lambda c: -c.peak)

    def take(self, found: Sequence[Episode], assets: Sequence[str]) -> list[Case]:
        """Fit alarms into the book; returns the cases that are new. An asset whose case is open opens no second one."""
        new: list[Case] = []
        for episode in sorted(found, key=lambda e: e.opened):
            asset = assets[episode.asset]
            same = next((c for c in self.cases if c.asset == asset and self._covers(c, episode)), None)
            if same is None:
                case = Case(asset, episode.opened, episode.closed, episode.peak)
                self.cases.append(case)
                new.append(case)
            elif same.state != CLOSED:
                merged = replace(same, last=max(same.last, episode.closed), peak=max(same.peak, episode.peak))
                self._replace(same, merged)
                new = [merged if case is same else case for case in new]
        return new

    @staticmethod
    def _covers(case: Case, episode: Episode) -> bool:
        """Whether an alarm belongs to a case: it waits for its finding, or was closed after the alarm began."""
        if case.state != CLOSED:
            return episode.closed >= case.opened
        assert case.closed is not None
        return case.opened <= episode.closed and episode.opened <= max(case.closed, case.last)

    def acknowledge(self, name: str) -> Case:
        """Somebody looks after it."""
        case = self._find(name, (OPEN,))
        return self._replace(case, replace(case, state=ACKNOWLEDGED))

    def close(self, name: str, finding: str, hour: int) -> Case:
        """End a case with what was found; `nothing` when the alarm was false."""
        if not finding.strip():
            raise InputError("a case is closed with a finding: the code of what was found, or `nothing`.")
        case = self._find(name, (OPEN, ACKNOWLEDGED))
        return self._replace(case, replace(case, state=CLOSED, closed=hour, finding=finding.strip()))

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
    """The history with the findings of closed cases as failures; a failure recorded within a day of one counts once."""
    found = book.labels()
    failures = history.failures()
    keep = []
    for asset, time in zip(found["asset"], found["time"], strict=True):
        near = failures.loc[failures["asset"] == asset, "time"]
        keep.append(not bool(((near - time).abs() <= pd.Timedelta(days=1)).any()))
    return replace(history, events=pd.concat([history.events, found[np.array(keep, bool)]], ignore_index=True))
