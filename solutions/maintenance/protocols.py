"""Public benchmarks through the bring-your-own-data path: which columns are what, and how they are split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.fields import parse_amounts
from core.tables import InputError, column_names, read_columns
from solutions.maintenance.data import HOUR, History, load_history

SUBSETS = ("FD001", "FD002", "FD003", "FD004")
CMAPSS_COLUMNS = "asset=unit,sensors.cycle=cycle,sensors.condition=setting1+setting2+setting3"
AZURE_COLUMNS = (
    "asset=machineID,time=datetime,sensors.file=telemetry_full90d_machines1to20,errors.code=errorID,"
    "maintenance.file=maint,maintenance.code=comp,failures.code=failure,assets.file=machines"
)
AZURE_TRAIN_DAYS = 60


def run_to_failure(history: History) -> History:
    """The same history with a failure at the last reading of each asset, for data that end where the asset did."""
    last = history.readings.groupby("asset", sort=True)["time"].max()
    ends = pd.DataFrame({"asset": last.index, "time": last.to_numpy(), "arrived": last.to_numpy()})
    ends = ends.assign(kind="failure", code="end of life", text="")
    return replace(history, events=pd.concat([history.events, ends], ignore_index=True))


def load_cmapss(folder: Path, subset: str) -> tuple[History, History, NDArray[np.float64]]:
    """Training engines, test engines, and the cycles that each test engine had left, in the order of their names.

    Raises:
        InputError: an unknown subset, or a file is missing.
    """
    if subset not in SUBSETS:
        raise InputError(f"`--subset` must be one of {', '.join(SUBSETS)}. Received: {subset}.")
    train = load_history(folder, f"{CMAPSS_COLUMNS},sensors.file=train_{subset}")
    test = load_history(folder, f"{CMAPSS_COLUMNS},sensors.file=test_{subset}")
    path = next((p for s in ("parquet", "csv") if (p := folder / f"RUL_{subset}.{s}").is_file()), None)
    if path is None or not {"unit", "rul"} <= set(column_names(path)):
        raise InputError(f"folder `{folder.name}` needs RUL_{subset}.parquet or .csv with columns unit and rul.")
    table = read_columns(path, ["unit", "rul"]).columns
    left = {
        str(int(unit)): float(rul)
        for unit, rul in zip(*(parse_amounts(table.column(c)).values for c in ("unit", "rul")), strict=True)
    }
    engines = sorted(test.readings["asset"].unique())
    if missing := [engine for engine in engines if engine not in left]:
        raise InputError(f"{path.name}: no row for {len(missing)} of {len(engines)} test engines.")
    return run_to_failure(train), test, np.array([left[engine] for engine in engines])


def load_azure(folder: Path) -> tuple[History, np.datetime64]:
    """The gap-free block of machines, and the moment where training ends and testing begins.

    Only this block gives honest base rates: windows published elsewhere were chosen because they precede failures.
    """
    history = load_history(folder, AZURE_COLUMNS)
    begin = history.readings["time"].min().to_datetime64()
    return history, begin + AZURE_TRAIN_DAYS * 24 * HOUR
