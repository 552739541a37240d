"""Growth against an earlier review: the right pairs, guards, and what can not be compared."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solutions.medical_imaging.detected import Bounds
from solutions.medical_imaging.exports.writer import Beside, export
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import Series, open_series
from solutions.medical_imaging.phantom import Phantom
from solutions.medical_imaging.priors import Study, changes, matched, study_of
from tests.solutions.medical_imaging.examples import truth_detection

BOX = np.array([[-100.0, -80.0, -120.0], [100.0, 80.0, 120.0]])


@pytest.fixture
def series(series_dir: Path) -> Series:
    return open_series(series_dir)


@pytest.fixture
def earlier(fine_phantom: Phantom, series: Series, tmp_path: Path) -> Path:
    export(series, truth_detection(fine_phantom, series), tmp_path / "earlier")
    return tmp_path / "earlier"


def later(study: Study, days: int = 180) -> Study:
    return replace(study, day=study.day + days, slice_mm=1.0)


def with_thin_slices(folder: Path) -> None:
    found = json.loads((folder / "findings.json").read_text())
    found["spacing_mm"][0] = 1.0
    (folder / "findings.json").write_text(json.dumps(found))


def grown(nodule: Any, factor: float) -> Any:
    m = replace(nodule.measurement, volume_mm3=nodule.measurement.volume_mm3 * factor)
    return replace(nodule, measurement=m, volume=Bounds(m.volume_mm3 * 0.95, m.volume_mm3 * 1.05))


def test_each_nodule_is_compared_with_itself_and_a_new_one_says_so(
    fine_phantom: Phantom, series: Series, earlier: Path
) -> None:
    with_thin_slices(earlier)
    nodules = truth_detection(fine_phantom, series).nodules
    doubled = grown(nodules[0], 2.0)
    far = replace(nodules[1], number=7, measurement=replace(nodules[1].measurement, centre=(0.0, 60.0, 90.0)))
    found = changes(earlier, later(study_of(series)), (doubled, far))
    growth = found[doubled.number].growth
    assert found[7].prior is None
    assert "new" in found[7].text()
    assert growth is not None
    assert growth.change == pytest.approx(1.0, abs=0.01)
    said = found[doubled.number].text()
    assert ("doubling time 180 days" in said) == (growth.doubling_days is not None)


def test_thick_slices_give_no_doubling_time(fine_phantom: Phantom, series: Series, earlier: Path) -> None:
    nodule = grown(truth_detection(fine_phantom, series).nodules[0], 3.0)
    thick = replace(later(study_of(series)), slice_mm=5.0)
    growth = changes(earlier, thick, (nodule,))[nodule.number].growth
    assert growth is not None
    assert growth.doubling_days is None
    assert "slices of 5.00 mm" in growth.why_not[0]


def test_breathing_and_another_scanner_do_not_change_the_pairs(fine_phantom: Phantom, series: Series) -> None:
    nodules = truth_detection(fine_phantom, series).nodules
    shift, scale = np.array([12.0, -30.0, 200.0]), np.array([1.0, 1.05, 1.15])
    before = [
        {
            "name": f"n{n.number}",
            "centre_mm": list((np.asarray(n.measurement.centre) - BOX[0]) * scale + BOX[0] + shift),
        }
        for n in reversed(nodules)
    ]
    box = np.stack([BOX[0] + shift, BOX[0] + (BOX[1] - BOX[0]) * scale + shift])
    pairs = matched(before, box, nodules, BOX)
    assert {number: entry["name"] for number, entry in pairs.items()} == {n.number: f"n{n.number}" for n in nodules}


def test_what_can_not_be_compared_is_refused_with_its_cause(series: Series, earlier: Path, tmp_path: Path) -> None:
    now = later(study_of(series))
    with pytest.raises(InputError, match="must be the folder of an earlier review"):
        changes(tmp_path / "nowhere", now, ())
    with pytest.raises(InputError, match="belongs to another patient"):
        changes(earlier, replace(now, patient_key="x"), ())
    with pytest.raises(InputError, match="must be of an older study"):
        changes(earlier, study_of(series), ())


def test_discordance_and_growth_are_outputs_of_their_own(
    fine_phantom: Phantom, series: Series, earlier: Path, tmp_path: Path
) -> None:
    detection = truth_detection(fine_phantom, series)
    beside = Beside(
        ("a note",), ("the report denies nodules",), changes(earlier, later(study_of(series)), detection.nodules)
    )
    found = export(series, detection, tmp_path / "out", beside)
    assert found["notes"] == ["a note"]
    assert found["discordance"] == ["the report denies nodules"]
    assert all(n["growth"]["prior"] == n["name"] for n in found["nodules"])
    for n in found["nodules"]:  # read back from the structured report
        assert n["volume_change_percent"] == pytest.approx(100.0 * n["growth"]["change"], abs=0.1)
        assert n["volume_change_low_percent"] < n["volume_change_percent"] < n["volume_change_high_percent"]
        assert "not_grown" in n["since_prior"]
    if shutil.which("dciodvfy"):
        report = str(tmp_path / "out" / "report.dcm")
        done = subprocess.run(["dciodvfy", "-new", report], capture_output=True, text=True, check=False)
        assert not [x for x in (done.stdout + done.stderr).splitlines() if x.startswith("Error")]
    sheet = (tmp_path / "out" / "review.html").read_text()
    assert "Discordance" in sheet
    assert "Since the prior" in sheet
    assert str(series.first.PatientID) not in json.dumps(found)
