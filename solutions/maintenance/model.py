"""The failure model: boosting and networks on folds of machines, fused, calibrated on machines they have not seen.

What members have not seen chooses the weight of each part, calibrates the curve and the interval, and sets the alarms: for
assets that run once to failure, machines that a member did without; for assets that go on, later days of the same machines, as
in service. On Azure PdM the two differ by a factor: members know the calm of the machines they were trained on.

N rows, A assets, K intervals, M members.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from solutions.maintenance.boosting import Boosting
from solutions.maintenance.data import History
from solutions.maintenance.features import Features, Featurizer
from solutions.maintenance.hazard import Curves, fit_scale, negative_log_likelihood, scale_hazard
from solutions.maintenance.intervals import Interval, fit_interval
from solutions.maintenance.labels import Labels, make_labels
from solutions.maintenance.life_curves import LifeCurves
from solutions.maintenance.network import HazardNetwork, Inputs, train_network
from solutions.maintenance.panel import Panel, make_panel
from solutions.maintenance.task import Task

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
PARTS = ("lightgbm", "network")
WEIGHTS = np.linspace(0.0, 1.0, 11)  # of the network that are tried
MOST_WEIGHED = 8_000  # rows on which the weights are compared
LEAST_FAILURES = 8  # after the first origin; with fewer, machines that were left out calibrate
LEAST_AGE = 24  # steps of history a row must have to be trained on or calibrated with
FORMAT = 1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A history on its grid, with features."""

    history: History
    panel: Panel
    features: Features

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.features, self.panel.start_R)

    @classmethod
    def make(cls, history: History, featurizer: Featurizer, *, until: np.datetime64 | None = None) -> Prepared:
        panel = make_panel(history, until=until)
        return cls(history, panel, featurizer.transform(history, panel))


@dataclass
class FailureModel:
    """Members of each part, the weight of the network, and what makes curves and intervals of their predictions.

    `scale` (kind event) or `life` (kind life) holds the calibration of each name in `names`.
    """

    task: Task
    featurizer: Featurizer
    arms: tuple[str, ...]
    members: dict[str, list[Any]]
    weight: float
    scale: dict[str, tuple[float, float]] = field(default_factory=dict)
    life: dict[str, LifeCurves] = field(default_factory=dict)
    interval: dict[str, Interval] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.members, "fused") if len(self.members) == 2 else tuple(self.members)

    @property
    def best(self) -> str:
        return self.names[-1]

    def raw(self, prepared: Prepared, rows: I64) -> dict[str, F64]:
        """Mean over the members of each part, and the fusion."""
        found = {
            part: np.mean([predict(member, part, self.task, prepared, rows) for member in members], axis=0)
            for part, members in self.members.items()
        }
        return fuse(found, self.weight)

    def curves(self, prepared: Prepared, rows: I64, name: str | None = None) -> Curves:
        """Calibrated curves of some rows, of the fused model unless named."""
        return self.curves_of(self.raw(prepared, rows), name or self.best)

    def curves_of(self, raw: dict[str, F64], name: str) -> Curves:
        if self.task.kind == "life":
            return self.life[name](raw[name])
        return scale_hazard(Curves.from_hazard(self.task.edges, expit(raw[name])), *self.scale[name])

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        columns: list[list[int]] = []
        for part, members in self.members.items():
            for i, member in enumerate(members):
                member.save(directory / f"{part}-{i}.{'txt' if part == 'lightgbm' else 'pt'}")
                if part == "lightgbm":
                    columns.append(member.columns.tolist())
        stored = {
            **{"format": FORMAT, "task": self.task.to_json(), "featurizer": self.featurizer.to_json()},
            **{"arms": self.arms, "weight": self.weight, "scale": self.scale, "columns": columns},
            "members": {part: len(members) for part, members in self.members.items()},
            "life": {name: curves.to_json() for name, curves in self.life.items()},
            "interval": {name: vars(interval) for name, interval in self.interval.items()},
        }
        (directory / "model.json").write_text(json.dumps(stored))

    @classmethod
    def load(cls, directory: Path) -> FailureModel:
        from solutions.maintenance.data import InputError

        path = directory / "model.json"
        if not path.is_file():
            raise InputError(
                f"`{directory.name}` holds no model: no model.json. Write one with vigil maintenance train."
            )
        stored = json.loads(path.read_text())
        if stored.get("format") != FORMAT:
            raise InputError(f"model.json: expected format {FORMAT}. Received: {stored.get('format')!r}.")
        task = Task.from_json(stored["task"])
        members: dict[str, list[Any]] = {}
        for part, count in stored["members"].items():
            if part == "network":
                members[part] = [HazardNetwork.load(directory / f"{part}-{i}.pt") for i in range(count)]
            else:
                columns = [np.asarray(c, np.int64) for c in stored["columns"]]
                files = [directory / f"{part}-{i}.txt" for i in range(count)]
                members[part] = [Boosting.load(f, c, task.edges) for f, c in zip(files, columns, strict=True)]
        return cls(
            task=task,
            featurizer=Featurizer.from_json(stored["featurizer"]),
            arms=tuple(stored["arms"]),
            members=members,
            weight=stored["weight"],
            scale={name: (float(a), float(b)) for name, (a, b) in stored["scale"].items()},
            life={name: LifeCurves.from_json(values) for name, values in stored["life"].items()},
            interval={name: Interval(**values) for name, values in stored["interval"].items()},
        )


@dataclass(frozen=True)
class HeldOut:
    """What members said of machines, or of days, that they were not trained on. rows: of the panel; asset_N: their machines."""

    rows: I64
    asset_N: I64
    raw: dict[str, F64]


def fuse(found: dict[str, F64], weight: float) -> dict[str, F64]:
    """The parts, and their weighted mean as "fused" (of lives, or of logits)."""
    if len(found) < 2:
        return found
    return {**found, "fused": (1.0 - weight) * found["lightgbm"] + weight * found["network"]}


def machine_folds(panel: Panel, labels: Labels, folds: int, seed: int) -> NDArray[np.int64]:
    """(A,) fold of each machine; machines that fail are dealt out evenly."""
    rng = np.random.default_rng(seed)
    failures = np.bincount(panel.asset_R, labels.failed_R, len(panel.assets))
    order = np.lexsort((rng.random(len(panel.assets)), -(failures > 0).astype(int)))
    fold_A = np.empty(len(panel.assets), np.int64)
    fold_A[order] = np.arange(len(panel.assets)) % folds
    return fold_A


def partitions(panel: Panel, labels: Labels, task: Task, seed: int) -> NDArray[np.int64]:
    """(rounds, A) fold of each machine in each round."""
    return np.stack([machine_folds(panel, labels, task.folds, seed * 1000 + turn) for turn in range(task.rounds)])


def fit_model(
    prepared: Prepared,
    labels: Labels,
    rows_R: Bool,
    task: Task,
    featurizer: Featurizer,
    *,
    seed: int,
    arms: tuple[str, ...] = ("sensors", "logs"),
    parts: tuple[str, ...] = PARTS,
    threads: int = 1,
    progress: Progress = lambda _: None,
) -> tuple[FailureModel, HeldOut]:
    """Train on the rows marked in `rows_R`, whose labels must know nothing that a later row would.

    Args:
        arms: modalities used, of sensors and logs; the record of the asset always is.
    """
    panel = prepared.panel
    training = Training(prepared, task, featurizer, seed, arms, parts, threads)
    members, left_out_M = training.ensemble(labels, rows_R, progress)
    found = training.look_ahead(labels, rows_R, progress) or training.out_of_fold(labels, rows_R, members, left_out_M)
    model = FailureModel(task, featurizer, arms, members, 0.5)
    chosen = panel.age_R()[found.rows] >= LEAST_AGE
    rows, raw = found.rows[chosen], {part: values[chosen] for part, values in found.raw.items()}
    calibrate(model, raw, labels.at(rows), panel.asset_R[rows], seed)
    return model, HeldOut(rows, panel.asset_R[rows], fuse(raw, model.weight))


@dataclass(frozen=True)
class Training:
    """What all ensembles of one model have in common."""

    prepared: Prepared
    task: Task
    featurizer: Featurizer
    seed: int
    arms: tuple[str, ...]
    parts: tuple[str, ...]
    threads: int

    def usable(self, labels: Labels, rows_R: Bool) -> I64:
        """Rows that say something."""
        least = 0 if self.task.kind == "life" else 1
        usable_R = rows_R & ((labels.life_R > 0.0) | labels.failed_R) & (self.prepared.panel.age_R() >= least)
        if self.task.kind == "life":
            usable_R &= labels.failed_R | (labels.life_R >= self.task.cap)
        return np.flatnonzero(usable_R)

    def ensemble(
        self, labels: Labels, rows_R: Bool, progress: Progress
    ) -> tuple[dict[str, list[Any]], list[NDArray[np.bool_]]]:
        """Members of each part, and (A,) for each member whether it did without a machine."""
        panel, task, rows = self.prepared.panel, self.task, self.usable(labels, rows_R)
        members: dict[str, list[Any]] = {part: [] for part in self.parts}
        fold_GA = partitions(panel, labels, task, self.seed)
        left_out_M = [fold_A == fold for fold_A in fold_GA for fold in range(task.folds)]
        for m, out_A in enumerate(left_out_M):
            train = rows[~out_A[panel.asset_R[rows]]]
            for part in self.parts:
                members[part].append(self._member(part, train, labels, self.seed * 1000 + m))
            progress(f"member {m + 1}/{len(left_out_M)} trained")
        return members, left_out_M

    def _member(self, part: str, train: I64, labels: Labels, seed: int) -> Any:
        features = self.prepared.features
        if part == "lightgbm":
            stride = -(-len(train) // self.task.boosting.most_rows)
            thin = train[self.seed % stride :: stride]
            columns = features.columns_of((*self.arms, "asset"))
            x = features.x_RF[thin]
            return Boosting.train(x, labels.at(thin), self.task, columns, seed=seed, threads=self.threads)
        codes = int(code_count(self.featurizer))
        return train_network(self.prepared.inputs, train, labels, self.task, arms=self.arms, codes=codes, seed=seed)

    def _predict(self, part: str, member: Any, rows: I64) -> F64:
        return predict(member, part, self.task, self.prepared, rows)

    def out_of_fold(
        self, labels: Labels, rows_R: Bool, members: dict[str, list[Any]], left_out_M: list[NDArray[np.bool_]]
    ) -> HeldOut:
        """Every row by the mean of the members that did without its machine."""
        rows = self.usable(labels, rows_R)
        asset_N = self.prepared.panel.asset_R[rows]
        width = () if self.task.kind == "life" else (len(self.task.edges) - 1,)
        raw = {part: np.zeros((len(rows), *width)) for part in members}
        for part, own in members.items():
            for member, out_A in zip(own, left_out_M, strict=True):
                out_N = out_A[asset_N]
                raw[part][out_N] += self._predict(part, member, rows[out_N]) / self.task.rounds
        return HeldOut(rows, asset_N, raw)

    def look_ahead(self, labels: Labels, rows_R: Bool, progress: Progress) -> HeldOut | None:
        """Every row after the first origin by an ensemble that knew the same machines up to the last origin before it.

        None without origins, or when too few failures lie after the first one.
        """
        panel, task = self.prepared.panel, self.task
        if not task.origins:
            return None
        begin, end = int(panel.hour_R[rows_R].min()), int(panel.hour_R[rows_R].max()) + 1
        starts = [begin + round(share * (end - begin)) for share in task.origins]
        rows, raw = [], []
        for start, stop in zip(starts, [*starts[1:], end], strict=True):
            known, earlier_R = make_labels(self.prepared.history, panel, until_hour=start - 1), panel.hour_R < start
            if not known.failed_R[self.usable(known, rows_R & earlier_R)].any():
                continue
            members, _ = self.ensemble(known, rows_R & earlier_R, lambda _: None)
            rows.append(self.usable(labels, rows_R & ~earlier_R & (panel.hour_R < stop)))
            raw.append({p: np.mean([self._predict(p, m, rows[-1]) for m in members[p]], axis=0) for p in self.parts})
            progress(f"days until {(start - begin) / 24:.0f} looked ahead to {(stop - begin) / 24:.0f}")
        if not rows or failures_of(panel, labels, np.concatenate(rows)) < LEAST_FAILURES:
            return None
        found = np.concatenate(rows)
        return HeldOut(found, panel.asset_R[found], {p: np.concatenate([r[p] for r in raw]) for p in self.parts})


def failures_of(panel: Panel, labels: Labels, rows: I64) -> int:
    """How many different failures some rows lead to."""
    failed = rows[labels.failed_R[rows]]
    when = panel.hour_R[failed] + labels.life_R[failed].astype(np.int64)
    return len(np.unique(np.stack([panel.asset_R[failed], when]), axis=1).T)


def code_count(featurizer: Featurizer) -> int:
    """Codes of log entries, those of seldom ones included."""
    return len(featurizer.all_codes())


def predict(member: Any, part: str, task: Task, prepared: Prepared, rows: I64) -> F64:
    if part == "network":
        logit = member.logit(prepared.inputs, rows)
        return Curves.from_hazard(task.edges, expit(logit)).life() if task.kind == "life" else np.asarray(logit)
    x = prepared.features.x_RF[rows]
    return np.asarray(member.life(x) if task.kind == "life" else member.logit(x))


def calibrate(model: FailureModel, raw: dict[str, F64], labels: Labels, asset_N: I64, seed: int) -> None:
    """Weight, curve and interval from predictions of what was held out."""
    task = model.task
    life_N, target_N = labels.life_R, np.minimum(labels.life_R, task.cap)
    if len(raw) == 2:
        thin = slice(None, None, -(-len(life_N) // MOST_WEIGHED))
        losses = []
        for weight in WEIGHTS:
            value = fuse({part: values[thin] for part, values in raw.items()}, float(weight))["fused"]
            if task.kind == "life":
                losses.append(float(((value - target_N[thin]) ** 2).mean()))
            else:  # each mixture with the calibration that it would get
                curves, life, failed = (
                    Curves.from_hazard(task.edges, expit(value)),
                    life_N[thin],
                    labels.failed_R[thin],
                )
                scaled = scale_hazard(curves, *fit_scale(curves, life, failed))
                losses.append(negative_log_likelihood(scaled, life, failed))
        model.weight = float(WEIGHTS[int(np.argmin(losses))])
    for name, values in fuse(raw, model.weight).items():
        if task.kind == "life":
            model.life[name] = LifeCurves.fit(values, target_N, asset_N, task.edges)
        else:
            curves = Curves.from_hazard(task.edges, expit(values))
            model.scale[name] = fit_scale(curves, life_N, labels.failed_R)
        curves = model.curves_of({name: values}, name)
        known = labels.failed_R | (labels.life_R >= task.cap)
        model.interval[name] = fit_interval(
            curves.at(np.flatnonzero(known)), target_N[known], asset_N[known], seed=seed
        )


def frame_of(model: FailureModel, prepared: Prepared, rows: I64) -> pd.DataFrame:
    """asset, time, P(failure within each horizon), RUL and its interval, one line per row."""
    curves = model.curves(prepared, rows)
    low, high = model.interval[model.best](curves)
    found = {
        "asset": np.asarray(prepared.panel.assets, object)[prepared.panel.asset_R[rows]],
        "time": prepared.panel.time_R()[rows],
    }
    found |= {f"p_{h:g}": curves.fails_within(h) for h in model.task.horizons}
    return pd.DataFrame({**found, "rul": curves.median(), "rul_low": low, "rul_high": high, "life": curves.life()})
