"""Probabilities that mean what they say, and intervals that cover as often as they say.

N samples, C classes. Fit every calibrator on a slice that the model was not trained on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit

from core.results import check_samples

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """probability = sigmoid(logit / temperature) (Guo et al. 2017, arXiv 1706.04599). Keeps the ranking."""

    kind: ClassVar[str] = "temperature"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise ValueError(f"`temperature` must be > 0. Received: temperature={self.temperature}.")

    @classmethod
    def fit(cls, logit_N: ArrayLike, target_N: ArrayLike) -> Temperature:
        """Minimise the log loss over temperatures from .05 to 20."""
        target, logit, _ = check_samples(target_N, logit_N, None)

        def loss(log_temperature: float) -> float:
            return _log_loss(logit / math.exp(log_temperature), target)

        return cls(temperature=math.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))

    def __call__(self, logit_N: ArrayLike) -> F64:
        return np.asarray(expit(np.asarray(logit_N, np.float64) / self.temperature))


@dataclass(frozen=True, kw_only=True)
class Platt:
    """probability = sigmoid(slope * logit + intercept) (Platt 1999). The intercept also repairs a wrong base rate."""

    kind: ClassVar[str] = "platt"
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept)):
            raise ValueError(f"`slope` and `intercept` must be finite. Received: {self}.")

    @classmethod
    def fit(cls, logit_N: ArrayLike, target_N: ArrayLike) -> Platt:
        """Minimise the log loss against Platt's smoothed targets, which keep separable data finite."""
        target, logit, _ = check_samples(target_N, logit_N, None)
        positives, negatives = int(target.sum()), int((~target).sum())
        soft = np.where(target, (positives + 1) / (positives + 2), 1 / (negatives + 2))  # Platt 1999, section 2.2
        centre, spread = float(logit.mean()), max(float(logit.std()), 1e-12)
        z = (logit - centre) / spread  # the optimiser sees two parameters of the same size

        def loss(theta: F64) -> tuple[float, F64]:
            logit_N = theta[0] * z + theta[1]
            error_N = expit(logit_N) - soft
            return _log_loss(logit_N, soft), np.array([(error_N * z).mean(), error_N.mean()])

        slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
        return cls(slope=float(slope / spread), intercept=float(intercept - slope * centre / spread))

    def __call__(self, logit_N: ArrayLike) -> F64:
        return np.asarray(expit(self.slope * np.asarray(logit_N, np.float64) + self.intercept))


@dataclass(frozen=True, kw_only=True)
class Isotonic:
    """A rising step curve from logit to probability (Zadrozny and Elkan 2002). Ties scores, needs much data."""

    kind: ClassVar[str] = "isotonic"
    logits: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.logits) != len(self.probabilities) or not self.logits:
            raise ValueError(
                "`logits` and `probabilities` must have one length, at least one knot. "
                f"Received: {len(self.logits)}, {len(self.probabilities)}."
            )

    @classmethod
    def fit(cls, logit_N: ArrayLike, target_N: ArrayLike) -> Isotonic:
        from sklearn.isotonic import IsotonicRegression

        target, logit, _ = check_samples(target_N, logit_N, None)
        least = 1.0 / (len(target) + 2)  # never 0 or 1: the log loss of a surprise stays finite
        curve = IsotonicRegression(y_min=least, y_max=1.0 - least).fit(logit, target.astype(float))
        return cls(logits=tuple(map(float, curve.X_thresholds_)), probabilities=tuple(map(float, curve.y_thresholds_)))

    def __call__(self, logit_N: ArrayLike) -> F64:
        return np.interp(np.asarray(logit_N, np.float64), self.logits, self.probabilities)


def correct_for_sampling(logit_N: ArrayLike, keep_rate: float) -> F64:
    """Logits of the full population from a model trained on all positives and `keep_rate` of the negatives.

    Dropping negatives multiplies the odds by 1 / keep_rate (King and Zeng 2001, section 4.1).
    """
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(f"`keep_rate` must be in (0, 1]. Received: keep_rate={keep_rate}.")
    return np.asarray(np.asarray(logit_N, np.float64) + math.log(keep_rate))


def expected_calibration_error(
    probability_N: ArrayLike, target_N: ArrayLike, *, bins: int = 15, binning: Literal["mass", "width"] = "mass"
) -> float:
    """Mean |observed - predicted| over bins, weighted by their size.

    Args:
        bins: 15 as in arXiv 1706.04599.
        binning: "mass" puts as many samples in each bin: with rare events all but the first of the equal-"width" bins
            are nearly empty. Equal probabilities always share a bin.
    """
    target, probability = _probabilities(target_N, probability_N)
    if bins < 1:
        raise ValueError(f"`bins` must be >= 1. Received: bins={bins}.")
    if binning == "width":
        bin_N = np.minimum((probability * bins).astype(int), bins - 1)
    elif binning == "mass":
        _, group_N, size_G = np.unique(probability, return_inverse=True, return_counts=True)
        first_G = np.cumsum(size_G) - size_G
        bin_N = (first_G * bins // len(probability))[group_N]
    else:
        raise ValueError(f"`binning` must be mass or width. Received: binning={binning!r}.")
    gap_B = np.bincount(bin_N, target - probability, bins)
    return float(np.abs(gap_B).sum() / len(target))


def brier(probability_N: ArrayLike, target_N: ArrayLike) -> float:
    """Mean squared error of probabilities."""
    target, probability = _probabilities(target_N, probability_N)
    return float(np.mean((probability - target) ** 2))


@dataclass(frozen=True, kw_only=True)
class ConformalInterval:
    """prediction ± width * scale, which holds the truth in `coverage` of exchangeable samples (Lei et al. 2018)."""

    kind: ClassVar[str] = "conformal_interval"
    width: float
    coverage: float = 0.9

    def __post_init__(self) -> None:
        if not (0.0 <= self.width < math.inf and 0.0 < self.coverage < 1.0):
            raise ValueError(f"`width` must be >= 0 and `coverage` in (0, 1). Received: {self}.")

    @classmethod
    def fit(
        cls,
        prediction_N: ArrayLike,
        target_N: ArrayLike,
        *,
        scale_N: ArrayLike | None = None,
        coverage: float = 0.9,
    ) -> ConformalInterval:
        """Fit on a calibration slice; `scale_N` (> 0) guesses each error's size, for intervals of varying width."""
        residual = np.abs(np.asarray(target_N, np.float64) - np.asarray(prediction_N, np.float64))
        return cls(width=_conformal_quantile(residual / _scale(scale_N), coverage), coverage=coverage)

    def __call__(self, prediction_N: ArrayLike, scale_N: ArrayLike | None = None) -> tuple[F64, F64]:
        """Lower and upper bounds."""
        prediction, half = np.asarray(prediction_N, np.float64), self.width * _scale(scale_N)
        return prediction - half, prediction + half


@dataclass(frozen=True, kw_only=True)
class ConformalSet:
    """All classes with probability >= threshold: holds the truth in `coverage` of samples (Sadinle et al. 2019)."""

    kind: ClassVar[str] = "conformal_set"
    threshold: float
    coverage: float = 0.9

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and 0.0 < self.coverage < 1.0):
            raise ValueError(f"`threshold` must be finite and `coverage` in (0, 1). Received: {self}.")

    @classmethod
    def fit(cls, probability_NC: ArrayLike, target_N: ArrayLike, *, coverage: float = 0.9) -> ConformalSet:
        """Fit on a calibration slice; `target_N` holds class numbers."""
        probability, target = np.asarray(probability_NC, np.float64), np.asarray(target_N)
        if probability.ndim != 2 or target.shape != probability.shape[:1]:
            raise ValueError(
                "need probabilities (N, C) and as many targets. "
                f"Received: shapes {probability.shape} and {target.shape}."
            )
        true_N = probability[np.arange(len(target)), target]
        return cls(threshold=1.0 - _conformal_quantile(1.0 - true_N, coverage), coverage=coverage)

    def __call__(self, probability_NC: ArrayLike) -> NDArray[np.bool_]:
        """Members of each set (N, C); the most likely class always is one."""
        probability = np.asarray(probability_NC, np.float64)
        chosen = probability >= self.threshold
        chosen[np.arange(len(probability)), probability.argmax(1)] = True
        return chosen


Calibrator = Temperature | Platt | Isotonic | ConformalInterval | ConformalSet
_KINDS: dict[str, type[Calibrator]] = {
    c.kind: c for c in (Temperature, Platt, Isotonic, ConformalInterval, ConformalSet)
}


def calibrator_state(calibrator: Calibrator) -> dict[str, Any]:
    """Plain JSON of any class above."""
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(calibrator).items()}
    return {"kind": calibrator.kind, **fields}


def load_calibrator(state: Mapping[str, Any]) -> Calibrator:
    """The calibrator that `calibrator_state` described."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in state.items() if k != "kind"}
    kind = state.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(sorted(_KINDS))}. Received: kind={kind!r}.")
    return _KINDS[kind](**fields)


def _log_loss(logit_N: F64, target_N: NDArray[Any]) -> float:
    return float((np.logaddexp(0.0, logit_N) - target_N * logit_N).mean())


def _probabilities(target_N: ArrayLike, probability_N: ArrayLike) -> tuple[NDArray[np.bool_], F64]:
    target, probability, _ = check_samples(target_N, probability_N, None)
    if probability.min() < 0.0 or probability.max() > 1.0:
        raise ValueError(
            f"probabilities must be in [0, 1]. Received: from {probability.min():.4g} to {probability.max():.4g}."
        )
    return target, probability


def _scale(scale_N: ArrayLike | None) -> F64:
    scale = np.asarray(1.0 if scale_N is None else scale_N, np.float64)
    if not (scale > 0.0).all():
        raise ValueError(f"`scale_N` must be > 0. Received: a smallest value of {scale.min()}.")
    return scale


def _conformal_quantile(score_N: F64, coverage: float) -> float:
    """The ceil((N + 1) coverage)-th smallest score: the + 1 is the sample to come."""
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"`coverage` must be in (0, 1). Received: coverage={coverage}.")
    if not np.isfinite(score_N).all():
        raise ValueError(f"scores must be finite. Received: {int((~np.isfinite(score_N)).sum())} that are not.")
    n = len(score_N)
    rank = math.ceil((n + 1) * coverage - 1e-9)  # (N + 1) .9 of 9 samples is 9, not 9.000000000000002
    if rank > n:
        needed = math.ceil(coverage / (1.0 - coverage) - 1e-9)
        raise ValueError(f"{coverage:.0%} coverage needs at least {needed} calibration samples. Received: {n}.")
    return float(np.partition(score_N, rank - 1)[rank - 1])
