"""Candidates: places that may be nodules, by the classical Laplacian of Gaussian.

Z slices, Y rows, X columns of the working grid; N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.geometry import Mask
from solutions.medical_imaging.insertion import GRID_MM

F32 = NDArray[np.float32]
MERGE_MM = 5.0
FINE_RADII_MM, COARSE_RADII_MM = (1.8, 2.7, 4.0), (6.0, 9.0, 13.0)
LOG_RADII_MM = FINE_RADII_MM + COARSE_RADII_MM
MOST = 450  # candidates per scan


@dataclass(frozen=True)
class Candidate:
    """A place on the working grid, a score between 0 and 1, and a rough diameter."""

    centre: tuple[float, float, float]
    score: float
    diameter_mm: float


def laplacian(crop: LungCrop, *, least: float = 120.0) -> list[Candidate]:
    """Bright blobs by the scale-normalised Laplacian of Gaussian (Lindeberg 1998), inside the lung mask.

    The score is the response in HU/1000, at the best scale.
    """
    from scipy import ndimage

    best, scale = responses(np.clip(crop.hu_ZYX, -950.0, 100.0))
    core = _core(crop.lung_ZYX)
    peak = (best == ndimage.maximum_filter(best, 5)) & (best > least) & core
    where = np.argwhere(peak)
    order = np.argsort(-best[peak], kind="stable")
    found = [
        Candidate((float(z), float(y), float(x)), min(float(best[z, y, x]) / 1000.0, 1.0), 2.0 * float(scale[z, y, x]))
        for z, y, x in where[order]
    ]
    return merged(found)[:MOST]


def responses(hu_ZYX: F32, *, halve: bool = True) -> tuple[F32, F32]:
    """The strongest response of every voxel and the radius that gave it.

    Args:
        halve: large radii at half the resolution, for an eighth of the cost.
    """
    if not halve:
        return _strongest(hu_ZYX, LOG_RADII_MM, GRID_MM)
    best, scale = _strongest(hu_ZYX, FINE_RADII_MM, GRID_MM)
    padded = np.pad(hu_ZYX, [(0, n % 2) for n in hu_ZYX.shape], mode="edge")
    z, y, x = (n // 2 for n in padded.shape)
    half = padded.reshape(z, 2, y, 2, x, 2).mean((1, 3, 5), dtype=np.float32)
    coarse, radius = (_doubled(v, hu_ZYX.shape) for v in _strongest(half, COARSE_RADII_MM, 2.0 * GRID_MM))
    better = coarse > best
    return np.where(better, coarse, best), np.where(better, radius, scale)


def _strongest(hu_ZYX: F32, radii_mm: tuple[float, ...], voxel_mm: float) -> tuple[F32, F32]:
    from scipy import ndimage

    best, scale = np.zeros(hu_ZYX.shape, np.float32), np.zeros(hu_ZYX.shape, np.float32)
    for radius in radii_mm:
        sigma = radius / np.sqrt(3.0) / voxel_mm  # the response of a ball of this radius peaks there
        response = -(sigma**2) * ndimage.gaussian_laplace(hu_ZYX, sigma, truncate=3.0)
        better = response > best
        best[better], scale[better] = response[better], radius
    return best, scale


def _doubled(half_ZYX: F32, shape: tuple[int, ...]) -> F32:
    for axis in range(3):
        half_ZYX = np.repeat(half_ZYX, 2, axis)
    return half_ZYX[tuple(slice(n) for n in shape)]


def _core(lung_ZYX: Mask) -> Mask:
    from scipy import ndimage

    return np.asarray(ndimage.binary_erosion(lung_ZYX), bool)


def merged(candidates: list[Candidate], within_mm: float = MERGE_MM) -> list[Candidate]:
    """The best-scored of candidates that lie within each other's reach."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        place = np.asarray(candidate.centre)
        if all(np.linalg.norm((place - k.centre) * GRID_MM) > max(within_mm, 0.5 * k.diameter_mm) for k in kept):
            kept.append(candidate)
    return kept
