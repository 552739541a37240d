"""The gate against every fault of the battery: none passes silently, and nothing clean is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solutions.medical_imaging.codes import RefusedError
from solutions.medical_imaging.gate import check, open_series
from solutions.medical_imaging.phantom import Phantom, write_series
from tests.solutions.medical_imaging.faults import CLEAN, FAULTS, Fault, _second_series


def _make(fault: Fault, sets: list[Any], folder: Path) -> Path:
    changed = fault.mutate(sets)
    if fault.write is None:
        write_series(changed, folder)
    else:
        fault.write(changed, folder)
    return folder


def test_the_battery_is_large_enough() -> None:
    assert len(FAULTS) >= 40
    assert len({f.name for f in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_every_fault_is_named(fault: Fault, sets: list[Any], tmp_path: Path) -> None:
    report, series = check(_make(fault, sets, tmp_path / "in"))
    assert (report.decision, fault.code in report.codes) == (fault.verdict, True), report.text()
    assert (series is None) == (fault.verdict == "refuse")


@pytest.mark.parametrize("fault", CLEAN, ids=lambda f: f.name)
def test_nothing_clean_is_refused(fault: Fault, sets: list[Any], tmp_path: Path, phantom: Phantom) -> None:
    report, series = check(_make(fault, sets, tmp_path / "in"))
    assert report.decision == "accept", report.text()
    assert series is not None
    np.testing.assert_array_equal(series.volume.hu_ZYX, phantom.volume.hu_ZYX)
    np.testing.assert_allclose(series.volume.geometry.origin, phantom.volume.geometry.origin, atol=1e-3)


def test_repaired_series_have_the_same_voxels(sets: list[Any], tmp_path: Path, phantom: Phantom) -> None:
    for fault in FAULTS:
        if fault.name in ("rescale values per slice", "instance numbers shuffled"):
            changed = fault.mutate([ds.copy() for ds in sets])
            series = open_series(write_series(changed, tmp_path / fault.code))
            np.testing.assert_array_equal(series.volume.hu_ZYX, phantom.volume.hu_ZYX)


def test_one_of_two_series_can_be_chosen(sets: list[Any], tmp_path: Path) -> None:
    wanted = str(sets[0].SeriesInstanceUID)
    folder = write_series(_second_series(sets), tmp_path / "in")
    report, _ = check(folder)
    assert wanted in report.findings[0].detail
    assert check(folder, wanted)[0].decision == "accept"
    assert check(folder, "1.2.3")[0].codes == ["SERIES_UNKNOWN"]


def test_a_refusal_says_what_and_names_no_patient(sets: list[Any], tmp_path: Path) -> None:
    for ds in sets:
        ds.PatientName, ds.PatientID = "Canary^Nightingale", "CANARY-4711"
    del sets[4].ImagePositionPatient
    folder = write_series(sets, tmp_path / "Canary^Nightingale")
    with pytest.raises(RefusedError, match="POSITION_MISSING") as caught:
        open_series(folder)
    said = str(caught.value) + caught.value.report.text() + str(caught.value.report.to_json())
    assert "anary" not in said
    assert caught.value.report.findings[0].uids == (str(sets[4].SOPInstanceUID),)
    assert caught.value.exit_code == 3
