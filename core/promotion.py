"""The gate: a challenger replaces the champion only when a paired bootstrap says that it is better.

"The challenger scored higher" promotes an equal model 45 % of the time; a lower bound of the paired difference 4 %.

N samples, U units of independence (card, patient, machine).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.results import bootstrap_interval

LEAST_UNITS = 30


@dataclass(frozen=True)
class Verdict:
    """promote, and why; `difference` is challenger less champion, `low` its one-sided lower bound."""

    promote: bool
    reasons: tuple[str, ...]
    difference: float
    low: float


class NotPromotedError(RuntimeError):
    """The gate refused."""

    exit_code = 3


def decide(
    champion_N: NDArray[np.float64],
    challenger_N: NDArray[np.float64],
    target_N: NDArray[np.bool_],
    unit_N: NDArray[Any],
    *,
    metric: Literal["ap", "auc"] = "ap",
    confidence: float = 0.95,
    minimum_gain: float = 0.0,
    replicates: int = 200,
    seed: int = 0,
) -> Verdict:
    """Promote when the lower bound of the paired difference exceeds `minimum_gain`.

    Args:
        champion_N, challenger_N: scores of both models on the same samples; target_N: the truth; unit_N: what is resampled.
    """
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"`confidence` must be in (0.5, 1). Received: confidence={confidence}.")
    lengths = {len(champion_N), len(challenger_N), len(target_N), len(unit_N)}
    if len(lengths) != 1:
        raise ValueError(f"scores, targets and units must have one length. Received: {sorted(lengths)}.")
    hit_units = len(np.unique(np.asarray(unit_N)[target_N]))
    if hit_units < LEAST_UNITS:
        reason = f"too little evidence: {hit_units} units with a positive, {LEAST_UNITS} are needed"
        return Verdict(False, (reason,), float("nan"), float("nan"))
    interval = bootstrap_interval(
        metric, target_N, challenger_N, unit_N, against_N=champion_N, replicates=replicates, seed=seed
    )
    low = float(np.nanquantile(interval.replicates_R, 1.0 - confidence))
    better = low > minimum_gain
    verb = "exceeds" if better else "does not exceed"
    reason = (
        f"{metric}: difference {interval.mean:+.4f}, {confidence:.0%} lower bound {low:+.4f} {verb} {minimum_gain:+.4f} "
        f"({hit_units} units with a positive)"
    )
    return Verdict(better, (reason,), interval.mean, low)
