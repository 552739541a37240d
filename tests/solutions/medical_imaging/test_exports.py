"""SEG, SR, sheet and JSON: conformant, exact, repeatable, all or nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solutions.medical_imaging.detected import Detection
from solutions.medical_imaging.exports import writer
from solutions.medical_imaging.exports.seg import read_segmentation
from solutions.medical_imaging.exports.sr import read_report
from solutions.medical_imaging.exports.writer import InputError, NoSpaceError, complete, export, refuse
from solutions.medical_imaging.gate import Series, check, open_series
from solutions.medical_imaging.phantom import Phantom, datasets, write_series
from tests.solutions.medical_imaging.examples import truth_detection

FILES = {"segmentation.dcm", "report.dcm", "review.html", "findings.json"}


@pytest.fixture(scope="module")
def series(series_dir: Path) -> Series:
    return open_series(series_dir)


@pytest.fixture(scope="module")
def detection(fine_phantom: Phantom, series: Series) -> Detection:
    return truth_detection(fine_phantom, series)


@pytest.fixture(scope="module")
def out(series: Series, detection: Detection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "review"
    export(series, detection, folder)
    return folder


def test_exactly_the_promised_files(out: Path) -> None:
    assert {p.name for p in out.iterdir()} == FILES


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian: dicom3tools) is not installed")
@pytest.mark.parametrize("name", ["segmentation.dcm", "report.dcm"])
def test_dciodvfy_finds_no_error(out: Path, name: str) -> None:
    done = subprocess.run(["dciodvfy", "-new", str(out / name)], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert [line for line in said if line.startswith("Error")] == []


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="dsrdump (Debian: dcmtk) is not installed")
def test_dsrdump_reads_the_report(out: Path) -> None:
    done = subprocess.run(["dsrdump", str(out / "report.dcm")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "invalid" not in (done.stdout + done.stderr).lower()
    assert "UNVERIFIED" in done.stdout


def test_segmentation_comes_back_voxel_by_voxel(out: Path, series: Series, detection: Detection) -> None:
    from pydicom import dcmread

    masks = read_segmentation(dcmread(out / "segmentation.dcm"), series)
    for i, nodule in enumerate(detection.nodules, start=1):
        z, y, x = nodule.segment.start
        d, h, w = nodule.segment.mask_ZYX.shape
        expected = np.zeros(series.volume.geometry.shape, bool)
        expected[z : z + d, y : y + h, x : x + w] = nodule.segment.mask_ZYX
        assert int((masks[i] ^ expected).sum()) == 0


def test_centres_lie_where_the_nodules_were_put(out: Path, fine_phantom: Phantom) -> None:
    found = json.loads((out / "findings.json").read_text())["nodules"]
    for nodule, true in zip(found, fine_phantom.nodules, strict=True):
        mask = fine_phantom.labels_ZYX == int(nodule["segment"])
        centre = fine_phantom.volume.geometry.to_patient([np.argwhere(mask).mean(0)])[0]
        assert np.linalg.norm(np.array(nodule["centre_mm"]) - centre) <= 0.5
        assert np.linalg.norm(centre - true.centre) < 2.0


def test_report_and_segmentation_share_tracking_uids(out: Path) -> None:
    from pydicom import dcmread

    seg = dcmread(out / "segmentation.dcm")
    report = read_report(dcmread(out / "report.dcm"))
    assert [str(s.TrackingUID) for s in seg.SegmentSequence] == [n.tracking_uid for n in report.nodules]
    assert report.result == "nodules_found"


def test_borderline_uncertainty_and_abstention_are_visible(out: Path) -> None:
    sheet = (out / "review.html").read_text()
    assert "4A or 4B" in sheet
    assert "uncertain" in sheet
    assert "abstained" in sheet
    assert sheet.count("Brock, with the record: 5.0 to 8.0 %") == 1
    assert sheet.count("data:image/png") == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: the pages are not counted")
def test_a_full_sheet_is_printed_on_two_pages(series: Series, detection: Detection, tmp_path: Path) -> None:
    first = replace(detection.nodules[0], fleischner=("CT at 3-6 months, then consider CT at 18-24 months",) * 2)
    many = Detection(tuple(replace(first, number=i) for i in range(1, 13)), "Vigil test", "f" * 64)
    export(series, many, tmp_path / "many")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={tmp_path / 'sheet.pdf'}"]
    page = (tmp_path / "many" / "review.html").as_uri()
    subprocess.run([*command, "--no-pdf-header-footer", page], check=True, capture_output=True, timeout=60)
    pages = (tmp_path / "sheet.pdf").read_bytes().count(b"/Type /Page\n")
    assert 1 <= pages <= 2


def test_a_second_run_changes_no_byte(out: Path, series: Series, detection: Detection) -> None:
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    export(series, detection, out)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before


def test_another_folder_gets_the_same_uids(out: Path, series: Series, detection: Detection, tmp_path: Path) -> None:
    from pydicom import dcmread

    export(series, detection, tmp_path / "again")
    for name in ("segmentation.dcm", "report.dcm"):
        a, b = dcmread(out / name), dcmread(tmp_path / "again" / name)
        for ds in (a, b):
            for tag in ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"):
                if tag in ds:
                    setattr(ds, tag, "")
            for tag in ("SeriesDate", "SeriesTime"):
                ds.pop(tag, None)
        assert _without_times(a) == _without_times(b)


def _without_times(ds: Any) -> str:
    return "\n".join(line for line in str(ds).splitlines() if " DT: " not in line and " TM: " not in line)


def test_nothing_found_is_a_statement(series: Series, tmp_path: Path) -> None:
    found = export(series, Detection((), "Vigil test", "e" * 64), tmp_path / "none")
    assert found["result"] == "none_found"
    assert {p.name for p in (tmp_path / "none").iterdir()} == FILES - {"segmentation.dcm"}
    assert "No nodule found" in (tmp_path / "none" / "review.html").read_text()


def test_only_uncertain_places_look_different(series: Series, detection: Detection, tmp_path: Path) -> None:
    unsure = Detection((detection.nodules[-1],), "Vigil test", "f" * 64)
    assert export(series, unsure, tmp_path / "u")["result"] == "only_uncertain"
    assert "uncertain places" in (tmp_path / "u" / "review.html").read_text()


def test_a_full_disk_leaves_nothing(
    series: Series, detection: Detection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError, match="Nothing was written"):
        export(series, detection, tmp_path / "full")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_killed_before_any_move_and_run_again_gives_the_same_files(
    nth: int, out: Path, series: Series, detection: Detection, tmp_path: Path
) -> None:
    folder, calls, real = tmp_path / "killed", [0], os.replace

    def replace_or_die(*paths: Any) -> None:
        calls[0] += 1
        if calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*paths)

    child = os.fork()
    if child == 0:
        writer.os.replace = replace_or_die  # type: ignore[attr-defined]
        export(series, detection, folder)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert complete(folder) is None
    again = export(series, detection, folder)
    straight = json.loads((out / "findings.json").read_text())
    assert {p.name for p in folder.iterdir()} == FILES
    assert again["nodules"] == straight["nodules"]
    assert again["digest"] == straight["digest"]


def test_results_of_two_series_do_not_mix(out: Path, phantom: Phantom, detection: Detection, tmp_path: Path) -> None:
    other = open_series(write_series(datasets(phantom.volume, key="other"), tmp_path / "other"))
    with pytest.raises(InputError, match="another one"):
        export(other, Detection((), "Vigil test", "a" * 64), out)
    report, _ = check(tmp_path / "other")
    with pytest.raises(InputError, match="accepted series"):
        refuse(report, out)


def test_no_patient_in_any_name_or_text_file(fine_phantom: Phantom, tmp_path: Path) -> None:
    folder = write_series(datasets(fine_phantom.volume, key="canary", patient="CANARY^BIRD"), tmp_path / "CANARY")
    series = open_series(folder)
    export(series, truth_detection(fine_phantom, series), tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert "CANARY" not in path.name
        if path.suffix in (".json", ".html"):
            assert "CANARY" not in path.read_text()
