"""Probabilities that mean what they say: temperature, calibration error, conformal intervals.

N samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """probability = sigmoid(logit / temperature) (Guo et al. 2017, arXiv 1706.04599)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"`temperature` must be > 0. Received: temperature={self.temperature}.")

    @classmethod
    def fit(cls, logit_N: F64, target_N: F64) -> Temperature:
        """Minimise the log loss on a slice that the model has not seen."""

        def loss(log_temperature: float) -> float:
            z = logit_N / np.exp(log_temperature)
            return float((np.logaddexp(0.0, z) - target_N * z).mean())

        return cls(temperature=float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x)))

    def __call__(self, logit_N: F64) -> F64:
        return np.asarray(expit(logit_N / self.temperature))


def correct_for_sampling(logit_N: F64, keep_rate: float) -> F64:
    """Logits of the full population from a model trained on all positives and `keep_rate` of the negatives."""
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(f"`keep_rate` must be in (0, 1]. Received: keep_rate={keep_rate}.")
    return np.asarray(logit_N + np.log(keep_rate))


def expected_calibration_error(probability_N: F64, target_N: F64, *, bins: int = 15) -> float:
    """Mean |observed - predicted| over bins of equal mass: rare events leave equal-width bins empty."""
    if len(probability_N) != len(target_N) or not len(target_N):
        raise ValueError(
            f"need as many targets as probabilities, at least one. Received: {len(probability_N)}, {len(target_N)}."
        )
    order = np.argsort(probability_N, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [abs(float(target_N[part].mean() - probability_N[part].mean())) * len(part) for part in parts]
    return sum(gaps) / len(order)


def conformal_width(residual_N: F64, *, coverage: float = 0.9) -> float:
    """Half width of a split-conformal interval from absolute residuals of a calibration set (Lei et al. 2018)."""
    n = len(residual_N)
    rank = int(np.ceil((n + 1) * coverage))
    if not n or rank > n:
        raise ValueError(
            f"{coverage:.0%} coverage needs at least {int(np.ceil(coverage / (1 - coverage)))} residuals. Received: {n}."
        )
    return float(np.sort(np.abs(residual_N))[rank - 1])
