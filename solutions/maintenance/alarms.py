"""From probabilities to cases: hysteresis, k of n, one open case per asset; episodes, their cost, and a threshold for it.

An alarm rises when k of the last n scores reach the threshold and falls when the score is below `release` of it; an asset
whose case is open opens no second one. A case that no failure follows ends after `longest` hours, and an alarm that still
stands opens the next one: whoever always alarms is wrong once a week. What is judged are cases, not points: a case within
`horizon` hours before a failure has caught it, any other is false. N scores in order of asset and time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
HOURS_PER_MONTH = 730.0
Policy = Literal["cost", "warnings"]  # what a threshold is chosen for, within the budget of false cases
WARNING = 168.0  # hours before a failure within which a case has warned of it; a case that no failure follows ends then


@dataclass(frozen=True, kw_only=True)
class AlarmSettings:
    """When a case opens and closes.

    Args:
        threshold: probability that counts. k, n: so many of the last n scores must reach it.
        release: share of the threshold below which all of the last n scores must lie for the alarm to fall.
        rest: hours after a closed case before the same asset can open the next one.
        longest: hours after which a case ends though its alarm stands.
    """

    threshold: float = 0.5
    k: int = 2
    n: int = 3
    release: float = 0.5
    rest: float = 12.0
    longest: float = WARNING

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0 or not 0.0 <= self.release <= 1.0:
            raise ValueError(
                "`threshold` must be in (0, 1] and `release` in [0, 1]. "
                f"Received: threshold={self.threshold}, release={self.release}."
            )
        if not 1 <= self.k <= self.n or self.rest < 0.0 or self.longest <= 0.0:
            raise ValueError(f"`k` must be in [1, n], `rest` >= 0 and `longest` > 0. Received: {self}.")


@dataclass(frozen=True)
class Episode:
    """One alarm of an asset: first and last hour, and the highest score."""

    asset: int
    opened: int
    closed: int
    peak: float


def episodes(score_N: F64, asset_N: I64, hour_N: I64, settings: AlarmSettings) -> list[Episode]:
    """All alarms of all assets."""
    found: list[Episode] = []
    bounds = np.flatnonzero(np.diff(asset_N, prepend=asset_N[:1] - 1)) if len(asset_N) else np.zeros(0, int)
    for begin, end in zip(bounds, [*bounds[1:], len(asset_N)], strict=True):
        score, hour = score_N[begin:end], hour_N[begin:end]
        high = np.convolve(score >= settings.threshold, np.ones(settings.n, int))[: len(score)] >= settings.k
        calm_for = np.convolve(score < settings.release * settings.threshold, np.ones(settings.n, int))[: len(score)]
        rises, falls = np.flatnonzero(high), np.flatnonzero(calm_for >= settings.n)
        place, free_from = 0, -math.inf
        while True:
            rises = rises[(rises >= place) & (hour[rises] >= free_from)]
            if not len(rises):
                break
            later = falls[falls > rises[0]]
            fallen = int(later[0]) if len(later) else len(score) - 1
            expired = int(np.searchsorted(hour, hour[rises[0]] + settings.longest))
            last = min(fallen, expired, len(score) - 1)
            found.append(_episode(asset_N[begin], hour, score, int(rises[0]), last))
            place, free_from = last + 1, hour[last] + settings.rest
    return found


def _episode(asset: int, hour: I64, score: F64, first: int, last: int) -> Episode:
    return Episode(int(asset), int(hour[first]), int(hour[last]), float(score[first : last + 1].max()))


@dataclass(frozen=True)
class EventFigures:
    """How a set of alarms fared.

    Attributes:
        recall: share of failures with a case open within the horizon before them. lead_hours: median warning of those.
        false_per_asset_month: cases that no failure followed within the horizon.
        leads: warning before each failure in the order of time, NaN for one that was missed. false_assets: the asset of
            each false case.
    """

    failures: int
    caught: int
    false: int
    recall: float
    lead_hours: float
    false_per_asset_month: float
    leads: tuple[float, ...] = ()
    false_assets: tuple[int, ...] = ()


def judge(
    found: list[Episode], failures: list[tuple[int, int]], asset_hours: float, *, horizon: float = WARNING
) -> EventFigures:
    """Match cases and failures (asset, hour); a failure is warned of by the first case open in the horizon before it.

    A case that opened earlier than the horizon and is still open counts from the horizon on: a standing alarm earns no
    longer lead than it was asked for, and each case warns of one failure at most.
    """
    used: set[int] = set()
    leads = [math.nan] * len(failures)
    for f, (asset, hour) in enumerate(sorted(failures, key=lambda f: f[1])):
        for i, episode in enumerate(found):
            if i not in used and episode.asset == asset and episode.opened < hour <= episode.closed + horizon:
                used.add(i)
                leads[f] = min(float(hour - episode.opened), horizon)
                break
    false, caught = len(found) - len(used), [lead for lead in leads if not math.isnan(lead)]
    return EventFigures(
        failures=len(failures),
        caught=len(caught),
        false=false,
        recall=len(caught) / len(failures) if failures else math.nan,
        lead_hours=float(np.median(caught)) if caught else 0.0,
        false_per_asset_month=false / max(asset_hours / HOURS_PER_MONTH, 1e-9),
        leads=tuple(leads),
        false_assets=tuple(episode.asset for i, episode in enumerate(found) if i not in used),
    )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What things cost, in any one currency.

    Args:
        unplanned: a failure nobody warned of. planned: the same repair, planned. inspection: looking at a case that was
            nothing. least_notice: hours that planning needs; a shorter warning saves nothing.
    """

    unplanned: float = 10_000.0
    planned: float = 2_500.0
    inspection: float = 500.0
    least_notice: float = 12.0

    def __post_init__(self) -> None:
        if (
            min(self.unplanned, self.planned, self.inspection, self.least_notice) < 0.0
            or self.unplanned <= self.planned
        ):
            raise ValueError(f"costs must be >= 0 and `unplanned` above `planned`. Received: {self}.")

    def of(self, found: list[Episode], failures: list[tuple[int, int]], *, horizon: float = WARNING) -> float:
        """Cost of a period with these alarms."""
        notice = int(self.least_notice)
        late = [replace(e, opened=e.opened + notice, closed=max(e.closed, e.opened + notice)) for e in found]
        planned = judge(late, failures, 1.0, horizon=horizon).caught
        false = judge(found, failures, 1.0, horizon=horizon).false
        return planned * self.planned + (len(failures) - planned) * self.unplanned + false * self.inspection


@dataclass(frozen=True)
class CostCurve:
    """Cost of each threshold tried, and figures beside it."""

    thresholds: tuple[float, ...]
    costs: tuple[float, ...]
    figures: tuple[EventFigures, ...]

    def best(self, *, budget: float | None = None) -> float:
        """The cheapest threshold within a budget of false cases per asset-month; the highest one if none is."""
        allowed = [i for i, f in enumerate(self.figures) if budget is None or f.false_per_asset_month <= budget] or [
            len(self.thresholds) - 1
        ]
        return self.thresholds[min(allowed, key=lambda i: (self.costs[i], -self.thresholds[i]))]

    def most_warnings(self, *, budget: float) -> float:
        """The threshold that warns of most failures within a budget of false cases; of equals, the earliest warnings."""
        allowed = [i for i, f in enumerate(self.figures) if f.false_per_asset_month <= budget] or [
            len(self.thresholds) - 1
        ]
        return self.thresholds[max(allowed, key=lambda i: (self.figures[i].caught, self.figures[i].lead_hours))]

    def choose(self, policy: Policy, *, budget: float) -> float:
        """By cost, or by warnings."""
        return self.best(budget=budget) if policy == "cost" else self.most_warnings(budget=budget)


def cost_curve(
    score_N: F64,
    asset_N: I64,
    hour_N: I64,
    failures: list[tuple[int, int]],
    *,
    costs: Costs,
    settings: AlarmSettings,
    horizon: float = WARNING,
    tried: int = 40,
) -> CostCurve:
    """Cost over thresholds at quantiles of the scores."""
    levels = np.unique(np.quantile(score_N, 1.0 - np.geomspace(0.5, 1e-3, tried)).clip(1e-6, 1.0))
    all_costs, all_figures = [], []
    for level in levels:
        found = episodes(score_N, asset_N, hour_N, replace(settings, threshold=float(level)))
        all_costs.append(costs.of(found, failures, horizon=horizon))
        all_figures.append(judge(found, failures, float(len(score_N)), horizon=horizon))
    return CostCurve(tuple(map(float, levels)), tuple(all_costs), tuple(all_figures))


def f1_threshold(score_N: F64, positive_N: NDArray[np.bool_]) -> float:
    """The threshold with the best point-wise F1: what is customary, and what the cost-optimal one is compared with."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, levels = precision_recall_curve(positive_N, score_N)
    f1 = 2.0 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(levels[int(np.argmax(f1[:-1]))])
