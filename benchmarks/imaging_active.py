"""How many reader opinions on malignancy are needed when the most doubtful nodules are asked for first; one CPU-minute.

    python -m benchmarks.imaging_active [SEEDS]

Logistic regression on the features of real LIDC nodules. A round asks for ten opinions, fits anew, and is judged on the test
patients. Control: the same in random order. An opinion that differs from what the model proposed is a correction.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import CACHE, RESULTS, Clock, data
from core.results import Results, measured, sha256_file
from solutions.medical_imaging.data import LidcData, load_scan
from solutions.medical_imaging.labelling import doubt
from solutions.medical_imaging.placing import nodules_of, place_nodules
from solutions.medical_imaging.training import TRAINING_SCANS

START, BATCH, MOST = 20, 10, 300
ENOUGH = 0.99  # of the area under the curve that all opinions give
F64 = NDArray[np.float64]


Round = tuple[int, int, float]


def rounds(x_NF: F64, y_N: NDArray[Any], test: tuple[F64, NDArray[Any]], *, doubtful: bool, seed: int) -> list[Round]:
    """(opinions, corrections among them, AUC on the test patients) after every round."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y_N))
    known, pool, corrections, told = list(order[:START]), list(order[START:]), 0, []
    while True:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(x_NF[known], y_N[known])
        told.append((len(known), corrections, float(roc_auc_score(test[1], model.predict_proba(test[0])[:, 1]))))
        if len(known) >= min(MOST, len(y_N) - BATCH):
            return told
        p = model.predict_proba(x_NF[pool])[:, 1]
        first = np.argsort(-doubt(p), kind="stable") if doubtful else np.arange(len(pool))
        asked = [pool[i] for i in first[:BATCH]]
        corrections += int(((p[first[:BATCH]] >= 0.5) != (y_N[asked] > 0)).sum())
        known += asked
        pool = [i for i in pool if i not in set(asked)]


def needed(told: list[Round], goal: float) -> tuple[float, float]:
    """Opinions and corrections until the goal is reached and kept; the most when it is not."""
    for i, (opinions, corrections, _) in enumerate(told):
        if all(auc >= goal for _, _, auc in told[i : i + 3]):
            return float(opinions), float(corrections)
    return float(told[-1][0]), float(told[-1][1])


def main(seeds: int) -> None:
    path, say = data("ct/lidc_nodule_crops/nodules.csv"), Clock()
    lidc = LidcData.find(path.parents[2])
    with measured() as cost:
        lungs = [load_scan(lidc, name, CACHE) for name in TRAINING_SCANS]
        sets = []
        for split in ("train", "test"):
            placed = [p for p in place_nodules(nodules_of(lidc, split), lungs, 0) if np.isfinite(p.target_H[1])]
            sets.append(
                (np.stack([p.feature_F for p in placed]).astype(float), np.array([int(p.target_H[1]) for p in placed]))
            )
        (x, y), test = sets
        everything = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(x, y)
        ceiling = float(roc_auc_score(test[1], everything.predict_proba(test[0])[:, 1]))
        say(f"{len(y)} nodules to ask about, {len(test[1])} to judge with")
        found: dict[str, list[tuple[float, float]]] = {"doubtful_first": [], "random": []}
        for seed in range(seeds):
            for name in found:
                told = rounds(x, y, test, doubtful=name == "doubtful_first", seed=seed)
                found[name].append(needed(told, ENOUGH * ceiling))
    rng, rows = np.random.default_rng(0), []
    for name, values in found.items():
        metrics: dict[str, Any] = {"auc_of_all": {"mean": ceiling}}
        for i, what in enumerate(("opinions", "corrections")):
            each = np.array([v[i] for v in values])
            drawn = each[rng.integers(len(each), size=(1000, len(each)))].mean(1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            metrics[what] = {
                "mean": float(each.mean()),
                "std": float(each.std()),
                "low": float(low),
                "high": float(high),
            }
        rows.append({"model": name, "source": "measured", "metrics": metrics})
    results = Results(
        task="medical_imaging",
        protocol="lidc_active",
        data={"name": "LIDC-IDRI crops", "sha256": sha256_file(path), "rows": len(y)},
        seeds=list(range(seeds)),
        champion="doubtful_first",
        cost=cost,
        rows=rows,
    )
    results.print()
    results.write(RESULTS / "imaging_active.json")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
