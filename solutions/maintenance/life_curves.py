"""From an expected life to a whole survival curve: how long those lived who were given that expectation.

A weighted empirical distribution of out-of-fold lives around each predicted value (a conformal predictive system in the
sense of Vovk et al. 2017), moved so that its expectation is the prediction. Every machine
weighs alike. N rows, G grid of predicted lives, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.maintenance.hazard import Curves

F64 = NDArray[np.float64]
BANDWIDTH = 0.04  # of the cap: 5 cycles of 125


@dataclass(frozen=True)
class LifeCurves:
    """survival_GE at grid_G of expected lives; in between, linear."""

    edges: tuple[float, ...]
    grid_G: F64
    survival_GE: F64

    @classmethod
    def fit(cls, predicted_N: F64, life_N: F64, asset_N: NDArray[np.int64], edges: tuple[float, ...]) -> LifeCurves:
        """life_N: capped at the last edge."""
        cap = edges[-1]
        grid = np.linspace(0.0, cap, 51)
        size = np.bincount(np.unique(asset_N, return_inverse=True)[1])
        weight_N = 1.0 / size[np.unique(asset_N, return_inverse=True)[1]]
        far_GN = (predicted_N[None, :] - grid[:, None]) / (BANDWIDTH * cap)
        near_GN = np.exp(-0.5 * far_GN**2) * weight_N + 1e-12 * weight_N
        order = np.argsort(life_N)
        survival = np.stack(
            [
                _centred(life_N[order], near_N[order], float(mean), edges)
                for near_N, mean in zip(near_GN, grid, strict=True)
            ]
        )
        # a longer expectation never has a worse curve
        return cls(edges, grid, np.maximum.accumulate(survival, axis=0))

    def __call__(self, predicted_N: F64) -> Curves:
        place = np.clip(predicted_N / self.edges[-1], 0.0, 1.0) * (len(self.grid_G) - 1)
        below = np.minimum(place.astype(int), len(self.grid_G) - 2)
        share = (place - below)[:, None]
        survival = (1.0 - share) * self.survival_GE[below] + share * self.survival_GE[below + 1]
        return Curves(self.edges, survival)

    def to_json(self) -> dict[str, Any]:
        return {"edges": self.edges, "grid_G": self.grid_G.tolist(), "survival_GE": self.survival_GE.tolist()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> LifeCurves:
        return cls(tuple(stored["edges"]), np.asarray(stored["grid_G"]), np.asarray(stored["survival_GE"]))


def _centred(life_N: F64, weight_N: F64, mean: float, edges: tuple[float, ...]) -> F64:
    """(E,) survival of the weighted lives, all moved by one shift such that the area under the curve is `mean`."""
    ends = np.asarray(edges)
    alive_N = np.append(np.cumsum(weight_N[::-1])[::-1], 0.0) / weight_N.sum()  # share that lives at least as long

    def survival(shift: float) -> F64:
        moved = alive_N[np.searchsorted(life_N, ends - shift, side="left")]
        return np.concatenate([[1.0], moved[1:]])

    low, high = -2.0 * ends[-1], 2.0 * ends[-1]
    for _ in range(40):
        middle = (low + high) / 2.0
        curve = survival(middle)
        area = float(((curve[1:] + curve[:-1]) / 2.0 * np.diff(ends)).sum())
        low, high = (middle, high) if area < mean else (low, middle)
    return survival((low + high) / 2.0)
