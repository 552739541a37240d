"""What watches a fleet: the failure model, what healthy sensors do, what normal operation looks like, and when to alarm.

One directory holds all of it. Scoring takes a history as it was known at a moment and answers for every asset; ill sensors
are taken out first and reported, so that they never pass for a failure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.maintenance.alarms import WARNING, AlarmSettings, CostCurve, Costs, Policy, cost_curve
from solutions.maintenance.causes import Reconstruction, Signatures, fit_reconstruction, windowed
from solutions.maintenance.data import HOUR, History, InputError
from solutions.maintenance.features import Featurizer
from solutions.maintenance.labels import Labels, make_labels
from solutions.maintenance.model import FailureModel, HeldOut, Prepared, Progress, fit_model, frame_of
from solutions.maintenance.panel import Panel, hours_of, make_panel
from solutions.maintenance.quality import Finding, QualitySettings, SensorHealth
from solutions.maintenance.task import Task

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
AT_ONCE = 200  # assets that are scored together: memory stays flat however large the fleet
LOOK_BACK = 240  # hours of readings that a score looks at; events count whatever their age
QUIET = 168.0  # hours without a failure on both sides that make a row normal operation
BUDGET = 1.0  # false cases per asset-month


@dataclass
class Monitor:
    """`horizon` is the one that alarms go by, in hours; no row from the hour `trained_until` on was trained on."""

    model: FailureModel
    health: SensorHealth
    reconstruction: Reconstruction
    signatures: Signatures
    alarm: AlarmSettings
    horizon: float = 72.0
    trained_until: int = 0

    def prepare(self, history: History, *, until: np.datetime64 | None = None) -> tuple[Prepared, list[Finding]]:
        """Grid and features, ill sensors taken out; `until` also cuts the history to its newest readings.

        Raises:
            InputError: the history has other operating conditions than the model was trained with.
        """
        expected = len(self.model.featurizer.conditions.shift_C)
        if len(history.conditions) != expected:
            raise InputError(
                f"the model was trained with {expected} columns of the operating condition. Received: "
                f"{len(history.conditions)}. Name them with --columns sensors.condition=a+b as in training."
            )
        if until is not None:
            known = history.known_at(until)
            recent = known.readings["time"] > until - LOOK_BACK * HOUR
            history = replace(known, readings=known.readings[recent].reset_index(drop=True))
        panel, findings = self.health.check(self._own_sensors(make_panel(history, until=until)))
        return Prepared(history, panel, self.model.featurizer.transform(history, panel)), findings

    def _own_sensors(self, panel: Panel) -> Panel:
        """The sensors the monitor knows, in its order; those that the history lacks are silent."""
        x = np.full((len(panel), len(self.health.sensors)), np.nan)
        for s, name in enumerate(self.health.sensors):
            if name in panel.sensors:
                x[:, s] = panel.x_RS[:, panel.sensors.index(name)]
        return replace(panel, sensors=self.health.sensors, x_RS=x)

    def unknown_sensors(self, history: History) -> tuple[str, ...]:
        """Sensors of a history that the model never saw, and leaves out."""
        return tuple(sorted(set(history.sensors) - set(self.health.sensors)))

    def score(self, history: History, at: np.datetime64, *, hours: int = 1) -> tuple[pd.DataFrame, list[Finding]]:
        """The newest `hours` rows of every asset as known at a moment: probabilities, RUL, interval, anomaly score."""
        last, when = int(hours_of(np.array([at]))[0]), history.readings["time"]
        heard = (when > at - LOOK_BACK * HOUR) & (when <= at) & (history.readings["arrived"] <= at)
        names = sorted(history.readings.loc[heard, "asset"].unique())
        frames: list[pd.DataFrame] = []
        findings: list[Finding] = []
        for begin in range(0, max(len(names), 1), AT_ONCE):  # of nobody heard, `prepare` says so
            part = history if len(names) <= AT_ONCE else history.of(names[begin : begin + AT_ONCE])
            prepared, found = self.prepare(part, until=at)
            rows = np.flatnonzero((prepared.panel.hour_R > last - hours) & (prepared.panel.hour_R <= last))
            frames.append(self.frame(prepared, rows))
            findings += [f for f in found if f.last_hour > last - hours]
        return pd.concat(frames, ignore_index=True), findings

    def frame(self, prepared: Prepared, rows: I64) -> pd.DataFrame:
        found = frame_of(self.model, prepared, rows)
        residual = self.residuals(prepared, rows)
        return found.assign(anomaly=np.sqrt((residual**2).mean(axis=1)), hour=prepared.panel.hour_R[rows])

    def residuals(self, prepared: Prepared, rows: I64) -> F64:
        """(N, S) of the sensors that are alive."""
        return self.reconstruction.residual(windowed(prepared.features.z_RS, prepared.panel.start_R)[rows])

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of the sensors that residuals speak of."""
        alive = self.model.featurizer.conditions.alive_S()
        return tuple(name for name, is_alive in zip(self.model.featurizer.sensors, alive, strict=True) if is_alive)

    def save(self, directory: Path) -> None:
        self.model.save(directory)
        self.reconstruction.save(directory / "reconstruction.pt")
        health = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(self.health).items()}
        stored = {
            "health": health | {"settings": asdict(self.health.settings)},
            "signatures": vars(self.signatures) | {"mean_GS": self.signatures.mean_GS.tolist()},
            "alarm": asdict(self.alarm),
            "horizon": self.horizon,
            "trained_until": self.trained_until,
        }
        (directory / "monitor.json").write_text(json.dumps(stored))

    @classmethod
    def load(cls, directory: Path) -> Monitor:
        model = FailureModel.load(directory)  # refuses a directory that holds no model
        stored = json.loads((directory / "monitor.json").read_text())
        health: dict[str, Any] = {k: np.asarray(v) if k.endswith("_S") else v for k, v in stored["health"].items()}
        health |= {"sensors": tuple(health["sensors"]), "settings": QualitySettings(**health["settings"])}
        past = stored["signatures"]
        return cls(
            model=model,
            health=SensorHealth(**health),
            reconstruction=Reconstruction.load(directory / "reconstruction.pt"),
            signatures=Signatures(tuple(past["codes_G"]), np.asarray(past["mean_GS"]), tuple(past["count_G"])),
            alarm=AlarmSettings(**stored["alarm"]),
            horizon=stored["horizon"],
            trained_until=stored["trained_until"],
        )


def normal_rows(panel: Panel, history: History, labels: Labels) -> NDArray[np.bool_]:
    """Rows at least QUIET hours away from any failure, before and after."""
    failures = history.failures()
    since_R = np.full(len(panel), np.inf)
    for name, frame in failures.groupby("asset"):
        if name in panel.assets:
            rows = panel.slices()[panel.assets.index(str(name))]
            when = np.sort(hours_of(frame["time"]))
            index = np.searchsorted(when, panel.hour_R[rows], side="right") - 1
            since_R[rows] = np.where(index >= 0, panel.hour_R[rows] - when[np.maximum(index, 0)], np.inf)
    return (labels.life_R >= QUIET) & (since_R >= QUIET)


def fit_monitor(
    history: History,
    task: Task,
    *,
    seed: int,
    cut: np.datetime64 | None = None,
    costs: Costs | None = None,
    policy: Policy = "cost",
    threads: int = 1,
    progress: Progress = lambda _: None,
) -> tuple[Monitor, HeldOut, CostCurve]:
    """Train on everything before `cut`, with labels that end there.

    Args:
        policy: alarms go by the cheapest threshold within the budget of false cases, or by the one with most warnings.
    """
    panel = make_panel(history)
    last = int(panel.hour_R.max()) + 1 if cut is None else int(hours_of(np.array([cut]))[0])
    train_R = panel.hour_R < last
    health = SensorHealth.fit(panel, train_R)
    panel, _ = health.check(panel)
    labels = make_labels(history, panel, until_hour=last - 1)
    featurizer = Featurizer.fit(history, panel, train_R, task.features)
    prepared = Prepared(history, panel, featurizer.transform(history, panel))
    model, held = fit_model(prepared, labels, train_R, task, featurizer, seed=seed, threads=threads, progress=progress)
    progress("what normal operation looks like")
    average = windowed(prepared.features.z_RS, panel.start_R)
    reconstruction = fit_reconstruction(average[train_R & normal_rows(panel, history, labels)], seed=seed)
    signatures = past_signatures(reconstruction, average, panel, history, last)
    horizon = min(72.0, task.horizons[-1])
    curve = alarm_curve(model, held, prepared, horizon, last, costs or Costs())
    alarm = AlarmSettings(threshold=curve.choose(policy, budget=BUDGET))
    return Monitor(model, health, reconstruction, signatures, alarm, horizon, last), held, curve


def past_signatures(
    reconstruction: Reconstruction, average_RS: F64, panel: Panel, history: History, before: int
) -> Signatures:
    """Residuals in the hours before each failure that has a code, up to an hour."""
    rows, codes = [], []
    failures = history.failures()
    for asset, when, code in zip(failures["asset"], hours_of(failures["time"]), failures["code"], strict=True):
        if asset in panel.assets and when <= before and code:
            part = panel.slices()[panel.assets.index(asset)]
            near = part.start + np.flatnonzero((panel.hour_R[part] < when) & (panel.hour_R[part] >= when - 12))
            if len(near):
                rows.append(reconstruction.residual(average_RS[near]).mean(axis=0))
                codes.append(str(code))
    return Signatures.fit(np.stack(rows) if rows else np.zeros((0, average_RS.shape[1])), codes)


def alarm_curve(
    model: FailureModel, held: HeldOut, prepared: Prepared, horizon: float, before: int, costs: Costs
) -> CostCurve:
    """Cost over thresholds, from predictions of what was held out of the training."""
    panel = prepared.panel
    order = np.lexsort((panel.hour_R[held.rows], held.asset_N))
    rows = held.rows[order]
    p = model.curves_of({model.best: held.raw[model.best][order]}, model.best).fails_within(horizon)
    code = {name: i for i, name in enumerate(panel.assets)}
    events = [f for f in history_failures(prepared.history, code, before) if f[1] > panel.hour_R[rows].min()]
    return cost_curve(
        p, panel.asset_R[rows], panel.hour_R[rows], events, costs=costs, settings=AlarmSettings(), horizon=WARNING
    )


def history_failures(history: History, code: dict[str, int], before: int) -> list[tuple[int, int]]:
    """(asset code, hour) of the failures before an hour."""
    failures = history.failures()
    pairs = zip(failures["asset"], hours_of(failures["time"]), strict=True)
    return sorted({(code[asset], int(hour)) for asset, hour in pairs if asset in code and hour < before})
