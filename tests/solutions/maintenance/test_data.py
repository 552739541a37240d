"""Histories from files: mapping, long and wide, causes of refusal, order and arrival."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.tables import InputError
from solutions.maintenance.data import load_history
from solutions.maintenance.mapping import Mapping
from solutions.maintenance.panel import make_panel
from solutions.maintenance.protocols import load_azure, load_cmapss
from tests.solutions.maintenance.fleets import real, small_fleet, write

COLUMNS = "sensors.condition=load"


def test_wide_and_long_files_give_the_same_history(tmp_path: Path) -> None:
    tables = small_fleet(2, 20)
    wide = load_history(write(tables, tmp_path / "wide"), COLUMNS)
    sensors = tables["sensors"]
    names = [c for c in sensors if c not in ("asset", "time", "load")]
    long = sensors.melt(["asset", "time", "load"], names, "tag", "reading").dropna()
    tables["sensors"] = long
    narrow = load_history(write(tables, tmp_path / "long"), COLUMNS + ",sensors.sensor=tag,sensors.value=reading")
    order = ["asset", "time", "load", *sorted(names)]
    pd.testing.assert_frame_equal(wide.readings[order], narrow.readings[order], check_dtype=False)


def test_csv_and_parquet_give_the_same_history(tmp_path: Path) -> None:
    tables = small_fleet(2, 20)
    first = load_history(write(tables, tmp_path / "a"), COLUMNS)
    second = load_history(write(tables, tmp_path / "b", suffix="csv"), COLUMNS)
    pd.testing.assert_frame_equal(first.readings, second.readings, check_dtype=False)
    assert first.sensors == second.sensors
    assert len(first.events) == len(second.events)


def test_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    tables = small_fleet(2, 20)
    sensors = tables["sensors"]
    twice = sensors.iloc[[5, 5, 9]].assign(vibration=[9.0, 7.0, 8.0])  # ties of arrival included
    tables["sensors"] = pd.concat([sensors, twice])
    first = load_history(write(tables, tmp_path / "a"), COLUMNS)
    for name in ("sensors", "errors", "maintenance", "failures", "work_orders"):
        tables[name] = tables[name].sample(frac=1.0, random_state=1)
    second = load_history(write(tables, tmp_path / "b"), COLUMNS)
    pd.testing.assert_frame_equal(first.readings, second.readings)
    pd.testing.assert_frame_equal(first.events, second.events)
    assert "3 readings were repeated" in first.notes[0]


def test_every_refusal_has_its_cause(tmp_path: Path) -> None:
    tables = small_fleet(2, 20)
    sensors = tables["sensors"].astype({"vibration": object, "asset": object})
    sensors["arrived"] = sensors["time"]
    sensors.loc[3, "asset"] = None
    sensors.loc[4, "vibration"] = "broken"
    sensors.loc[5, "arrived"] = sensors.loc[5, "time"] - pd.Timedelta(days=2)
    tables["sensors"] = sensors
    tables["failures"] = pd.DataFrame(
        {"asset": ["P-001", "P-999"], "time": ["2025-01-05", "2025-01-05"], "code": ["seal", "seal"]}
    )
    tables["errors"].loc[0, "code"] = None
    history = load_history(write(tables, tmp_path, suffix="csv"), COLUMNS)
    assert history.causes() == {
        "sensors.asset: missing": 1,
        "sensors.vibration: not a number": 1,
        "sensors.time: after its arrival": 1,
        "failures.asset: asset without sensors": 1,
        "errors.code: missing": 1,
    }
    row = history.rejected.set_index("column").loc["vibration"]
    assert row["row"] == 4  # the cell alone is lost, its row is kept
    assert len(history.readings) == len(sensors) - 2


def test_what_is_not_there_is_named_with_the_likely_name(tmp_path: Path) -> None:
    tables = small_fleet(1, 20)
    folder = write({**tables, "sensors": tables["sensors"].rename(columns={"asset": "machine"})}, tmp_path)
    with pytest.raises(InputError, match=r"no column `machin` for `asset`. Did you mean `machine`\?"):
        load_history(folder, "sensors.asset=machin")
    with pytest.raises(InputError, match=r"unknown table `sensor`. Did you mean `sensors`\?"):
        load_history(folder, "sensor.asset=machine")
    with pytest.raises(InputError, match="unknown field `tiem`. Did you mean `time`"):
        load_history(folder, "tiem=x")
    with pytest.raises(InputError, match="no file `sensorz.parquet`"):
        load_history(folder, "sensors.file=sensorz")
    with pytest.raises(InputError, match="is not a folder"):
        load_history(folder / "none")
    with pytest.raises(InputError, match="mapped to two fields"):
        load_history(folder, "sensors.asset=machine,sensors.condition=machine")


def test_text_in_another_encoding_and_empty_files_are_input_errors(tmp_path: Path) -> None:
    folder = write(small_fleet(1, 20), tmp_path, suffix="csv")
    (folder / "work_orders.csv").write_bytes("asset,time,text\nP-001,2025-01-02,Öl\n".encode("latin-1"))
    history = load_history(folder, COLUMNS)
    assert "work_orders.csv is left out: it is in another encoding. Save it as UTF-8." in history.notes
    (folder / "failures.csv").write_bytes("asset,time,code\nP-001,2025-01-02,Öl\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"failures.csv: can not be read as csv.*UTF8"):  # labels are never left out
        load_history(folder, COLUMNS)
    (folder / "failures.csv").unlink()
    (folder / "sensors.csv").write_text("asset,time,x\n")
    with pytest.raises(InputError, match=r"sensors.csv: the file has no rows"):
        load_history(folder)


def test_a_mapping_speaks_for_one_table_or_for_all() -> None:
    mapping = Mapping.parse("asset=m, errors.asset=machine")
    assert mapping.column("sensors", "asset") == "m"
    assert mapping.column("errors", "asset") == "machine"
    assert mapping.column("errors", "time") == "time"


def test_only_what_arrived_is_known(tmp_path: Path) -> None:
    tables = small_fleet(1, 20)
    sensors = tables["sensors"].assign(arrived=lambda f: f["time"])
    sensors.loc[10, "arrived"] += pd.Timedelta(days=3)
    tables["sensors"] = sensors
    history = load_history(write(tables, tmp_path), COLUMNS)
    day = sensors.loc[10, "time"].to_datetime64() + np.timedelta64(1, "D")
    assert len(history.known_at(day).readings) == 10 + 24
    assert len(history.known_at(day + np.timedelta64(3, "D")).readings) == 11 + 96


def test_a_clock_that_jumps_is_refused(tmp_path: Path) -> None:
    tables = small_fleet(1, 20)
    tables["sensors"].loc[0, "time"] = pd.Timestamp("1990-01-01")
    history = load_history(write(tables, tmp_path), COLUMNS)
    with pytest.raises(InputError, match="asset P-001: .* hours without a reading"):
        make_panel(history)


def test_cmapss_and_azure_come_through_the_same_path() -> None:
    train, test, left = load_cmapss(real("cmapss"), "FD001")
    assert (len(train.readings), len(test.readings), len(left)) == (20631, 13096, 100)
    assert len(train.failures()) == 100
    assert left[sorted(test.readings["asset"].unique()).index("1")] == 112.0
    history, cut = load_azure(real("azure_pdm"))
    assert len(history.readings) == 43_200
    assert history.failures().drop_duplicates(["asset", "time"]).query("time <= '2015-04-01 05:00'").shape[0] == 37
    assert cut == np.datetime64("2015-03-02T06:00")
