"""Files of a study: written beside their place, checked, then moved; `findings.json` last, since it says "complete"."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from solutions.medical_imaging.codes import Report
from solutions.medical_imaging.detected import Detection
from solutions.medical_imaging.exports.identity import Identity
from solutions.medical_imaging.exports.seg import make_segmentation, read_segmentation
from solutions.medical_imaging.exports.sheet import render
from solutions.medical_imaging.exports.sr import ReadReport, make_report, read_report
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.priors import Change, study_of, to_json

SEG, SR, SHEET, JSON, REFUSAL = "segmentation.dcm", "report.dcm", "review.html", "findings.json", "refusal.json"
PARTIAL = ".partial-"


@dataclass(frozen=True)
class Beside:
    """What stands beside the nodules of a review.

    Args:
        notes: of the detection. discordance: where a written report says otherwise. changes: since a prior, by nodule number.
    """

    notes: tuple[str, ...] = ()
    discordance: tuple[str, ...] = ()
    changes: dict[int, Change] = field(default_factory=dict)


class NoSpaceError(InputError):
    """The disk is full; nothing was left behind."""


def export(series: Series, detection: Detection, out: Path, beside: Beside | None = None) -> dict[str, Any]:
    """Write all files of a study; returns what `findings.json` holds. A repeated run changes nothing.

    Raises:
        InputError: the folder holds results of another series.
    """
    beside = beside or Beside()
    first = series.first
    identity = Identity(str(first.StudyInstanceUID), str(first.SeriesInstanceUID), detection.model_digest)
    digest = _digest(detection, identity, beside)
    done = complete(out)
    if done is not None:
        if done["series_key"] != _series_key(identity):
            raise InputError(
                "`--out` must be empty or hold results of the same series. Received: results of another one."
            )
        if done["digest"] == digest:
            (out / REFUSAL).unlink(missing_ok=True)
            return done
    segmentation = make_segmentation(series, detection, identity)
    report = make_report(series, detection, segmentation, identity, beside.changes)
    files = {SR: _bytes(report)}
    if segmentation is not None:
        files[SEG] = _bytes(segmentation)
    read = read_report(_parse(files[SR]))
    masks = {} if segmentation is None else read_segmentation(_parse(files[SEG]), series)
    _check_round_trip(detection, masks, read)
    files[SHEET] = render(read, series.volume, masks, _context(series, identity, beside)).encode()
    found = findings(read, series, identity, beside) | {
        "digest": digest,
        "series_key": _series_key(identity),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    }
    files[JSON] = (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()
    _place(files, out, last=JSON)
    for stale in (REFUSAL, *((SEG,) if SEG not in files else ())):
        (out / stale).unlink(missing_ok=True)
    return found


def refuse(report: Report, out: Path) -> None:
    """Write `refusal.json`; results of an earlier, accepted run are not overwritten but must not be there."""
    if complete(out) is not None:
        raise InputError(
            "`--out` must not hold results of an accepted series when one is refused. Choose another folder."
        )
    data = (json.dumps(report.to_json(), indent=1) + "\n").encode()
    _place({REFUSAL: data}, out, last=REFUSAL)


def complete(out: Path) -> dict[str, Any] | None:
    """What a finished run wrote, or None when there is none, or its files are not what it wrote."""
    try:
        found: dict[str, Any] = json.loads((out / JSON).read_text())
        for name, expected in found["files"].items():
            if hashlib.sha256((out / name).read_bytes()).hexdigest() != expected:
                return None
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return found


def findings(read: ReadReport, series: Series, identity: Identity, beside: Beside) -> dict[str, Any]:
    """The JSON view of a report."""
    g = series.volume.geometry
    nodules = [
        {
            "name": n.name,
            "tracking_uid": n.tracking_uid,
            "segment": n.segment,
            "centre_mm": list(n.centre),
            "centre_index": [round(float(v), 2) for v in g.to_index([n.centre])[0]],
            "side": n.side,
            **n.numbers,
            **{key: list(words) for key, words in sorted(n.words.items())},
            **({"growth": beside.changes[number].to_json()} if number in beside.changes else {}),
        }
        for number, n in enumerate(read.nodules, start=1)
    ]
    return {
        "result": read.result,
        "model": read.model,
        "model_digest": identity.model_digest[:16],
        "study_uid": identity.study_uid,
        "series_uid": identity.series_uid,
        "study_key": identity.study_key,
        "verified": False,
        "gate": {"verdict": series.report.decision, "codes": series.report.codes},
        "slices": g.shape[0],
        "spacing_mm": list(g.spacing),
        "lung_ml": round(series.lungs.millilitres),
        "notes": list(beside.notes),
        "discordance": list(beside.discordance),
        "comparison": to_json(study_of(series)),
        "nodules": nodules,
    }


def _context(series: Series, identity: Identity, beside: Beside) -> dict[str, str]:
    g = series.volume.geometry
    lines = {
        "Study": identity.study_key,
        "Series": f"{g.shape[0]} slices of {g.spacing[0]:.2f} mm, pixels of {g.spacing[1]:.3f} mm",
        "Gate": series.report.decision + (f" ({', '.join(series.report.codes)})" if series.report.codes else ""),
        "Lungs": f"{series.lungs.millilitres / 1000:.1f} litres, median {series.lungs.median_hu:.0f} HU",
    }
    if beside.changes:
        lines["Since the prior"] = "; ".join(f"Nodule {n}: {c.text()}" for n, c in sorted(beside.changes.items()))
    if beside.discordance:
        lines["Discordance"] = "; ".join(beside.discordance)
    return lines | ({"Notes": "; ".join(beside.notes)} if beside.notes else {})


def _series_key(identity: Identity) -> str:
    return hashlib.sha256(identity.series_uid.encode()).hexdigest()[:16]


def _digest(detection: Detection, identity: Identity, beside: Beside) -> str:
    digest = hashlib.sha256(repr((identity, detection.model, beside)).encode())
    for n in detection.nodules:
        plain = (n.number, n.segment.start, n.measurement, n.volume, n.mean_diameter, n.confidence, n.assessment)
        digest.update(repr((*plain, n.side, n.zone, n.texture, n.lung_rads, n.fleischner, n.malignancy)).encode())
        digest.update(repr((n.spiculation, n.lobulation, n.calcified, n.cancer)).encode())
        digest.update(np.packbits(n.segment.mask_ZYX).tobytes())
    return digest.hexdigest()


def _check_round_trip(detection: Detection, masks: dict[int, Any], read: ReadReport) -> None:
    """What is about to be written says what was found: every mask voxel by voxel, every centre."""
    for i, nodule in enumerate(detection.nodules, start=1):
        z, y, x = nodule.segment.start
        d, h, w = nodule.segment.mask_ZYX.shape
        part = masks[i][z : z + d, y : y + h, x : x + w]
        assert int(masks[i].sum()) == int(part.sum()), "a segment must not leave its box"
        assert np.array_equal(part, nodule.segment.mask_ZYX), "a segment must read back as it was written"
        assert np.allclose(read.nodules[i - 1].centre, nodule.measurement.centre, atol=0.01), "a centre must read back"


def _bytes(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _parse(data: bytes) -> Any:
    from pydicom import dcmread

    return dcmread(io.BytesIO(data))


def _place(files: dict[str, bytes], out: Path, *, last: str) -> None:
    """Write to a folder beside the target, then move file by file, the one that says "complete" at the end."""
    made = not out.exists()
    scratch = out / f"{PARTIAL}{uuid.uuid4().hex[:8]}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(f"{PARTIAL}*"):  # of a run that was killed
            shutil.rmtree(stale, ignore_errors=True)
        scratch.mkdir()
        for name, data in files.items():
            with (scratch / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if last == JSON:
            (out / JSON).unlink(missing_ok=True)  # from here to the end the folder is not complete
        for name in sorted(files, key=lambda n: n == last):
            os.replace(scratch / name, out / name)
        scratch.rmdir()
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if made and out.exists() and not any(out.iterdir()):
            out.rmdir()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = sum(len(d) for d in files.values()) / 1e6
            raise NoSpaceError(
                f"no space is left for the results: {need:.1f} MB are needed. Nothing was written."
            ) from error
        raise
