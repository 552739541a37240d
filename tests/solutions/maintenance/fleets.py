"""Small fleets that tests share, and where real data lie."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pandas as pd
import pytest

from solutions.maintenance.simulator import FleetSettings, simulate
from solutions.maintenance.task import Task, recurring_task

DATA = Path(os.environ.get("VIGIL_DATA", Path(__file__).parents[4] / "shared" / "data")) / "maintenance"


def real(name: str) -> Path:
    """A folder of real data; skips the test when it is not there."""
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not in the data folder (set VIGIL_DATA to it)")
    return DATA / name


@lru_cache(maxsize=4)
def _tables(assets: int, days: int, seed: int) -> dict[str, pd.DataFrame]:
    return simulate(FleetSettings(assets=assets, days=days, stuck=0), seed)


def small_fleet(assets: int = 6, days: int = 30, seed: int = 0) -> dict[str, pd.DataFrame]:
    return {name: frame.copy() for name, frame in _tables(assets, days, seed).items()}


def write(tables: dict[str, pd.DataFrame], folder: Path, *, suffix: str = "parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        if suffix == "csv":
            frame.to_csv(folder / f"{name}.csv", index=False)
        else:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


def tiny_task() -> Task:
    task = recurring_task()
    return replace(
        task,
        folds=2,
        origins=(0.5,),
        network=replace(task.network, epochs=1, rows=512, width=16, expert_width=8, shared_width=8),
        boosting=replace(task.boosting, trees=15, most_rows=1500),
    )
