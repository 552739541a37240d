"""Sensors, errors, maintenance, failures, work orders and assets of a folder as one history, with a cause per refused row.

readings: asset (`str`), time, arrived (datetime64[us], naive UTC) and one float64 column per sensor and condition (NaN:
not measured), sorted by asset and time, one row per asset and time. events: asset, time, arrived, kind (error |
maintenance | failure | work_order), code, text. assets: one row per asset (index) with whatever attributes the file has.

The order in which rows come does not matter. Values never appear in messages: rows (from 0), columns and causes do.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from core.fields import BadColumnError, Parsed, parse_amounts, parse_flags, parse_identifiers, parse_times
from core.refusals import Refusals, causes_of
from core.tables import InputError as InputError
from core.tables import Table, column_names, read_columns, sha256_of
from solutions.maintenance.mapping import TABLES, Mapping

FIRST = np.datetime64("2000-01-01", "us")  # cycle 0 of histories that count cycles; a cycle passes for one hour
HOUR = np.timedelta64(3_600_000_000, "us")
KINDS = {"errors": "error", "maintenance": "maintenance", "failures": "failure", "work_orders": "work_order"}
EVENTS = ("asset", "time", "arrived", "kind", "code", "text")
MOST_CYCLES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class History:
    """What is known of a fleet. rejected: table, row, column, cause, value_kind; a line per refused row or cell."""

    readings: pd.DataFrame
    sensors: tuple[str, ...]
    conditions: tuple[str, ...]
    events: pd.DataFrame
    assets: pd.DataFrame
    rejected: pd.DataFrame
    notes: tuple[str, ...] = ()
    name: str = ""
    sha256: str = ""
    rows: int = 0

    def known_at(self, moment: np.datetime64) -> History:
        """What had happened and arrived by then."""
        readings, events = (
            f[(f["arrived"] <= moment) & (f["time"] <= moment)].reset_index(drop=True)
            for f in (self.readings, self.events)
        )
        return replace(self, readings=readings, events=events)

    def of(self, assets: list[str]) -> History:
        """The history of some assets."""
        readings, events = (f[f["asset"].isin(assets)].reset_index(drop=True) for f in (self.readings, self.events))
        return replace(self, readings=readings, events=events, assets=self.assets[self.assets.index.isin(assets)])

    def failures(self) -> pd.DataFrame:
        return self.events[self.events["kind"] == "failure"]

    def causes(self) -> dict[str, int]:
        """How many rows or cells were refused, by `table.column: cause`."""
        return causes_of(self.rejected.assign(column=self.rejected["table"] + "." + self.rejected["column"]))


def load_history(folder: Path | str, columns: str = "") -> History:
    """Read, validate and sort a folder of tables; see `solutions.maintenance.mapping` for `columns`.

    Sensors come long (sensor, value) or wide (one column per sensor: `channels`, else all numeric columns not mapped).
    A value that can not be read costs its cell, not its row. Of two rows of one asset and time the last to arrive counts.

    Raises:
        InputError: a table or column is missing or has the wrong type, or no row can be used.
    """
    folder, mapping = Path(folder), Mapping.parse(columns)
    if not folder.is_dir():
        raise InputError(f"`{folder.name}` is not a folder. A history is a folder with a table of sensors.")
    paths = {table: path for table in TABLES if (path := mapping.file(table, folder)) is not None}
    rejected: list[pd.DataFrame] = []
    notes: list[str] = []
    readings, sensors, conditions, rows = _read_sensors(paths["sensors"], mapping, rejected, notes)
    known = pd.Index(readings["asset"].unique())
    parts = []
    for table, path in paths.items():
        if table in KINDS:
            try:
                parts.append(_read_events(path, table, mapping, known, rejected))
            except InputError as error:
                if table != "work_orders" or "UTF8" not in str(error):
                    raise
                # prose helps, but no score depends on it alone; labels and codes are never left out
                notes.append(f"{path.name} is left out: it is in another encoding. Save it as UTF-8.")
    events = pd.concat([_no_events(), *parts], ignore_index=True)
    order = ["asset", "time", "kind", "code", "text"]
    events = events.sort_values([*order, "arrived"]).drop_duplicates(order).reset_index(drop=True)
    assets = _read_assets(paths.get("assets"), mapping, known, notes)
    found = [frame for frame in rejected if len(frame)]
    empty = pd.DataFrame({name: pd.Series(dtype="str") for name in ("table", "row", "column", "cause", "value_kind")})
    return History(
        readings=readings,
        sensors=sensors,
        conditions=conditions,
        events=events,
        assets=assets,
        rejected=pd.concat(found, ignore_index=True) if found else empty,
        notes=tuple(notes),
        name=paths["sensors"].stem,
        sha256=hashlib.sha256("".join(sha256_of(path) for path in paths.values()).encode()).hexdigest(),
        rows=rows,
    )


def _parse(table: Table, column: str, where: str, name: str, refusals: Refusals, *, required: bool = True) -> Any:
    raw = table.columns.column(column)
    try:
        if name in ("time", "arrived"):
            parsed = parse_times(raw, required=name == "time")
        elif name == "cycle":
            cycles = parse_flags(raw, highest=MOST_CYCLES)
            parsed = Parsed(FIRST + cycles.values * HOUR, cycles.refused)
        elif name == "value":
            parsed = parse_amounts(raw, lowest=-np.inf, required=False)
        elif name == "text":
            parsed = Parsed(raw.cast(pa.large_string()).fill_null("").to_pandas().to_numpy(object), [])
        else:
            parsed = parse_identifiers(raw, required=required)
    except (BadColumnError, pa.ArrowException) as error:
        raise InputError(f"{where}: column `{column}` ({name}) must hold {error}.") from None
    for cause, kind, bad_rows in parsed.refused:
        refusals.add(name, bad_rows, cause, kind)
    return parsed.values


def _read_sensors(
    path: Path, mapping: Mapping, rejected: list[pd.DataFrame], notes: list[str]
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...], int]:
    available, where = column_names(path), path.name
    used = mapping.resolve("sensors", available, where)
    if ("time" in used) == ("cycle" in used):
        raise InputError(
            f"{where}: sensors need a `time` or a `cycle`, one of them. The file has: {', '.join(available)}. "
            "Map it with --columns sensors.time=COLUMN or sensors.cycle=COLUMN."
        )
    if ("sensor" in used) != ("value" in used):
        raise InputError(f"{where}: long sensors need both `sensor` and `value`. Found: {', '.join(sorted(used))}.")
    taken = [column for columns in used.values() for column in columns]
    table = read_columns(path, available)
    if table.rows == 0:
        raise InputError(f"{where}: the file has no rows.")
    refusals, cells = Refusals(table), []
    keys = {n: _parse(table, c[0], where, n, refusals) for n, c in used.items() if n not in ("channels", "condition")}
    keys["time"] = keys.pop("cycle") if "cycle" in keys else keys["time"]
    arrived = keys.get("arrived", keys["time"])
    arrived = np.where(np.isnat(arrived), keys["time"], arrived)
    refusals.add("time", np.flatnonzero(refusals.ok() & (keys["time"] > arrived + HOUR)), "after its arrival", "time")
    frame = pd.DataFrame({"asset": keys["asset"], "time": keys["time"], "arrived": arrived})
    conditions = tuple(used.get("condition", ()))
    wanted = list(conditions)
    if "sensor" in used:
        frame["sensor"], frame["value"] = keys["sensor"], keys["value"]
        refusals.add("value", np.flatnonzero(np.isnan(keys["value"]) & refusals.ok()), "missing", "missing")
    else:
        rest = [c for c in available if c not in taken]
        wanted += used.get("channels") or [c for c in rest if _numeric(table, c)]
        if "channels" not in used and (ignored := [c for c in rest if c not in wanted]):
            notes.append(f"{where}: no sensor, because not numeric: {', '.join(ignored)}")
    for column in wanted:
        values, bad = _cells(table, column, where)
        frame[column] = values
        cells += bad
    ok_N = refusals.ok()
    rejected.append(refusals.frame().assign(table="sensors"))
    rejected += [frame_of.assign(table="sensors") for frame_of in cells]
    if not ok_N.any():
        worst = next(iter(causes_of(rejected[0])), "no reason")
        raise InputError(f"{where}: none of {table.rows} rows can be used. Most frequent cause: {worst}.")
    frame = frame[ok_N]
    keys_of = ["asset", "time", *(["sensor"] if "sensor" in used else [])]
    # ties of arrival are broken by the values, never by the order in the file
    frame = frame.sort_values([*keys_of, "arrived", *frame.columns.difference([*keys_of, "arrived"])])
    repeated = frame.duplicated(keys_of, keep="last")
    if repeated.any():
        notes.append(f"{int(repeated.sum())} readings were repeated; the last to arrive counts")
        frame = frame[~repeated]
    if "sensor" in used:
        arrived_last = frame.groupby(["asset", "time"], sort=True)["arrived"].max()
        wide = frame.pivot(index=["asset", "time"], columns="sensor", values="value")
        rest = frame.groupby(["asset", "time"], sort=True)[list(conditions)].last()
        frame = wide.assign(arrived=arrived_last).join(rest).reset_index()
        frame.columns.name = None
        sensors = tuple(sorted(wide.columns))
    else:
        sensors = tuple(wanted[len(conditions) :])
    if not sensors:
        raise InputError(f"{where}: no sensor. Name them with --columns sensors.channels=a+b+c.")
    frame = frame[["asset", "time", "arrived", *conditions, *sensors]].reset_index(drop=True)
    return frame, sensors, conditions, table.rows


def _numeric(table: Table, column: str) -> bool:
    """Whether a column of parquet is numeric, or one of CSV reads as numbers for the most part."""
    kind = table.columns.column(column).type
    if pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        return False
    try:
        parsed = parse_amounts(table.columns.column(column), lowest=-np.inf, required=False)
    except BadColumnError:
        return False
    return bool(np.isfinite(parsed.values).mean() > 0.5)


def _cells(table: Table, column: str, where: str) -> tuple[NDArray[np.float64], list[pd.DataFrame]]:
    """One sensor of a wide file; cells that can not be read become NaN, with their cause."""
    try:
        parsed = parse_amounts(table.columns.column(column), lowest=-np.inf, required=False)
    except BadColumnError as error:
        raise InputError(f"{where}: column `{column}` must hold {error}.") from None
    bad = [
        pd.DataFrame({"row": table.row_N[rows], "column": column, "cause": cause, "value_kind": kind})
        for cause, kind, rows in parsed.refused
        if len(rows)
    ]
    return np.where(np.isfinite(parsed.values), parsed.values, np.nan), bad


def _read_events(
    path: Path, table_name: str, mapping: Mapping, known: pd.Index, rejected: list[pd.DataFrame]
) -> pd.DataFrame:
    available = column_names(path)
    used = mapping.resolve(table_name, available, path.name)
    table = read_columns(path, [column for columns in used.values() for column in columns])
    refusals = Refusals(table)
    needed = TABLES[table_name][0]
    values = {
        name: _parse(table, columns[0], path.name, name, refusals, required=name in needed)
        for name, columns in used.items()
    }
    unknown = refusals.ok() & ~pd.Index(values["asset"]).isin(known)
    refusals.add("asset", np.flatnonzero(unknown), "asset without sensors", "text")
    arrived = values.get("arrived", values["time"])
    arrived = np.where(np.isnat(arrived), values["time"], arrived)
    refusals.add("time", np.flatnonzero(refusals.ok() & (values["time"] > arrived + HOUR)), "after its arrival", "time")
    rejected.append(refusals.frame().assign(table=table_name))
    count = len(table.row_N)
    frame = pd.DataFrame(
        {
            "asset": values["asset"],
            "time": values["time"],
            "arrived": arrived,
            "kind": np.full(count, KINDS[table_name], object),
            "code": pd.Series(np.asarray(values.get("code", np.full(count, "")), object)).fillna("").to_numpy(),
            "text": values.get("text", np.full(count, "", object)),
        }
    )
    return frame[refusals.ok()]


def _no_events() -> pd.DataFrame:
    kinds = dict.fromkeys(("asset", "kind", "code", "text"), "object") | dict.fromkeys(("time", "arrived"), "M8[us]")
    return pd.DataFrame({name: pd.Series(dtype=kinds[name]) for name in EVENTS})


def _read_assets(path: Path | None, mapping: Mapping, known: pd.Index, notes: list[str]) -> pd.DataFrame:
    """Attributes of the assets that have sensors; an asset that the table lacks has missing ones."""
    if path is None:
        return pd.DataFrame(index=pd.Index(sorted(known), name="asset"))
    available = column_names(path)
    key = mapping.resolve("assets", available, path.name)["asset"][0]
    table = read_columns(path, available)
    refusals = Refusals(table)
    names = _parse(table, key, path.name, "asset", refusals)
    frame = pd.DataFrame({"asset": names})
    for column in available:
        if column != key:
            numeric = _numeric(table, column)
            raw = table.columns.column(column)
            frame[column] = (
                _cells(table, column, path.name)[0] if numeric else parse_identifiers(raw, required=False).values
            )
    frame = frame[refusals.ok()].drop_duplicates("asset").set_index("asset")
    if absent := len(known.difference(frame.index)):
        notes.append(f"{absent} assets with sensors are not in {path.name}; their attributes are missing")
    return frame.reindex(sorted(known))
