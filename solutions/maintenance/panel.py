"""Readings on one regular grid per asset: what each sensor said in each step, NaN where it said nothing.

R rows (asset and step, sorted), S sensors, C condition columns, A assets. A row at time t holds the readings of
(t - step, t], so that it can be used at t. Depends on event times only: late or shuffled arrival gives the same panel.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from core.tables import InputError
from solutions.maintenance.data import HOUR, History

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
LONGEST_GAP = 10_000  # steps without any reading that are still filled; a clock that jumps further is refused


@dataclass(frozen=True)
class Panel:
    """asset_R: code into `assets`. hour_R: hours since 1970. start_R: first row of the row's asset."""

    assets: tuple[str, ...]
    sensors: tuple[str, ...]
    asset_R: I64
    hour_R: I64
    start_R: I64
    x_RS: F64
    condition_RC: F64

    def __len__(self) -> int:
        return len(self.hour_R)

    def time_R(self) -> NDArray[np.datetime64]:
        return np.datetime64(0, "us") + self.hour_R * HOUR

    def slices(self) -> list[slice]:
        """Rows of each asset, in the order of `assets`."""
        bounds = np.searchsorted(self.asset_R, np.arange(len(self.assets) + 1))
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(bounds)]

    def age_R(self) -> I64:
        """Steps since the asset's first row."""
        return np.arange(len(self)) - self.start_R


def hours_of(times: NDArray[np.datetime64] | pd.Series) -> I64:
    """The step whose end a moment belongs to, as hours since 1970."""
    micros = np.asarray(times, "datetime64[us]").astype(np.int64)
    return -(-micros // HOUR.astype(np.int64))


def make_panel(history: History, *, until: np.datetime64 | None = None) -> Panel:
    """Put readings on the hourly grid: the mean of each step, from the first reading of an asset to its last.

    Args:
        until: go on to this moment, with NaN where nothing was read (scoring: a silent asset is not forgotten).

    Raises:
        InputError: an asset is silent for longer than LONGEST_GAP steps, which is a clock that jumped.
    """
    frame, columns = history.readings, [*history.conditions, *history.sensors]
    if frame.empty:
        raise InputError(f"{history.name or 'the history'}: no reading in this period.")
    hour_N = hours_of(frame["time"])
    keys = pd.MultiIndex.from_arrays([frame["asset"], hour_N], names=["asset", "hour"])
    values = frame[columns].set_axis(keys)
    if keys.has_duplicates:
        values = values.groupby(level=["asset", "hour"], sort=True).mean()
    assets = tuple(sorted(frame["asset"].unique()))
    codes = pd.Index(assets).get_indexer(values.index.get_level_values(0))
    hours = values.index.get_level_values(1).to_numpy(np.int64)
    order = np.lexsort((hours, codes))
    codes, hours, x = codes[order], hours[order], values.to_numpy(np.float64)[order]
    last = None if until is None else int(until.astype("datetime64[us]").astype(np.int64) // HOUR.astype(np.int64))
    asset, hour, start, place, total = [], [], [], np.empty(len(hours), np.int64), 0
    for code, name in enumerate(assets):
        rows = np.flatnonzero(codes == code)
        begin, end = int(hours[rows[0]]), max(int(hours[rows[-1]]), last or 0)
        widest = int(np.diff(hours[rows], append=end).max())
        if widest > LONGEST_GAP:
            raise InputError(
                f"asset {name}: {widest} hours without a reading. Expected: at most {LONGEST_GAP}. "
                "Has a clock jumped? Check the times around the gap."
            )
        place[rows] = total + hours[rows] - begin
        asset.append(np.full(end - begin + 1, code))
        hour.append(np.arange(begin, end + 1))
        start.append(np.full(end - begin + 1, total))
        total += end - begin + 1
    grid = np.full((total, len(columns)), np.nan)
    grid[place] = x
    split = len(history.conditions)
    return Panel(
        assets=assets,
        sensors=history.sensors,
        asset_R=np.concatenate(asset).astype(np.int64),
        hour_R=np.concatenate(hour).astype(np.int64),
        start_R=np.concatenate(start).astype(np.int64),
        x_RS=grid[:, split:],
        condition_RC=grid[:, :split],
    )
