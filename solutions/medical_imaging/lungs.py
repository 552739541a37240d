"""Lungs by thresholds and connected components, and whether what was found can be a pair of lungs.

Z slices, Y rows, X columns of the working grid of about 2.5 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import Geometry, Mask, Volume, resample

WORK_MM = 2.5
AIR_HU = -400.0  # between lung (-850) and soft tissue (0)
CLOSE_MM = 9.0  # fills nodules at the pleura and vessels of the hilum up to twice this width
LEAST_ML, MOST_ML = 700.0, 11_000.0  # of both lungs; adults at any phase of breathing measure 1.5 to 8 litres
CUT_SHARE = 0.45  # of the largest area: lungs that are larger than this in the last slice were cut


@dataclass(frozen=True)
class Lungs:
    """Mask on the working grid, what it holds, and why it can not be trusted (nothing when it can).

    Args:
        failure: NO_LUNGS, LUNG_SIZE or LUNGS_CUT of the gate's codes, with the detail.
    """

    mask_ZYX: Mask
    geometry: Geometry
    millilitres: float
    median_hu: float
    failure: tuple[str, str] | None = None


def find_lungs(volume: Volume) -> Lungs:
    """Air inside the body, without the airways, closed over vessels and nodules at the wall."""
    from scipy import ndimage

    g = volume.geometry
    spacing = (max(WORK_MM, g.spacing[0]), WORK_MM, WORK_MM)
    work = g.resampled(spacing)
    hu = resample(np.maximum(volume.hu_ZYX, -1024), g, work)
    inside = _inside_air(hu < AIR_HU)
    labels, count = ndimage.label(inside)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * work.voxel_mm3 / 1000.0
    if count == 0 or sizes.max() < 100.0:
        return Lungs(np.zeros(work.shape, bool), work, 0.0, 0.0, ("NO_LUNGS", "no air space of 100 ml in the body"))
    order = np.argsort(-sizes)
    keep = [int(order[0]) + 1]
    if count > 1 and sizes[order[1]] > max(0.15 * sizes[order[0]], 100.0):
        keep.append(int(order[1]) + 1)
    raw = np.isin(labels, keep)
    raw = _without_airways(raw, hu)
    mask = ndimage.binary_fill_holes(_close(raw, work))  # a nodule that is wider than what is closed over
    millilitres = float(raw.sum()) * work.voxel_mm3 / 1000.0
    median_hu = float(np.median(hu[raw])) if raw.any() else 0.0
    return Lungs(mask, work, millilitres, median_hu, _failure(raw, millilitres, median_hu))


def _inside_air(air: Mask) -> Mask:
    """Air that does not touch the border of its slice: what surrounds the body does."""
    from scipy import ndimage

    inside = np.empty_like(air)
    for z in range(len(air)):
        body = ndimage.binary_opening(~air[z], iterations=2)  # the table is thin
        labels, count = ndimage.label(body)
        if count == 0:
            inside[z] = False
            continue
        largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
        inside[z] = ndimage.binary_fill_holes(largest) & air[z]
    return inside


def _without_airways(raw: Mask, hu: NDArray[Any]) -> Mask:
    """Trachea and main bronchi are darker than lung; they are taken out where they are connected to each other."""
    from scipy import ndimage

    dark = raw & (hu < -940.0)
    labels, count = ndimage.label(ndimage.binary_opening(dark))
    if count == 0:
        return raw
    airways = np.zeros_like(raw)
    for index, where in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[where] == index
        # a tube: long in z and narrow in the slice. Emphysema is not.
        if part.shape[0] >= 8 and part.sum(axis=(1, 2)).max() * WORK_MM**2 < 900.0:
            airways[where] |= part
    return np.asarray(raw & ~ndimage.binary_dilation(airways), bool)


def _close(raw: Mask, geometry: Geometry) -> Mask:
    """Closing with a ball of CLOSE_MM, by two distance transforms."""
    from scipy import ndimage

    pad = [(int(CLOSE_MM / s) + 2,) * 2 for s in geometry.spacing]
    padded = np.pad(raw, pad)
    away = ndimage.distance_transform_edt(~padded, geometry.spacing)
    grown = away <= CLOSE_MM
    closed = ndimage.distance_transform_edt(grown, geometry.spacing) > CLOSE_MM
    inner = tuple(slice(p[0], p[0] + n) for p, n in zip(pad, raw.shape, strict=True))
    return np.asarray(closed[inner] | raw, bool)


def _failure(raw: Mask, millilitres: float, median_hu: float) -> tuple[str, str] | None:
    if not LEAST_ML <= millilitres <= MOST_ML:
        return "LUNG_SIZE", f"{millilitres:.0f} ml of lung, expected {LEAST_ML:.0f} to {MOST_ML:.0f}"
    if not -980.0 <= median_hu <= -550.0:
        return "NO_LUNGS", f"the air space measures {median_hu:.0f} HU, lung measures -980 to -550"
    area_Z = raw.sum(axis=(1, 2)).astype(float)
    for name, end in (("first", area_Z[0]), ("last", area_Z[-1])):
        if end > CUT_SHARE * area_Z.max():
            return "LUNGS_CUT", f"the {name} slice shows {end / area_Z.max():.0%} of the largest cross-section"
    columns = np.flatnonzero(raw.any(axis=(0, 1)))
    middle = (columns[0] + columns[-1]) // 2
    left = float(raw[:, :, :middle].sum()) / max(float(raw.sum()), 1.0)
    if not 0.08 <= left <= 0.92:
        return "NO_LUNGS", f"{max(left, 1 - left):.0%} of the air space lies on one side"
    return None
