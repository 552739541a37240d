"""The cube that the nodule network sees: fine for small nodules, coarse for large ones, cut from any grid.

M side of a cube; Z slices, Y rows, X columns of the grid it is cut from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import Geometry

F32 = NDArray[np.float32]
M = 32
FINEST_MM, COARSEST_MM = 0.75, 2.0
SPAN = 2.2  # sides of the cube per diameter, above the finest voxels
LOW_HU, HIGH_HU = -1000.0, 400.0


def voxel_mm(diameter_mm: float) -> float:
    """Size of the voxels for a nodule of about this diameter."""
    return float(np.clip(SPAN * diameter_mm / M, FINEST_MM, COARSEST_MM))


def cut_cube(
    values_ZYX: NDArray[Any], spacing: tuple[float, float, float], centre: tuple[float, float, float], step_mm: float
) -> F32:
    """(M, M, M) around an index; linear, with finer grids smoothed first; beyond the edge the nearest value."""
    from scipy import ndimage

    scale = step_mm / np.asarray(spacing)
    start = np.asarray(centre) - (M - 1) / 2.0 * scale
    reach = np.ceil(2.0 * scale).astype(int) + 1
    low = np.clip(np.floor(start).astype(int) - reach, 0, np.asarray(values_ZYX.shape) - 1)
    high = np.clip(np.ceil(start + M * scale).astype(int) + reach, low + 1, values_ZYX.shape)
    part = values_ZYX[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))].astype(np.float32)
    sigma = [0.4 * np.sqrt(max(s * s - 1.0, 0.0)) for s in scale]
    if max(sigma) > 0.0:
        part = ndimage.gaussian_filter(part, sigma, truncate=2.5, mode="nearest")
    out = np.empty((M, M, M), np.float32)
    ndimage.affine_transform(part, scale, start - low, (M, M, M), out, order=1, mode="nearest")
    return out


def cube_geometry(grid: Geometry, centre: tuple[float, float, float], step_mm: float) -> Geometry:
    """Where the cube of `cut_cube` lies in the patient."""
    corner = np.asarray(centre) - (M - 1) / 2.0 * step_mm / np.asarray(grid.spacing)
    x, y, z = (float(v) for v in grid.to_patient([corner])[0])
    return Geometry(
        origin=(x, y, z),
        spacing=(step_mm,) * 3,
        row_cosine=grid.row_cosine,
        column_cosine=grid.column_cosine,
        shape=(M,) * 3,
    )


def scaled(hu: F32) -> F32:
    """Densities as the network takes them, about -1 to 1."""
    return ((np.clip(hu, LOW_HU, HIGH_HU) - (LOW_HU + HIGH_HU) / 2.0) / ((HIGH_HU - LOW_HU) / 2.0)).astype(np.float32)
