"""One survival output: a discrete-time hazard. P(fail within any horizon), RUL and its interval are read off one curve.

N rows, K intervals of time with K + 1 `edges` (hours or cycles, from 0). Within an interval failures are uniform, so that
survival is linear between the edges (Tutz and Schmid 2016, chapter 3; arXiv 1801.05512 for the network's loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
LEAST = 1e-7


@dataclass(frozen=True)
class Curves:
    """survival_NE at the K + 1 edges: 1 at the first, never rising. What survives the last edge is beyond the horizon."""

    edges: tuple[float, ...]
    survival_NE: F64

    def __post_init__(self) -> None:
        survival = self.survival_NE
        if survival.ndim != 2 or survival.shape[1] != len(self.edges) or len(self.edges) < 2:
            raise ValueError(f"`survival_NE` must be (N, {len(self.edges)}). Received: {survival.shape}.")
        if self.edges[0] != 0.0 or any(b <= a for a, b in zip(self.edges[:-1], self.edges[1:], strict=True)):
            raise ValueError(f"`edges` must begin with 0 and rise. Received: {self.edges}.")
        if len(survival) and not (np.allclose(survival[:, 0], 1.0) and (np.diff(survival, axis=1) <= 1e-9).all()):
            raise ValueError("survival must begin with 1 and never rise.")

    @classmethod
    def from_hazard(cls, edges: Sequence[float], hazard_NK: F64) -> Curves:
        """hazard: probability of failing in an interval once it is reached."""
        survival = np.cumprod(1.0 - np.clip(hazard_NK, 0.0, 1.0), axis=1)
        return cls(tuple(edges), np.concatenate([np.ones((len(hazard_NK), 1)), survival], axis=1))

    def __len__(self) -> int:
        return len(self.survival_NE)

    def hazard_NK(self) -> F64:
        before = self.survival_NE[:, :-1]
        return np.where(before > LEAST, 1.0 - self.survival_NE[:, 1:] / np.maximum(before, LEAST), 1.0)

    def fails_within(self, hours: float) -> F64:
        """(N,) P(failure within `hours`). Beyond the last edge nothing is known: refused."""
        if not 0.0 <= hours <= self.edges[-1]:
            raise ValueError(f"`hours` must be in [0, {self.edges[-1]:g}]. Received: hours={hours}.")
        k = min(int(np.searchsorted(self.edges, hours, side="right")) - 1, len(self.edges) - 2)
        share = (hours - self.edges[k]) / (self.edges[k + 1] - self.edges[k])
        return np.asarray(1.0 - (1.0 - share) * self.survival_NE[:, k] - share * self.survival_NE[:, k + 1])

    def life(self) -> F64:
        """(N,) expected life up to the last edge: the area under the curve (restricted mean survival time)."""
        width = np.diff(self.edges)
        return np.asarray(((self.survival_NE[:, 1:] + self.survival_NE[:, :-1]) / 2.0 * width).sum(axis=1))

    def quantile(self, share: float) -> F64:
        """(N,) the time by which `share` of such machines have failed; the last edge when fewer do within it."""
        if not 0.0 < share < 1.0:
            raise ValueError(f"`share` must be in (0, 1). Received: share={share}.")
        target = 1.0 - share
        reached = self.survival_NE <= target
        k = np.where(reached.any(axis=1), reached.argmax(axis=1), len(self.edges) - 1)
        k = np.maximum(k, 1)
        rows, edges = np.arange(len(self)), np.asarray(self.edges)
        above, below = self.survival_NE[rows, k - 1], self.survival_NE[rows, k]
        fall = above - below
        inside = np.where(fall > 1e-12, np.clip((above - target) / np.maximum(fall, 1e-12), 0.0, 1.0), 1.0)
        return np.asarray(edges[k - 1] + inside * (edges[k] - edges[k - 1]))

    def median(self) -> F64:
        return self.quantile(0.5)

    def at(self, rows: NDArray[np.int64]) -> Curves:
        return Curves(self.edges, self.survival_NE[rows])


def person_periods(
    life_N: F64, failed_N: NDArray[np.bool_], edges: Sequence[float]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(at_risk_NK, fails_NK): which intervals a row says something about, and in which it fails.

    A row censored inside an interval says nothing about that interval; a life of exactly an edge ends before it.
    """
    ends, starts = np.asarray(edges[1:], float), np.asarray(edges[:-1], float)
    life = life_N[:, None]
    fails = failed_N[:, None] & (life > starts) & (life <= ends)
    survives = life >= np.where(failed_N[:, None], ends + 1e-9, ends)
    return fails | survives, fails


def scale_hazard(curves: Curves, shift: float, slope: float) -> Curves:
    """Cumulative hazard H -> exp(shift) * H ** slope: probabilities move, the order in time stays."""
    total = -np.log(np.maximum(curves.survival_NE, LEAST))
    return Curves(curves.edges, np.exp(-np.exp(shift) * np.where(total > 0.0, np.maximum(total, 1e-300) ** slope, 0.0)))


def fit_scale(curves: Curves, life_N: ArrayLike, failed_N: ArrayLike) -> tuple[float, float]:
    """(shift, slope) of `scale_hazard` that make held-out lives most likely."""
    from scipy.optimize import minimize

    life, failed = np.asarray(life_N, float), np.asarray(failed_N, bool)

    def loss(theta: F64) -> float:
        return negative_log_likelihood(scale_hazard(curves, theta[0], np.exp(theta[1])), life, failed)

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"maxiter": 120, "xatol": 1e-3, "fatol": 1e-6})
    return float(found.x[0]), float(np.exp(found.x[1]))


def negative_log_likelihood(curves: Curves, life_N: F64, failed_N: NDArray[np.bool_]) -> float:
    """Mean over rows of the discrete-time likelihood with censoring, in nats."""
    at_risk, fails = person_periods(life_N, failed_N, curves.edges)
    hazard = np.clip(curves.hazard_NK(), LEAST, 1.0 - LEAST)
    terms = np.where(fails, -np.log(hazard), np.where(at_risk, -np.log1p(-hazard), 0.0))
    return float(terms.sum(axis=1).mean())


def cautious_life(curves: Curves, step: float = 0.5) -> F64:
    """(N,) the life whose expected NASA score is least: late predictions cost more than early ones.

    What survives the last edge counts as failing there.
    """
    edges = np.asarray(curves.edges)
    fine = np.arange(step / 2.0, edges[-1], step)
    ends = np.stack([1.0 - curves.fails_within(float(min(t + step / 2.0, edges[-1]))) for t in fine], axis=1)
    mass = np.concatenate([-np.diff(ends, axis=1, prepend=1.0), ends[:, -1:]], axis=1)
    lives = np.append(fine, edges[-1])
    error_PT = lives[:, None] - lives[None, :]
    loss_PT = np.where(error_PT < 0.0, np.expm1(-error_PT / 13.0), np.expm1(error_PT / 10.0))
    return np.asarray(lives[(mass @ loss_PT.T).argmin(axis=1)])


def nasa_score(error_N: F64) -> float:
    """Sum of exp(-e/13) - 1 for early and exp(e/10) - 1 for late predictions, e = predicted - true (Saxena et al. 2008)."""
    return float(np.where(error_N < 0.0, np.expm1(-error_N / 13.0), np.expm1(error_N / 10.0)).sum())
