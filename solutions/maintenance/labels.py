"""Time to the next failure of every row, built once from the events, with resets and censoring.

R rows. A row at the very hour of a failure already knows of it (the repair is recorded with it), so it speaks of the next
one. What is not known by the end of observation is censored, never negative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solutions.maintenance.data import History
from solutions.maintenance.panel import Panel, hours_of

F64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """life_R: hours to the next failure, or to the end of observation where `failed_R` is False."""

    life_R: F64
    failed_R: Bool

    def within(self, hours: float) -> tuple[Bool, Bool]:
        """(whether it fails within so many hours, whether that is known)."""
        positive = self.failed_R & (self.life_R <= hours)
        return positive, positive | (self.life_R >= hours)

    def at(self, rows: NDArray[np.int64]) -> Labels:
        return Labels(self.life_R[rows], self.failed_R[rows])


def make_labels(history: History, panel: Panel, *, until_hour: int | None = None) -> Labels:
    """Labels from the failures up to `until_hour` (None: the last row of each asset is the end of its observation).

    A failure less than a step after the last row of an asset, or at it, still belongs to its observation.
    """
    failures = history.failures()
    life_R, failed_R = np.zeros(len(panel)), np.zeros(len(panel), bool)
    by_asset = {str(name): hours_of(frame["time"]) for name, frame in failures.groupby("asset")}
    for name, rows in zip(panel.assets, panel.slices(), strict=True):
        hour_R = panel.hour_R[rows]
        end = int(hour_R[-1]) + 1 if until_hour is None else until_hour
        when = np.unique(by_asset.get(name, np.zeros(0, np.int64)))
        when = when[when <= end]
        after = np.searchsorted(when, hour_R, side="right")  # strictly later than the row
        there = after < len(when)
        next_R = (
            np.where(there, when[np.minimum(after, len(when) - 1)], end) if len(when) else np.full(len(hour_R), end)
        )
        life_R[rows] = np.maximum(next_R - hour_R, 0)
        failed_R[rows] = there
    return Labels(life_R, failed_R)
