"""Faults of a real nitrogen generator within half an hour to five hours, by the authors' chronological split; four CPU-minutes.

    python -m benchmarks.maintenance_polimi [SEEDS]

Pinciroli Vago, Forbicini, Fraternali, Machines 12(6):357 (2024), doi 10.3390/machines12060357: one machine, a reading a minute,
53 faults, eight of them in the test part. The time between two faults is one life: folds are lives, and what is known of a row
is its readings and the time since the last fault. A minute of the data is an hour of Vigil's grid. Training and validation part
are trained on; thresholds for macro-F1 come from lives that a member had not seen. The authors balance their classes; here
nothing is balanced. Intervals resample the lives of the test part: there are only nine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from benchmarks.common import RESULTS, Clock, data
from core.results import Results, measured, sha256_file
from solutions.maintenance.data import History, load_history
from solutions.maintenance.evaluate import Collected, Fleet
from solutions.maintenance.features import FeatureSettings
from solutions.maintenance.model import fit_model
from solutions.maintenance.task import BoostingSettings, NetworkSettings, Task

F64 = NDArray[np.float64]
SENSORS = ("cms_air_pressure", "oxygen_base", "nitrogen_pressure", "oxygen_over_threshold")
MINUTES = (30.0, 60.0, 90.0, 120.0, 180.0, 300.0)
ORIGIN = pd.Timestamp("2000-01-01")
THRESHOLDS = np.linspace(0.005, 0.995, 100)  # quantiles of the scores that are tried


def task() -> Task:
    """Edges in minutes, as the grid has them."""
    edges = (0.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0, 105.0, 120.0, 150.0, 180.0, 240.0, 300.0)
    return Task(
        kind="event",
        edges=edges,
        horizons=MINUTES,
        features=FeatureSettings(means=(5, 15, 60, 180), ewma=(30,), deviation=60, from_new=True),
        network=NetworkSettings(window=60, patch=6, epochs=6, life_weight=0.1),
        boosting=BoostingSettings(most_rows=12_000),
        folds=5,
    )


def lives(frame: pd.DataFrame, folder: Path) -> tuple[History, np.datetime64]:
    """The machine as a fleet of lives, through the tables that anyone brings; and where the test part begins.

    A fault is the first row after a run of positives of the shortest horizon.
    """
    positive = frame["pw_0.5h"].to_numpy()
    fault = np.flatnonzero(np.diff(positive, append=0) == -1) + 1
    life = np.searchsorted(fault, np.arange(len(frame)), side="right")
    time = ORIGIN + pd.to_timedelta(np.arange(len(frame)), unit="h")
    names = np.array([f"life-{n:03d}" for n in life])
    frame[list(SENSORS)].assign(asset=names, time=time).to_parquet(folder / "sensors.parquet")
    ended = fault[fault < len(frame)]
    when = ORIGIN + pd.to_timedelta(ended, unit="h")
    pd.DataFrame({"asset": names[ended - 1], "time": when, "code": "fault"}).to_parquet(folder / "failures.parquet")
    first_test = int(np.flatnonzero(frame["split"] == "test")[0])
    return load_history(folder), np.datetime64(time[first_test])


def since_fault(fleet: Fleet) -> F64:
    """(K, R) the baseline that knows nothing but the time since the last fault: share of earlier lives that ended then."""
    panel, train = fleet.prepared.panel, np.flatnonzero(fleet.train_R)
    age_R = panel.age_R()
    length = pd.Series(age_R[train]).groupby(panel.asset_R[train]).max().to_numpy()[:-1] + 1.0
    left = length[None, :] - age_R[:, None]
    alive = np.maximum((left > 0).sum(1), 1)
    return np.stack([((left > 0) & (left <= m)).sum(1) / alive for m in MINUTES])


def best_threshold(positive: NDArray[np.bool_], p: F64) -> float:
    """With the best macro-F1 on rows whose member had not seen their lives."""
    tried = np.quantile(p, THRESHOLDS)
    return float(tried[int(np.argmax([f1_score(positive, p >= t, average="macro") for t in tried]))])


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    path, say = data("maintenance/polimi_nitrogen/nitrogen.parquet"), Clock()
    frame, rows = pd.read_parquet(path), dict[str, Collected]()
    extra: dict[str, Any] = {"weight": []}
    with tempfile.TemporaryDirectory() as scratch, measured() as cost:
        history, cut = lives(frame, Path(scratch))
        fleet = Fleet.split(history, cut, task())
        panel, tested = fleet.prepared.panel, fleet.test
        minute_R = panel.hour_R - panel.hour_R.min()
        extra["labels_equal_the_authors"] = agreement(fleet, frame, minute_R)
        for seed in range(seeds):
            model, held = fit_model(fleet.prepared, fleet.known, fleet.train_R, task(), fleet.featurizer, seed=seed)
            extra["weight"].append(model.weight)
            raw = model.raw(fleet.prepared, tested)
            for name in model.names:
                before, after = (model.curves_of(r, name) for r in (held.raw, raw))
                add(
                    rows.setdefault(name, Collected()),
                    np.stack([before.fails_within(m) for m in MINUTES]),
                    np.stack([after.fails_within(m) for m in MINUTES]),
                    fleet,
                    held.rows,
                )
            say(f"seed {seed + 1} of {seeds}")
        chance = since_fault(fleet)
        trained = np.flatnonzero(fleet.train_R)
        add(rows.setdefault("time_since_fault", Collected()), chance[:, trained], chance[:, tested], fleet, trained)
        base = np.full((len(MINUTES), len(tested)), 0.5)
        add(rows.setdefault("base_rate", Collected()), np.full((len(MINUTES), len(trained)), 0.5), base, fleet, trained)
    results = Results(
        task="maintenance",
        protocol="polimi_nitrogen",
        data={"name": "nitrogen generator, Machines 12(6):357", "sha256": sha256_file(path), "rows": len(frame)},
        seeds=list(range(seeds)),
        champion="fused",
        cost=cost,
        rows=[collected.row(name) for name, collected in rows.items()],
        extra=extra,
    )
    results.print((*(f"ap_{m:g}" for m in MINUTES), "macro_f1_30", "macro_f1_60", "macro_f1_300"))
    results.write(RESULTS / "maintenance_polimi.json")


def agreement(fleet: Fleet, frame: pd.DataFrame, minute_R: NDArray[np.int64]) -> float:
    """Share of rows on which labels made from the faults are the authors'."""
    same = []
    for minutes in MINUTES:
        positive, known = fleet.truth.within(minutes)
        theirs = frame[f"pw_{minutes / 60.0:.1f}h"].to_numpy()[minute_R]
        same.append((positive == (theirs > 0))[known].mean())
    return float(np.mean(same))


def add(found: Collected, before: F64, after: F64, fleet: Fleet, earlier: NDArray[np.int64]) -> None:
    """Average precision and macro-F1 of every horizon on the test part.

    Args:
        before, after: (K, N) probabilities of the earlier rows, which choose thresholds, and of the test rows.
    """
    unit = fleet.prepared.panel.asset_R[fleet.test]
    for k, minutes in enumerate(MINUTES):
        positive, known = fleet.truth.at(fleet.test).within(minutes)
        was, sure = fleet.known.at(earlier).within(minutes)
        found.add(f"ap_{minutes:g}", "ap", positive[known], after[k][known], unit[known])
        threshold = best_threshold(was[sure], before[k][sure])
        said = after[k][known] >= threshold
        found.put(**{f"macro_f1_{minutes:g}": float(f1_score(positive[known], said, average="macro"))})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
