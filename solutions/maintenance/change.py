"""What is new to a champion: which rows, and operating conditions that it never saw.

R rows of a panel, C condition columns, A assets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solutions.maintenance.conditions import Conditions
from solutions.maintenance.data import History, InputError
from solutions.maintenance.panel import Panel, hours_of

I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
FAR = 2.0  # times the reach of the known conditions: settings beyond belong to a new one
LEAST_REACH = 0.1  # of a condition, in standard deviations of the settings
LEAST_ROWS = 100  # of a new condition
EXAMPLE = 336  # hours before a failure of a new mode that are learnt from


@dataclass(frozen=True)
class Change:
    """Everything from an hour on, or what led to the failures with a finding."""

    since_hour: int | None = None
    finding: str = ""

    def __post_init__(self) -> None:
        if (self.since_hour is None) == (not self.finding):
            raise ValueError(f"a change is either `since_hour` or a `finding`. Received: {self}.")

    def rows(self, panel: Panel, history: History) -> Bool:
        """(R,) the rows that are new.

        Raises:
            InputError: no failure has the finding.
        """
        if self.since_hour is not None:
            return np.asarray(panel.hour_R >= self.since_hour)
        failures = history.failures()
        chosen = failures[failures["code"] == self.finding]
        new_R, slices = np.zeros(len(panel), bool), dict(zip(panel.assets, panel.slices(), strict=True))
        for asset, hour in zip(chosen["asset"], hours_of(chosen["time"]), strict=True):
            if asset in slices:
                hour_R = panel.hour_R[slices[asset]]
                new_R[slices[asset]] |= (hour_R < hour) & (hour_R >= hour - EXAMPLE)
        if not new_R.any():
            known = ", ".join(sorted({str(code) for code in failures["code"] if code})) or "none"
            raise InputError(f"no failure was found to be `{self.finding}`. Findings of the history: {known}.")
        return new_R


def with_new_conditions(conditions: Conditions, panel: Panel, trained_R: Bool, new_R: Bool) -> Conditions:
    """The same conditions, and those of new rows whose settings lie far from all that training saw; dead sensors stay so."""
    if not len(conditions.shift_C) or panel.condition_RC.shape[1] != len(conditions.shift_C):
        return conditions
    known_R = np.isfinite(panel.condition_RC).all(axis=1)
    z_RC = (panel.condition_RC - conditions.shift_C) / conditions.scale_C
    away_R = np.sqrt(((z_RC[:, None, :] - conditions.centre_KC[None]) ** 2).sum(-1)).min(axis=1)
    reach = (
        max(float(np.quantile(away_R[trained_R & known_R], 0.999)), LEAST_REACH)
        if (trained_R & known_R).any()
        else np.inf
    )
    far_R = new_R & known_R & (np.nan_to_num(away_R) > FAR * reach)
    if far_R.sum() < LEAST_ROWS:
        return conditions
    found = Conditions.fit(panel.condition_RC[far_R], panel.x_RS[far_R])
    centre_KC = (found.centre_KC * found.scale_C + found.shift_C - conditions.shift_C) / conditions.scale_C
    return replace(
        conditions,
        centre_KC=np.concatenate([conditions.centre_KC, centre_KC]),
        mean_KS=np.concatenate([conditions.mean_KS, found.mean_KS]),
        scale_KS=np.concatenate([conditions.scale_KS, np.where(conditions.alive_S(), found.scale_KS, 0.0)]),
    )


def deal_out(panel: Panel, failing_R: Bool, groups: int, seed: int) -> I64:
    """(A,) group of each machine; those that fail in the marked rows are dealt out evenly."""
    failing_A = np.bincount(panel.asset_R, failing_R, len(panel.assets)) > 0
    order = np.lexsort((np.random.default_rng(seed).random(len(panel.assets)), ~failing_A))
    group_A = np.empty(len(panel.assets), np.int64)
    group_A[order] = np.arange(len(panel.assets)) % groups
    return group_A
