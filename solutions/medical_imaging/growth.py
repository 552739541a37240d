"""Growth against a prior study: change of volume and doubling time with intervals, and when they must not be given.

Schwartz 1961: doubling time = days * ln 2 / ln(V2 / V1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

THICKEST_MM = 2.5  # slices above this give no doubling time
LEAST_DAYS = 28
SIGNIFICANT = 0.25  # change of volume beyond what repeated scans show (NELSON, Gietema et al. 2007)


@dataclass(frozen=True)
class Seen:
    """A nodule at one time: volume with its interval, mean diameter, and how it was scanned."""

    day: int
    volume_mm3: float
    low_mm3: float
    high_mm3: float
    mean_mm: float
    slice_mm: float
    kernel: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.low_mm3 <= self.volume_mm3 <= self.high_mm3:
            raise ValueError(
                "a volume must be 0 < low <= volume <= high. "
                f"Received: low={self.low_mm3}, volume={self.volume_mm3}, high={self.high_mm3}."
            )


@dataclass(frozen=True)
class Growth:
    """Relative change and doubling time in days (negative: shrinking), both with the interval that the volumes allow.

    Args:
        doubling_days: None when the guards forbid it, with the reasons in `why_not`.
        lung_rads_growth: more than 1.5 mm of mean diameter within 12 months.
    """

    change: float
    change_low: float
    change_high: float
    doubling_days: float | None
    doubling_low: float | None
    doubling_high: float | None
    grown: bool
    lung_rads_growth: bool
    why_not: tuple[str, ...]


def compare(prior: Seen, current: Seen) -> Growth:
    """Growth from prior to current.

    Raises:
        ValueError: the prior is not older.
    """
    days = current.day - prior.day
    if days <= 0:
        raise ValueError(f"the prior study must be older than the current one. Received: {-days} days later.")
    change = current.volume_mm3 / prior.volume_mm3 - 1.0
    low, high = current.low_mm3 / prior.high_mm3 - 1.0, current.high_mm3 / prior.low_mm3 - 1.0
    guards = []
    if max(prior.slice_mm, current.slice_mm) > THICKEST_MM:
        guards.append(f"slices of {max(prior.slice_mm, current.slice_mm):.2f} mm, at most {THICKEST_MM} are needed")
    if days < LEAST_DAYS:
        guards.append(f"{days} days between the studies, at least {LEAST_DAYS} are needed")
    if prior.kernel != current.kernel:
        guards.append("the studies were reconstructed with different kernels")
    if not guards and low <= 0.0 <= high:
        guards.append("the intervals of the volumes overlap: no change can be told from none")
    doubling = None if guards else doubling_time(days, 1.0 + change)
    bounds = (None, None) if guards else (doubling_time(days, 1.0 + high), doubling_time(days, 1.0 + low))
    mm = round(current.mean_mm - prior.mean_mm, 1)
    return Growth(
        change=change,
        change_low=low,
        change_high=high,
        doubling_days=doubling,
        doubling_low=bounds[0],
        doubling_high=bounds[1],
        grown=change >= SIGNIFICANT and low > 0.0,
        lung_rads_growth=mm > 1.5 and days <= 366,
        why_not=tuple(guards),
    )


def doubling_time(days: float, ratio: float) -> float:
    """Days in which the volume doubles when it changed by `ratio` in `days`; negative when it shrank."""
    if not days > 0.0 or not ratio > 0.0 or ratio == 1.0:
        raise ValueError(f"`days` must be > 0 and `ratio` > 0 and not 1. Received: days={days}, ratio={ratio}.")
    return days * math.log(2.0) / math.log(ratio)
