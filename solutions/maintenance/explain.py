"""Why an asset is at risk: its sensors by residual, its log entries, and a test that takes the top ones away.

A cause is shown as one only when the risk falls more when it is replaced by normal operation than when other sensors are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.maintenance.causes import rank
from solutions.maintenance.data import HOUR
from solutions.maintenance.features import Features
from solutions.maintenance.model import Prepared
from solutions.maintenance.monitor import LOOK_BACK, Monitor
from solutions.maintenance.panel import Panel, hours_of

F64 = NDArray[np.float64]
TOP = 3
TRIALS = 5
LEAST_RATIO = 2.0  # the drop from the top sensors over the drop from random ones


@dataclass(frozen=True)
class Deletion:
    """Cumulative hazard within the horizon: as it is, without the top sensors, without random ones (mean of trials)."""

    risk: float
    without_top: float
    without_random: float

    @property
    def ratio(self) -> float:
        """How much more the risk falls without the top sensors than without random ones."""
        return (self.risk - self.without_top) / max(self.risk - self.without_random, 1e-3 * max(self.risk, 1e-9))

    @property
    def passed(self) -> bool:
        return self.risk > self.without_top and self.ratio >= LEAST_RATIO


@dataclass(frozen=True)
class Explanation:
    """sensors: (name, residual) by size. suspects: past findings by likeness. log: the newest entries that count."""

    sensors: tuple[tuple[str, float], ...]
    suspects: tuple[tuple[str, float], ...]
    log: pd.DataFrame
    deletion: Deletion


def explain(monitor: Monitor, prepared: Prepared, row: int, *, seed: int = 0) -> Explanation:
    """Explain the score of one row of a panel."""
    panel = prepared.panel
    residual_S = monitor.residuals(prepared, np.array([row]))[0]
    ranked = rank(residual_S, monitor.alive)
    asset, hour = panel.assets[panel.asset_R[row]], int(panel.hour_R[row])
    events = prepared.history.events
    when = hours_of(events["time"])
    near = (events["asset"] == asset) & (when <= hour) & (when > hour - LOOK_BACK)
    return Explanation(
        sensors=tuple(ranked),
        suspects=tuple(monitor.signatures.suspects(residual_S)),
        log=events[near].sort_values("time", ascending=False).head(8).reset_index(drop=True),
        deletion=deletion_test(monitor, prepared, row, [name for name, _ in ranked[:TOP]], seed=seed),
    )


def deletion_test(monitor: Monitor, prepared: Prepared, row: int, top: list[str], *, seed: int = 0) -> Deletion:
    """Replace sensors by what is normal in their condition, from the look-back on, and score again."""
    alone = _only(prepared, row)
    last = np.array([len(alone.panel) - 1])

    def risk(names: list[str]) -> float:
        changed = alone
        if names:
            panel = _normalised(monitor, alone.panel, names)
            changed = Prepared(alone.history, panel, monitor.model.featurizer.transform(alone.history, panel))
        p = float(monitor.model.curves(changed, last).fails_within(monitor.horizon)[0])
        return float(-np.log(max(1.0 - p, 1e-6)))

    rng = np.random.default_rng(seed)
    others = [name for name in monitor.alive if name not in top]
    trials = [list(rng.choice(others, min(len(top), len(others)), replace=False)) for _ in range(TRIALS)]
    return Deletion(risk([]), risk(top), float(np.mean([risk(names) for names in trials])) if others else risk([]))


def _only(prepared: Prepared, row: int) -> Prepared:
    """The asset of a row alone, its newest rows up to it."""
    panel = prepared.panel
    first = max(int(panel.start_R[row]), row - LOOK_BACK + 1)
    part = slice(first, row + 1)
    name = panel.assets[panel.asset_R[row]]
    count = row + 1 - first
    alone = Panel(
        assets=(name,),
        sensors=panel.sensors,
        asset_R=np.zeros(count, np.int64),
        hour_R=panel.hour_R[part],
        start_R=np.zeros(count, np.int64),
        x_RS=panel.x_RS[part],
        condition_RC=panel.condition_RC[part],
    )
    history = prepared.history.of([name])
    until = np.datetime64(0, "us") + int(panel.hour_R[row]) * HOUR
    events = history.events[history.events["time"] <= until].reset_index(drop=True)
    return Prepared(replace(history, events=events), alone, _features_of(prepared, part))


def _features_of(prepared: Prepared, part: slice) -> Features:
    features = prepared.features
    return replace(
        features,
        x_RF=features.x_RF[part],
        z_RS=features.z_RS[part],
        log_RL=features.log_RL[part],
        log_age_RL=features.log_age_RL[part],
    )


def _normalised(monitor: Monitor, panel: Panel, names: list[str]) -> Panel:
    conditions = monitor.model.featurizer.conditions
    mean_RS = conditions.mean_KS[conditions.of(panel.condition_RC)]
    x = panel.x_RS.copy()
    for name in names:
        s = monitor.model.featurizer.sensors.index(name)
        x[:, panel.sensors.index(name)] = mean_RS[:, s]
    return replace(panel, x_RS=x)
