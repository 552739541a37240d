"""Intervals of the remaining life, read off the curve at shares that conformal calibration over machines has chosen.

Rows of one machine depend on each other. One row of each machine is exchangeable with one row of a machine to come, so
the quantile is taken over machines, and averaged over many draws of their rows (Lei et al. 2018; Dunn et al. 2022 for
the hierarchy). N rows.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from solutions.maintenance.hazard import Curves

F64 = NDArray[np.float64]
DRAWS = 50
SHARES = np.linspace(0.002, 0.499, 150)


@dataclass(frozen=True)
class Interval:
    """From the time by which `share` have failed to the time by which all but `share` have; covers `coverage`."""

    share: float
    coverage: float
    machines: int

    def __call__(self, curves: Curves) -> tuple[F64, F64]:
        return curves.quantile(self.share), curves.quantile(1.0 - self.share)


def fit_interval(
    curves: Curves, life_N: F64, asset_N: NDArray[np.int64], *, coverage: float = 0.9, seed: int = 0
) -> Interval:
    """The widest cut of both tails that still covers; life_N is capped at the last edge.

    Needs 1 / (1 - coverage) machines or more to say anything; with fewer the whole curve is the interval.
    """
    machines = np.unique(asset_N)
    if len(machines) < math.ceil(1.0 / (1.0 - coverage)) - 1:
        return Interval(float(SHARES[0]), coverage, len(machines))
    # the largest share whose interval still holds a row's life: the score of conformal prediction, larger is better
    inside_SN = np.stack([_holds(curves, life_N, float(share)) for share in SHARES])
    largest_N = np.where(inside_SN.any(0), SHARES[len(SHARES) - 1 - inside_SN[::-1].argmax(0)], 0.0)
    rng = np.random.default_rng(seed)
    rows_of = [np.flatnonzero(asset_N == machine) for machine in machines]
    rank = math.floor((len(machines) + 1) * (1.0 - coverage))
    found = [np.sort([largest_N[rng.choice(rows)] for rows in rows_of])[max(rank - 1, 0)] for _ in range(DRAWS)]
    return Interval(float(np.clip(np.mean(found), SHARES[0], SHARES[-1])), coverage, len(machines))


def _holds(curves: Curves, life_N: F64, share: float) -> NDArray[np.bool_]:
    return (curves.quantile(share) <= life_N + 1e-9) & (life_N <= curves.quantile(1.0 - share) + 1e-9)


@dataclass
class CoverageMonitor:
    """Coverage of intervals as lives become known, over the newest `window` machines."""

    coverage: float = 0.9
    window: int = 100
    held: deque[bool] = field(default_factory=deque)

    def add(self, low: float, high: float, life: float) -> None:
        self.held.append(low <= life <= high)
        while len(self.held) > self.window:
            self.held.popleft()

    def observed(self) -> float:
        """Share of lives inside their interval; NaN before the first."""
        return sum(self.held) / len(self.held) if self.held else math.nan

    def broken(self, level: float = 0.01) -> bool:
        """Whether so few hits would come with probability < `level` from intervals that cover as they say."""
        from scipy.stats import binom

        return bool(self.held) and float(binom.cdf(sum(self.held), len(self.held), self.coverage)) < level
