"""From the positions of the slices to one regular grid, or the cause why there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.codes import Report
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.headers import Slice, text

COSINE_ERROR = 1e-3  # of unit length and right angles; headers are rounded to six digits
DIRECTION_DEGREES = 0.1  # between slices
TILT_DEGREES = 0.5  # between the line of the slices and their normal; 2.4 degrees move a 300 mm stack by 13 mm
AXIAL_DEGREES = 25.0
SHIFT_MM = 0.3  # of a slice against that line
UNEVEN = 0.05  # share of the spacing by which a step may differ
LARGEST_STEP_MM = 5.0
PIXEL_MM = (0.15, 4.0)


@dataclass(frozen=True)
class Placed:
    """Slices in ascending order along their normal, and their grid."""

    slices: list[Slice]
    geometry: Geometry


def place(slices: list[Slice], report: Report) -> Placed | None:
    """Sort by position projected on the slice normal, and check that the grid is regular."""
    columns: dict[str, NDArray[np.float64]] = {}
    for name, count, missing, invalid in (
        ("ImagePositionPatient", 3, "POSITION_MISSING", "POSITION_INVALID"),
        ("ImageOrientationPatient", 6, "ORIENTATION_MISSING", "ORIENTATION_INVALID"),
        ("PixelSpacing", 2, "PIXEL_SPACING_MISSING", "PIXEL_SPACING_INVALID"),
    ):
        values = [s.numbers(name, count) for s in slices]
        absent = [s.uid for s, v in zip(slices, values, strict=True) if v is None and not text(s.dataset, name)]
        broken = [s.uid for s, v in zip(slices, values, strict=True) if v is None and text(s.dataset, name)]
        if absent:
            report.add("refuse", missing, f"{name} is missing in {len(absent)} images", absent)
        if broken:
            report.add("refuse", invalid, f"{name} is not {count} numbers in {len(broken)} images", broken)
        if not absent and not broken:
            columns[name] = np.array(values, np.float64)
    if report.refused:
        return None
    spacing_N2, cosine_N6 = columns["PixelSpacing"], columns["ImageOrientationPatient"]
    _check_plane(spacing_N2, cosine_N6, slices, report)
    if report.refused:
        return None
    row, column = cosine_N6[0, :3], cosine_N6[0, 3:]
    normal = np.cross(row, column)
    along_N = columns["ImagePositionPatient"] @ normal
    order = np.argsort(along_N, kind="stable")
    ordered = [slices[i] for i in order]
    position_N3, along_N = columns["ImagePositionPatient"][order], along_N[order]
    step = _check_steps(along_N, ordered, report)
    if step is None:
        return None
    _check_line(position_N3, normal, ordered, report)
    _check_tags(step, ordered, report)
    if report.refused:
        return None
    first = ordered[0].dataset
    geometry = Geometry(
        origin=_triple(position_N3[0]),
        spacing=(step, float(spacing_N2[0, 0]), float(spacing_N2[0, 1])),
        row_cosine=_triple(row / np.linalg.norm(row)),
        column_cosine=_triple(column / np.linalg.norm(column)),
        shape=(len(ordered), int(first.Rows), int(first.Columns)),
    )
    return Placed(ordered, geometry)


def _triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _check_plane(
    spacing_N2: NDArray[np.float64], cosine_N6: NDArray[np.float64], slices: list[Slice], report: Report
) -> None:
    low, high = PIXEL_MM
    if bad := [s.uid for s, v in zip(slices, spacing_N2, strict=True) if not ((v >= low) & (v <= high)).all()]:
        report.add("refuse", "PIXEL_SPACING_INVALID", f"PixelSpacing is not within {low} to {high} mm", bad)
    usual = np.median(spacing_N2, axis=0)
    if bad := [s.uid for s, v in zip(slices, spacing_N2, strict=True) if (np.abs(v / usual - 1.0) > 1e-3).any()]:
        report.add("refuse", "PIXEL_SPACING_DIFFERS", f"{len(bad)} images differ from {usual[0]:.4f} mm", bad)
    row_N3, column_N3 = cosine_N6[:, :3], cosine_N6[:, 3:]
    length_N = np.abs(np.linalg.norm(row_N3, axis=1) - 1) + np.abs(np.linalg.norm(column_N3, axis=1) - 1)
    skew_N = np.abs((row_N3 * column_N3).sum(1))
    if bad := [s.uid for s, e in zip(slices, np.maximum(length_N, skew_N), strict=True) if e > COSINE_ERROR]:
        report.add(
            "refuse", "ORIENTATION_INVALID", "ImageOrientationPatient is not two perpendicular unit vectors", bad
        )
        return
    normal_N3 = np.cross(row_N3, column_N3)
    usual_3 = np.median(normal_N3, axis=0)
    usual_3 /= max(float(np.linalg.norm(usual_3)), 1e-9)
    turned_N = np.maximum(
        _degrees(normal_N3 @ usual_3), _degrees((row_N3 * np.median(row_N3, axis=0)).sum(1).clip(-1, 1))
    )
    if bad := [s.uid for s, d in zip(slices, turned_N, strict=True) if d > DIRECTION_DEGREES]:
        report.add("refuse", "ORIENTATION_DIFFERS", f"{len(bad)} images are turned against the others", bad)
    if float(_degrees(np.abs(usual_3[2:3]))[0]) > AXIAL_DEGREES:
        report.add("refuse", "NOT_AXIAL", "the slices are not transverse")


def _degrees(cosine_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.degrees(np.arccos(np.clip(cosine_N, -1.0, 1.0)))


def _check_steps(along_N: NDArray[np.float64], slices: list[Slice], report: Report) -> float | None:
    """The even distance of the slices."""
    step_N = np.diff(along_N)
    if (same := np.flatnonzero(step_N < 0.01)).size:
        uids = [slices[i + 1].uid for i in same]
        report.add("refuse", "DUPLICATE_POSITION", f"{len(uids)} slices lie where another one lies", uids)
        return None
    usual = float(np.median(step_N))
    odd = np.flatnonzero(np.abs(step_N / usual - 1.0) > max(UNEVEN, 0.02 / usual))
    gaps = [i for i in odd if step_N[i] > 1.5 * usual]
    if gaps:
        missing = sum(round(step_N[i] / usual) - 1 for i in gaps)
        uids = [slices[i].uid for i in gaps]
        detail = f"about {missing} slices are missing in {len(gaps)} places; listed are the slices before each"
        report.add("refuse", "GAP", detail, uids)
        return None
    if odd.size:
        worst = float(np.abs(step_N - usual).max())
        report.add(
            "refuse", "SPACING_UNEVEN", f"steps differ by up to {worst:.2f} mm", [slices[i + 1].uid for i in odd]
        )
        return None
    step = float(along_N[-1] - along_N[0]) / (len(along_N) - 1)
    drift = float(np.abs(along_N - along_N[0] - step * np.arange(len(along_N))).max())
    if drift > max(SHIFT_MM, 0.2 * step):
        report.add("refuse", "SPACING_UNEVEN", f"slices lie up to {drift:.2f} mm off an even grid")
    if step > LARGEST_STEP_MM + 0.01:
        report.add("refuse", "THICK_SLICES", f"{step:.2f} mm from slice to slice, expected at most {LARGEST_STEP_MM}")
    if (numbers := _instance_numbers(slices)) is not None:
        jumps = Counter(np.abs(np.diff(numbers)).tolist())
        if 1 not in jumps and len(jumps) == 1 and 0 not in jumps:
            report.add("refuse", "GAP", f"InstanceNumber rises by {next(iter(jumps))}: slices in between are missing")
    return step


def _instance_numbers(slices: list[Slice]) -> NDArray[np.int64] | None:
    numbers = [s.numbers("InstanceNumber", 1) for s in slices]
    if any(n is None for n in numbers):
        return None
    return np.array([int(n[0]) for n in numbers if n is not None])


def _check_line(
    position_N3: NDArray[np.float64], normal: NDArray[np.float64], slices: list[Slice], report: Report
) -> None:
    """All slices on one line along the normal: not tilted, none shifted."""
    in_plane_N3 = position_N3 - (position_N3 @ normal)[:, None] * normal
    index = np.arange(len(position_N3)) - (len(position_N3) - 1) / 2
    # the median of pairwise slopes shrugs off single shifted slices
    half = len(index) // 2
    slope_3 = np.median((in_plane_N3[-half:] - in_plane_N3[:half]) / (len(index) - half), axis=0)
    along = float(np.median(np.diff(position_N3 @ normal)))
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(slope_3), along)))
    if tilt > TILT_DEGREES:
        report.add("refuse", "TILT", f"the slices are tilted by {tilt:.1f} degrees against their line")
        return
    rest_N3 = in_plane_N3 - index[:, None] * slope_3
    off_N = np.linalg.norm(rest_N3 - np.median(rest_N3, axis=0), axis=1)
    if bad := [s.uid for s, d in zip(slices, off_N, strict=True) if d > SHIFT_MM]:
        report.add("refuse", "SHIFTED", f"{len(bad)} slices lie up to {off_N.max():.1f} mm beside the others", bad)


def _check_tags(step: float, slices: list[Slice], report: Report) -> None:
    """Tags that positions replace: recorded, not trusted."""
    numbers = _instance_numbers(slices)
    if numbers is None:
        absent = [s.uid for s in slices if s.numbers("InstanceNumber", 1) is None]
        report.add("repair", "INSTANCE_NUMBER", f"missing in {len(absent)} images", absent)
    elif len(set(numbers.tolist())) < len(numbers):
        report.add("repair", "INSTANCE_NUMBER", "used more than once")
    elif len(np.unique(np.sign(np.diff(numbers)))) > 1:
        report.add("repair", "INSTANCE_NUMBER", "in another order than the positions")
    elif len(numbers) and (gaps := np.flatnonzero(np.abs(np.diff(numbers)) > 1)).size:
        report.add("note", "INSTANCE_NUMBER", f"{len(gaps)} jumps without a gap in the positions")
    told = {v[0] for s in slices if (v := s.numbers("SpacingBetweenSlices", 1)) is not None}
    if told and any(abs(abs(v) - step) > 0.05 * step for v in told):
        report.add("repair", "SPACING_TAG", f"SpacingBetweenSlices disagrees with the positions ({step:.3f} mm)")
    thick = [s.uid for s in slices if s.numbers("SliceThickness", 1) is None]
    if thick:
        report.add("repair", "SPACING_TAG", f"SliceThickness is missing in {len(thick)} images", thick)
