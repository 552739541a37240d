"""Runs the steps of the maintenance pipeline in children that are killed at planted points; the parent only forks.

python -m tests.solutions.maintenance.stub VAR FLEET POINT...

A point is STEP:FUNCTION:N, killed with SIGKILL before the N-th call of a function in that step (from 1); STEP: runs to its end.
Steps: train, score, cases. Prints one line of JSON: the signal or exit code of every child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import torch

import core.files
import core.tracking
import solutions.maintenance.model
import solutions.maintenance.monitor
from pipelines.defs import maintenance
from pipelines.resources import VarResource
from solutions.maintenance import operate
from solutions.maintenance.simulator import FLEET_COLUMNS
from tests.solutions.maintenance.fleets import tiny_task

# where a process can die: name -> owner and attribute
POINTS: dict[str, tuple[Any, str]] = {
    "fit": (solutions.maintenance.model, "train_network"),
    "save": (solutions.maintenance.monitor.Monitor, "save"),
    "write": (operate, "_write"),
    "move": (core.files, "_move"),
    "register": (core.tracking.Tracker, "register"),
    "promote": (core.tracking.Tracker, "promote"),
}
DAY = "2025-01-25"


def plant(name: str, nth: int) -> None:
    """Die before the n-th call."""
    owner, attribute = POINTS[name]
    real, calls = getattr(owner, attribute), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, attribute, wrapped)


def run(step: str, var_dir: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    task = tiny_task()
    small = replace(task, boosting=replace(task.boosting, trees=3), network=replace(task.network, rows=128))
    maintenance.train_task = lambda _: small  # type: ignore[assignment]
    judge = operate.judge
    # six machines are too few for the gate, which is not what is tested
    operate.judge = lambda window, rival: replace(judge(window, rival, least_units=2), promote=True)
    var = VarResource(path=str(var_dir))
    fleet = maintenance.FleetResource(folder=str(folder), columns=FLEET_COLUMNS, holdout_days=10.0)
    assets: list[Any] = {
        "train": [maintenance.maintenance_challenger, maintenance.maintenance_champion, maintenance.maintenance_gate],
        "score": [maintenance.maintenance_scores],
        "cases": [maintenance.maintenance_cases],
    }[step]
    with dg.DagsterInstance.ephemeral() as instance:
        keys: list[dg.MultiPartitionKey | None] = [None]
        if step == "score":
            instance.add_dynamic_partitions("maintenance_assets", ["P-001", "P-002"])
            keys = [dg.MultiPartitionKey({"asset": asset, "day": DAY}) for asset in ("P-001", "P-002")]
        for key in keys:
            done = dg.materialize(
                assets, resources={"var": var, "fleet": fleet}, instance=instance, partition_key=key,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )  # fmt: skip
            if step == "train":
                var.tracker().close(done.run_id)


def child(point: str, var_dir: Path, folder: Path) -> int:
    """Negative signal, or exit code."""
    process = os.fork()
    if process == 0:
        step, name, nth = [*point.split(":"), "", ""][:3]
        try:
            if name:
                plant(name, int(nth))
            run(step, var_dir, folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    places = Path(sys.argv[1]), Path(sys.argv[2])
    print(json.dumps([child(point, *places) for point in sys.argv[3:]]))
