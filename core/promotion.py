"""The gate: a challenger replaces the champion only when a paired bootstrap over independent units says it is better.

"The challenger scored higher" promotes an equal model every second time; a lower bound of the paired difference about
one time in twenty. N samples, U units of independence (card, patient, machine).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from core.results import Interval, Metric, bootstrap_interval, check_samples

# percentile bounds of a handful of units are too narrow; from 30 the gate keeps its level in simulation (3-6 %)
LEAST_UNITS = 30


@dataclass(frozen=True)
class Verdict:
    """Promote or not, and why. A refusal for want of evidence has `difference`, `low` and `high` NaN.

    Attributes:
        difference: gain of the challenger; positive is better, also for metrics where lower is better.
        low, high: its one-sided bounds at the gate's confidence.
        units, positive_units: how many units were compared, and how many of them hold a positive.
    """

    promote: bool
    reasons: tuple[str, ...]
    difference: float
    low: float
    high: float = math.nan
    units: int = 0
    positive_units: int = 0


class NotPromotedError(RuntimeError):
    """The gate refused; `vigil` ends with exit code 3."""

    exit_code = 3


def decide(
    champion_N: ArrayLike,
    challenger_N: ArrayLike,
    target_N: ArrayLike,
    unit_N: ArrayLike,
    *,
    metric: Metric = "ap",
    confidence: float = 0.95,
    minimum_gain: float = 0.0,
    replicates: int = 1000,
    least_units: int = LEAST_UNITS,
    seed: int = 0,
) -> Verdict:
    """Promote when the lower bound of the paired difference exceeds `minimum_gain`.

    Both models are weighted alike in every replicate, so what makes a sample of units hard for both cancels.

    Args:
        champion_N, challenger_N: scores of both models on the same samples.
        target_N: the truth, 0 or 1; samples with unknown labels must be left out. Any numbers for a callable metric.
        unit_N: what is resampled.
        metric: ap, auc, brier (of probabilities, lower is better), or a callable (target_N, score_N, weight_N) where
            higher is better.
        least_units: refuse with fewer units (for ap, auc and brier: units with a positive, and units without).

    Raises:
        ValueError: a setting is out of range, lengths differ, a score is not finite or a target is not 0 or 1.
    """
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"`confidence` must be in (0.5, 1). Received: confidence={confidence}.")
    if minimum_gain < 0.0 or least_units < 2:
        raise ValueError(
            "`minimum_gain` must be >= 0 and `least_units` >= 2. "
            f"Received: minimum_gain={minimum_gain}, least_units={least_units}."
        )
    binary = not callable(metric)
    check_samples(target_N, champion_N, unit_N, binary=binary)
    target, _, unit = check_samples(target_N, challenger_N, unit_N, binary=binary)
    units = int(unit.max()) + 1
    positive_units = len(np.unique(unit[target])) if binary else units
    negative_units = len(np.unique(unit[~target])) if binary else units
    for found, what in ((positive_units, "a positive"), (negative_units, "a negative")):
        if found < least_units:
            kind = f"units with {what}" if binary else "units"
            why = f"too little evidence: {found} {kind}, at least {least_units} are needed"
            return Verdict(False, (why,), math.nan, math.nan, math.nan, units, positive_units)
    interval = _gain(champion_N, challenger_N, target_N, unit_N, metric, replicates, seed)
    low, high = (float(np.nanquantile(interval.replicates_R, q)) for q in (1.0 - confidence, confidence))
    better = low > minimum_gain
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    why = (
        f"{name}: gain {interval.mean:+.4f}, {confidence:.0%} lower bound {low:+.4f} "
        f"{'exceeds' if better else 'does not exceed'} {minimum_gain:+.4f} "
        f"({units} units, {positive_units} with a positive)"
    )
    return Verdict(better, (why,), interval.mean, low, high, units, positive_units)


def _gain(
    champion_N: ArrayLike,
    challenger_N: ArrayLike,
    target_N: ArrayLike,
    unit_N: ArrayLike,
    metric: Metric,
    replicates: int,
    seed: int,
) -> Interval:
    # a Brier score is an error: the champion's less the challenger's is the gain
    first, second = (champion_N, challenger_N) if metric == "brier" else (challenger_N, champion_N)
    return bootstrap_interval(metric, target_N, first, unit_N, against_N=second, replicates=replicates, seed=seed)
