"""Two kinds of drift, kept apart: the input has shifted (two-sample tests), or the errors have (ADWIN).

N samples, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

F64 = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """alpha: family-wise level of the input test. least_effect: Kolmogorov-Smirnov distance that matters; with enough
    samples any difference is significant. delta: ADWIN's confidence (Bifet and Gavalda 2007)."""

    alpha: float = 0.01
    least_effect: float = 0.1
    delta: float = 0.002
    rows: int = 5_000

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < 1.0 or not 0.0 < self.least_effect < 1.0 or not 0.0 < self.delta < 1.0:
            raise ValueError(f"`alpha`, `least_effect` and `delta` must be in (0, 1). Received: {self}.")


@dataclass(frozen=True)
class DriftReport:
    """input_shift: features that moved, with their distance. error_before / error_after: mean loss around the change."""

    input_shift: dict[str, float]
    error_shift: bool
    error_before: float
    error_after: float

    @property
    def any(self) -> bool:
        return bool(self.input_shift) or self.error_shift


def input_shift(reference_NF: F64, current_NF: F64, names: list[str], settings: DriftSettings) -> dict[str, float]:
    """Features whose distribution moved: significant after Bonferroni, and by an effect that matters."""
    rng = np.random.default_rng(0)

    def some(x_NF: F64) -> F64:
        return x_NF if len(x_NF) <= settings.rows else x_NF[rng.choice(len(x_NF), settings.rows, replace=False)]

    reference, current = some(reference_NF), some(current_NF)
    moved = {}
    for f, name in enumerate(names):
        test = ks_2samp(reference[:, f], current[:, f])
        if test.pvalue < settings.alpha / len(names) and test.statistic >= settings.least_effect:
            moved[name] = float(test.statistic)
    return moved


def error_shift(error_N: F64, settings: DriftSettings) -> tuple[bool, float, float]:
    """Whether the errors (in [0, 1], in order of time) got worse, and their means before and after the newest cut."""
    from river.drift import ADWIN

    detector = ADWIN(delta=settings.delta)
    cut = 0
    for i, error in enumerate(error_N):
        before = detector.estimation
        detector.update(float(error))
        if detector.drift_detected and detector.estimation > before:
            cut = i + 1 - int(detector.width)
    if cut <= 0:
        mean = float(np.mean(error_N)) if len(error_N) else 0.0
        return False, mean, mean
    return True, float(np.mean(error_N[:cut])), float(np.mean(error_N[cut:]))


def detect(
    reference_NF: F64, current_NF: F64, names: list[str], error_N: F64, settings: DriftSettings | None = None
) -> DriftReport:
    """Both tests."""
    options = settings or DriftSettings()
    shifted, before, after = error_shift(error_N, options)
    return DriftReport(input_shift(reference_NF, current_NF, names, options), shifted, before, after)
