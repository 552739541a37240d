"""What the gate makes of broken series; whether the files of a review conform, come back exactly and repeat; two CPU-minutes.

    python -m benchmarks.imaging_exports

Broken series: every fault of the tests' battery on the same clean phantom, and clean variants that must pass. Reviews: a
phantom with known nodules and with nothing found, and the complete LIDC scans where the data folder has them.
Conformance needs dciodvfy (Debian: dicom3tools); without it those figures are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, Clock
from core.results import Results, measured, sha256_file
from solutions.medical_imaging.data import LidcData
from solutions.medical_imaging.detected import Detection
from solutions.medical_imaging.exports.seg import read_segmentation
from solutions.medical_imaging.exports.writer import JSON, SEG, SR, export
from solutions.medical_imaging.gate import Series, check, open_series
from solutions.medical_imaging.phantom import PhantomNodule, PhantomSettings, datasets, make_phantom, write_series
from tests.solutions.medical_imaging.examples import truth_detection
from tests.solutions.medical_imaging.faults import CLEAN, FAULTS, Fault

SCANS = ("0001", "0002", "0003")
SMALL = PhantomSettings(
    slices=54, side=96, spacing=(5.0, 3.7, 3.7), vessels=8, nodules=(PhantomNodule((-70.0, -10.0, 12.0), 16.0),)
)
FINE = PhantomSettings(
    slices=110,
    side=160,
    spacing=(2.5, 2.2, 2.2),
    vessels=8,
    nodules=(PhantomNodule((-70.0, -10.0, 12.0), 16.0), PhantomNodule((66.0, 10.0, -20.0), 12.0)),
)
CANARIES = ("CANARY^NIGHTINGALE", "CANARY-4711")


def battery(folder: Path) -> dict[str, float]:
    """Faults named as they should be, faults that passed without a word, clean series that were refused."""
    volume = make_phantom(SMALL).volume

    def judge(fault: Fault, place: Path) -> Any:
        changed = fault.mutate(datasets(volume))
        write_series(changed, place) if fault.write is None else fault.write(changed, place)
        return check(place)[0]

    handled = silent = 0
    for i, fault in enumerate(FAULTS):
        report = judge(fault, folder / f"fault-{i}")
        handled += report.decision == fault.verdict and fault.code in report.codes
        silent += not report.codes
    refused = sum(judge(fault, folder / f"clean-{i}").decision == "refuse" for i, fault in enumerate(CLEAN))
    return {
        "faults": len(FAULTS),
        "handled_share": handled / len(FAULTS),
        "silent": silent,
        "clean": len(CLEAN),
        "false_refusals": refused,
    }


def dciodvfy_errors(folder: Path) -> int:
    """Errors that the validator has about segmentation and report."""
    said = []
    for name in (SEG, SR):
        if (folder / name).exists():
            done = subprocess.run(["dciodvfy", "-new", str(folder / name)], capture_output=True, text=True, check=False)
            said += (done.stdout + done.stderr).splitlines()
    return sum(line.startswith("Error") for line in said)


def judge_export(series: Series, detection: Detection, out: Path) -> dict[str, float]:
    """Voxels that do not come back, distance of the centres, bytes that a second run changes, planted identifiers."""
    from pydicom import dcmread

    export(series, detection, out)
    off, far = 0, 0.0
    found = json.loads((out / JSON).read_text())
    masks = read_segmentation(dcmread(out / SEG), series) if (out / SEG).exists() else {}
    for i, nodule in enumerate(detection.nodules, start=1):
        expected = np.zeros(series.volume.geometry.shape, bool)
        where = tuple(slice(a, a + n) for a, n in zip(nodule.segment.start, nodule.segment.mask_ZYX.shape, strict=True))
        expected[where] = nodule.segment.mask_ZYX
        off += int((masks[i] ^ expected).sum())
        centre = np.asarray(found["nodules"][i - 1]["centre_mm"])
        far = max(far, float(np.linalg.norm(centre - nodule.measurement.centre)))
        middle = series.volume.geometry.to_patient([np.argwhere(masks[i]).mean(0)])[0]
        far = max(far, float(np.linalg.norm(centre - middle)))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    export(series, detection, out)
    changed = sum(before[p.name] != p.read_bytes() for p in out.iterdir())
    texts = [p.read_text() for p in out.iterdir() if p.suffix in (".json", ".html")]
    leaks = sum(canary in text for canary in CANARIES for text in texts)
    errors = {"dciodvfy_errors": dciodvfy_errors(out)} if shutil.which("dciodvfy") else {}
    return {"voxels_off": off, "centre_off_mm": far, "changed_by_second_run": changed, "leaks": leaks, **errors}


def reviews(folder: Path, say: Clock) -> list[dict[str, Any]]:
    """One row for the phantom's truth, one for nothing found, one for every complete scan through the shipped models."""
    rows = []
    phantom = make_phantom(FINE)
    sets = datasets(phantom.volume, patient=CANARIES[0])
    for ds in sets:
        ds.PatientID = CANARIES[1]
    series = open_series(write_series(sets, folder / "phantom"))
    truth = truth_detection(phantom, series)
    rows.append(_row("phantom", judge_export(series, truth, folder / "out-phantom")))
    empty = Detection((), truth.model, truth.model_digest)
    rows.append(_row("nothing_found", judge_export(series, empty, folder / "out-empty")))
    say("phantoms exported")
    data = Path(os.environ.get("VIGIL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (data / "ct" / "lidc_idri_dicom").is_dir():
        print("skipped: the complete scans are not in the data folder (set VIGIL_DATA to it).")
        return rows
    from solutions.medical_imaging.detect import detect
    from solutions.medical_imaging.models import Models

    lidc, models = LidcData.find(data), Models.load()
    for scan in SCANS:
        real = open_series(lidc.unpack(scan, folder / scan))
        found = detect(real, models)
        rows.append(
            _row(f"lidc_{scan}", {"places": len(found.nodules)} | judge_export(real, found, folder / f"out-{scan}"))
        )
        say(f"scan {scan} exported")
    return rows


def _row(name: str, metrics: dict[str, float]) -> dict[str, Any]:
    return {"model": name, "source": "measured", "metrics": {k: {"mean": float(v)} for k, v in metrics.items()}}


def main() -> None:
    say = Clock()
    with measured() as cost, tempfile.TemporaryDirectory() as scratch:
        rows = [_row("gate", battery(Path(scratch)))]
        say(f"{len(FAULTS)} broken and {len(CLEAN)} clean series judged")
        made = reviews(Path(scratch), say)
    total = {key: max(float(row["metrics"][key]["mean"]) for row in made) for key in made[0]["metrics"]}
    rows += [*made, _row("exports", total | {"reviews": float(len(made))})]
    results = Results(
        task="medical_imaging",
        protocol="exports",
        data={
            "name": "phantoms and complete LIDC-IDRI scans",
            "sha256": sha256_file(Path(sys.modules[Fault.__module__].__file__ or "")),
            "rows": len(FAULTS) + len(CLEAN),
        },
        seeds=[0],
        champion="exports",
        cost=cost,
        rows=rows,
    )
    results.print()
    results.write(RESULTS / "imaging_exports.json")


if __name__ == "__main__":
    main()
