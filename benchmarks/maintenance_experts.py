"""What the mixture of experts brings to the failure network: FD001 engines, beside its dense control; four CPU-minutes.

    python -m benchmarks.maintenance_experts [SEEDS]

The same network, folds and seeds, with experts and with a dense layer of the same active width, without boosting. Judged on
training engines that a member had not seen and on the test engines.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, Clock, data
from core.results import Results, measured
from solutions.maintenance.evaluate import Collected, rmse
from solutions.maintenance.features import Featurizer
from solutions.maintenance.labels import make_labels
from solutions.maintenance.model import Prepared, fit_model
from solutions.maintenance.panel import make_panel
from solutions.maintenance.protocols import load_cmapss
from solutions.maintenance.task import run_to_failure_task


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    folder, say, task = data("maintenance/cmapss"), Clock(), run_to_failure_task()
    train, test, left_A = load_cmapss(folder, "FD001")
    found: dict[str, Collected] = {"moe": Collected(), "dense": Collected()}
    with measured() as cost:
        panel = make_panel(train)
        labels, everything = make_labels(train, panel), np.ones(len(panel), bool)
        featurizer = Featurizer.fit(train, panel, everything, task.features)
        prepared = Prepared(train, panel, featurizer.transform(train, panel))
        tested = Prepared.make(test, featurizer)
        last_A = np.array([rows.stop - 1 for rows in tested.panel.slices()])
        clipped_A = np.minimum(left_A, task.cap)
        for seed in range(seeds):
            for name, collected in found.items():
                arm = replace(task, network=replace(task.network, moe=name == "moe"))
                model, held = fit_model(prepared, labels, everything, arm, featurizer, seed=seed, parts=("network",))
                life_A = model.raw(tested, last_A)["network"]
                own = np.minimum(labels.life_R[held.rows], task.cap)
                collected.add("rmse_clipped", rmse, clipped_A, life_A, np.arange(len(left_A)))
                collected.add("rmse_out_of_fold", rmse, own, held.raw["network"], held.asset_N)
                if name == "moe":
                    used = [m.utilisation(tested.inputs, last_A) for m in model.members["network"]]
                    collected.put(utilisation=float(np.mean(used)))
                say(f"seed {seed + 1} of {seeds}, {name}")
    rows: list[dict[str, Any]] = [collected.row(name) for name, collected in found.items()]
    results = Results(
        task="maintenance",
        protocol="cmapss_FD001_experts",
        data={"name": train.name, "sha256": train.sha256, "rows": train.rows},
        seeds=list(range(seeds)),
        champion="moe",
        cost=cost,
        rows=rows,
    )
    results.print()
    results.write(RESULTS / "maintenance_experts.json")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
