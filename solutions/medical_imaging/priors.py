"""An earlier review of the same patient: which nodule was which, and how each has changed.

Lungs breathe, so places are compared as fractions of the lungs' box, not in millimetres of the scanner.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.detected import DetectedNodule
from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.growth import Growth, Seen, compare

FARTHEST_MM = 20.0  # between a nodule's place and where its prior would lie in these lungs


@dataclass(frozen=True)
class Study:
    """What of a scan matters for a comparison. box: corners of the lungs (2, 3) in mm."""

    patient_key: str
    day: int
    kernel: str
    slice_mm: float
    box: NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """A nodule's growth against its prior, named as the earlier review named it; None for a nodule that is new."""

    prior: str | None
    growth: Growth | None

    def to_json(self) -> dict[str, Any]:
        return {"prior": self.prior, **(asdict(self.growth) if self.growth is not None else {})}

    def text(self) -> str:
        g = self.growth
        if g is None:
            return "new: not in the prior review"
        said = f"volume {g.change:+.0%} ({g.change_low:+.0%} to {g.change_high:+.0%}) since the prior review"
        if g.doubling_days is not None:
            said += f", doubling time {g.doubling_days:.0f} days"
        else:
            said += f"; no doubling time: {'; '.join(g.why_not)}"
        return said + (", growth by Lung-RADS" if g.lung_rads_growth else "")


def study_of(series: Series) -> Study:
    """Of a series that was just read."""
    from solutions.medical_imaging.exports.identity import patient_key

    where = np.argwhere(series.lungs.mask_ZYX)
    corners = series.lungs.geometry.to_patient(np.stack([where.min(0), where.max(0)]))
    first = series.first
    text = str(getattr(first, "StudyDate", "") or "")
    day = date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal() if len(text) == 8 and text.isdigit() else 0
    kernel = getattr(first, "ConvolutionKernel", "") or ""
    return Study(
        patient_key(str(first.PatientID or "")),
        day,
        kernel if isinstance(kernel, str) else "/".join(kernel),
        series.volume.geometry.spacing[0],
        np.stack([corners.min(0), corners.max(0)]),
    )


def to_json(study: Study) -> dict[str, Any]:
    """For `findings.json`."""
    box = [[round(float(v), 1) for v in corner] for corner in study.box]
    return {"patient_key": study.patient_key, "day": study.day, "kernel": study.kernel, "lung_box_mm": box}


def changes(folder: Path, current: Study, nodules: tuple[DetectedNodule, ...]) -> dict[int, Change]:
    """By nodule number, what became of it since the review in `folder`.

    Raises:
        InputError: that is no finished review, of another patient, or not older.
    """
    try:
        found = json.loads((folder / "findings.json").read_text())
        before = found["comparison"]
        prior = Study(
            before["patient_key"],
            before["day"],
            before["kernel"],
            float(found["spacing_mm"][0]),
            np.asarray(before["lung_box_mm"], np.float64),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"`--prior` must be the folder of an earlier review with its findings.json. Received: {type(error).__name__}."
        ) from error
    if prior.patient_key != current.patient_key:
        raise InputError("the prior review belongs to another patient than the series.")
    if not 0 < prior.day < current.day:
        raise InputError("the prior review must be of an older study, and both studies must have a date.")
    pairs = matched(found["nodules"], prior.box, nodules, current.box)
    out: dict[int, Change] = {}
    for nodule in nodules:
        earlier = pairs.get(nodule.number)
        out[nodule.number] = (
            Change(None, None)
            if earlier is None
            else Change(earlier["name"], compare(_seen_before(earlier, prior), _seen_now(nodule, current)))
        )
    return out


def matched(
    earlier: list[dict[str, Any]], box_before: NDArray[Any], nodules: tuple[DetectedNodule, ...], box_now: NDArray[Any]
) -> dict[int, dict[str, Any]]:
    """By nodule number, the entry of the earlier review; the nearest pairs first, each used once."""
    size = box_now[1] - box_now[0]
    there = [
        box_now[0] + (np.asarray(e["centre_mm"]) - box_before[0]) / (box_before[1] - box_before[0]) * size
        for e in earlier
    ]
    distances = sorted(
        (float(np.linalg.norm(np.asarray(n.measurement.centre) - place)), n.number, i)
        for n in nodules
        for i, place in enumerate(there)
    )
    pairs: dict[int, dict[str, Any]] = {}
    used: set[int] = set()
    for distance, number, i in distances:
        if distance <= FARTHEST_MM and number not in pairs and i not in used:
            pairs[number] = earlier[i]
            used.add(i)
    return pairs


def _seen_before(entry: dict[str, Any], study: Study) -> Seen:
    return Seen(
        study.day,
        entry["volume_mm3"],
        min(entry["volume_low_mm3"], entry["volume_mm3"]),
        max(entry["volume_high_mm3"], entry["volume_mm3"]),
        entry["mean_diameter_mm"],
        study.slice_mm,
        study.kernel,
    )


def _seen_now(nodule: DetectedNodule, study: Study) -> Seen:
    m, v = nodule.measurement, nodule.volume
    return Seen(
        study.day,
        m.volume_mm3,
        min(v.low, m.volume_mm3),
        max(v.high, m.volume_mm3),
        m.mean_mm,
        study.slice_mm,
        study.kernel,
    )
