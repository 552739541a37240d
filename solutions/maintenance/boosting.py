"""Gradient boosting: the bar that a network has to clear, and a part of the fused model.

Life: regression of the life up to the cap, which without censoring is the restricted mean survival time itself. Events:
one classifier over person-periods, with the interval as a feature (Singer and Willett 1993), a discrete-time hazard.

N rows, F features, K intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.maintenance.hazard import person_periods
from solutions.maintenance.labels import Labels
from solutions.maintenance.task import BoostingSettings, Task

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def _parameters(settings: BoostingSettings, objective: str, seed: int, threads: int) -> dict[str, Any]:
    return {
        "objective": objective,
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": settings.least_rows,
        "feature_fraction": settings.features,
        "bagging_fraction": settings.rows,
        "bagging_freq": 1,
        "lambda_l2": settings.l2,
        "max_bin": settings.bins,
        **{"seed": seed, "num_threads": threads, "verbose": -1, "deterministic": True},
    }


class Boosting:
    """`life(x)` for tasks of kind life, `logit(x)` of the hazards (N, K) for tasks of kind event."""

    def __init__(self, booster: Any, columns: NDArray[np.int64], edges: tuple[float, ...]) -> None:
        self.booster, self.columns, self.edges = booster, columns, edges

    @classmethod
    def train(
        cls, x_NF: F32, labels: Labels, task: Task, columns: NDArray[np.int64], *, seed: int, threads: int = 1
    ) -> Boosting:
        """Train on the chosen columns; rows censored before they say anything are left out."""
        import lightgbm

        settings, x = task.boosting, x_NF[:, columns]
        if task.kind == "life":
            if not (labels.failed_R | (labels.life_R >= task.cap)).all():
                raise ValueError("a task of kind life needs rows that are followed to the failure or to the cap.")
            data = lightgbm.Dataset(x, label=np.minimum(labels.life_R, task.cap))
            parameters = _parameters(settings, "l2", seed, threads)
            return cls(lightgbm.train(parameters, data, settings.trees), columns, task.edges)
        at_risk, fails = person_periods(labels.life_R, labels.failed_R, task.edges)
        row, interval = np.nonzero(at_risk)
        stacked = np.concatenate([x[row], _interval(interval, task.edges)], axis=1)
        data = lightgbm.Dataset(stacked, label=fails[row, interval].astype(np.float32))
        booster = lightgbm.train(_parameters(settings, "binary", seed, threads), data, settings.trees)
        return cls(booster, columns, task.edges)

    def life(self, x_NF: F32) -> F64:
        return np.asarray(np.clip(self.booster.predict(x_NF[:, self.columns], num_threads=1), 0.0, self.edges[-1]))

    def logit(self, x_NF: F32) -> F64:
        """Logits of the hazards (N, K)."""
        intervals = len(self.edges) - 1
        x = np.repeat(x_NF[:, self.columns], intervals, axis=0)
        interval = np.tile(np.arange(intervals), len(x_NF))
        stacked = np.concatenate([x, _interval(interval, self.edges)], axis=1)
        raw = self.booster.predict(stacked, raw_score=True, num_threads=1)
        return np.asarray(raw, np.float64).reshape(len(x_NF), intervals)

    def save(self, path: Path) -> None:
        self.booster.save_model(str(path))

    @classmethod
    def load(cls, path: Path, columns: NDArray[np.int64], edges: tuple[float, ...]) -> Boosting:
        import lightgbm

        return cls(lightgbm.Booster(model_file=str(path)), columns, edges)


def _interval(interval_N: NDArray[np.int64], edges: tuple[float, ...]) -> F32:
    """Where an interval ends and how long it is."""
    ends = np.asarray(edges[1:], np.float32)
    return np.stack([ends, np.diff(np.asarray(edges, np.float32))], axis=1)[interval_N]
