"""Candidates: places that may be nodules: bright blobs, rounder than vessels.

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
AIR_HU, VESSEL_HU = -950.0, -200.0  # clipped here: what is denser is not more of a nodule, and faint ones keep up
LEAST_TRACE = 60.0  # HU; below it nothing is a blob


@dataclass(frozen=True)
class Candidate:
    """A place on the working grid, a score between 0 and 1, and a rough diameter."""

    centre: tuple[float, float, float]
    score: float
    diameter_mm: float


def blobs(crop: LungCrop, *, roundness: bool = True, least: float = 20.0) -> list[Candidate]:
    """Bright blobs by the scale-normalised Laplacian of Gaussian (Lindeberg 1998), inside the lung mask.

    The score is the response in HU/1000, at the best scale.

    Args:
        roundness: weigh the response by the ratio of the smallest curvature to the largest (eigenvalues of the Hessian, as in
            Sato et al. 1998), so that a tube, flat along its length, scores next to nothing. False: the plain Laplacian.
        least: HU of response.
    """
    from scipy import ndimage

    core = _core(crop.lung_ZYX)
    best, scale = responses(np.clip(crop.hu_ZYX, AIR_HU, VESSEL_HU if roundness else 100.0), core, roundness=roundness)
    peak = (best == ndimage.maximum_filter(best, 5)) & (best > least) & core
    where = np.argwhere(peak)
    order = np.argsort(-best[peak], kind="stable")[: 4 * MOST]
    found = [
        Candidate((float(z), float(y), float(x)), min(float(best[z, y, x]) / 1000.0, 1.0), 2.0 * float(scale[z, y, x]))
        for z, y, x in where[order]
    ]
    return merged(found)[:MOST]


def responses(hu_ZYX: F32, core_ZYX: Mask, *, roundness: bool = True, halve: bool = True) -> tuple[F32, F32]:
    """The strongest response of every voxel of the core and the radius that gave it; zero elsewhere.

    Args:
        halve: large radii at half the resolution, for an eighth of the cost.
    """
    if not halve:
        return _strongest(hu_ZYX, core_ZYX, LOG_RADII_MM, GRID_MM, roundness)
    best, scale = _strongest(hu_ZYX, core_ZYX, FINE_RADII_MM, GRID_MM, roundness)
    pad = [(0, n % 2) for n in hu_ZYX.shape]
    z, y, x = ((n + 1) // 2 for n in hu_ZYX.shape)
    half = np.pad(hu_ZYX, pad, mode="edge").reshape(z, 2, y, 2, x, 2).mean((1, 3, 5), dtype=np.float32)
    within: Mask = np.asarray(np.pad(core_ZYX, pad).reshape(z, 2, y, 2, x, 2).any((1, 3, 5)), bool)
    found = _strongest(half, within, COARSE_RADII_MM, 2.0 * GRID_MM, roundness)
    coarse, radius = (_doubled(v, hu_ZYX.shape) for v in found)
    better = (coarse > best) & core_ZYX
    return np.where(better, coarse, best), np.where(better, radius, scale)


def _strongest(
    hu_ZYX: F32, core_ZYX: Mask, radii_mm: tuple[float, ...], voxel_mm: float, roundness: bool
) -> tuple[F32, F32]:
    best, scale = np.zeros(hu_ZYX.shape, np.float32), np.zeros(hu_ZYX.shape, np.float32)
    for radius in radii_mm:
        sigma = radius / np.sqrt(3.0) / voxel_mm  # the response of a ball of this radius peaks there
        response = _round_response(hu_ZYX, core_ZYX, sigma) if roundness else _response(hu_ZYX, core_ZYX, sigma)
        better = response > best
        best[better], scale[better] = response[better], radius
    return best, scale


def _response(hu_ZYX: F32, core_ZYX: Mask, sigma: float) -> F32:
    from scipy import ndimage

    return np.where(core_ZYX, -(sigma**2) * ndimage.gaussian_laplace(hu_ZYX, sigma, truncate=3.0), 0.0)


def _round_response(hu_ZYX: F32, core_ZYX: Mask, sigma: float) -> F32:
    from scipy import ndimage

    def curvature(*order: int) -> F32:
        return np.asarray(-(sigma**2) * ndimage.gaussian_filter(hu_ZYX, sigma, order=order, truncate=3.0), np.float32)

    own = [curvature(2, 0, 0), curvature(0, 2, 0), curvature(0, 0, 2)]
    trace = own[0] + own[1] + own[2]
    at = core_ZYX & (trace > LEAST_TRACE)
    mixed = [curvature(1, 1, 0)[at], curvature(1, 0, 1)[at], curvature(0, 1, 1)[at]]
    smallest, largest = _extreme_eigenvalues(*(v[at] for v in own), *mixed)
    response = np.zeros_like(hu_ZYX)
    response[at] = trace[at] * np.clip(smallest / np.maximum(largest, 1e-3), 0.0, 1.0)
    return response


def _extreme_eigenvalues(zz: F32, yy: F32, xx: F32, zy: F32, zx: F32, yx: F32) -> tuple[F32, F32]:
    """Of symmetric 3x3 matrices, in closed form (Smith 1961)."""
    mean = (zz + yy + xx) / 3.0
    a, b, c = zz - mean, yy - mean, xx - mean
    off = zy**2 + zx**2 + yx**2
    p = np.sqrt(np.maximum((a**2 + b**2 + c**2 + 2.0 * off) / 6.0, 1e-12))
    determinant = a * (b * c - yx**2) - zy * (zy * c - yx * zx) + zx * (zy * yx - b * zx)
    angle = np.arccos(np.clip(determinant / (2.0 * p**3), -1.0, 1.0)) / 3.0
    return mean + 2.0 * p * np.cos(angle + 2.0 * np.pi / 3.0), mean + 2.0 * p * np.cos(angle)


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
    place_N3, reach_N = np.empty((len(candidates), 3)), np.empty(len(candidates))
    for candidate in sorted(candidates, key=lambda c: -c.score):
        n = len(kept)
        if (np.linalg.norm((place_N3[:n] - candidate.centre) * GRID_MM, axis=1) > reach_N[:n]).all():
            place_N3[n], reach_N[n] = candidate.centre, max(within_mm, 0.5 * candidate.diameter_mm)
            kept.append(candidate)
    return kept
