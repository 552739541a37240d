"""Where voxels lie: one object from the reader to the exports.

Z slices, Y rows, X columns; N points. Indices are (z, y, x), positions are patient millimetres (x, y, z) in DICOM's LPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]
HU = NDArray[np.int16]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A regular grid of voxels in the patient.

    Args:
        origin: position of the centre of voxel (0, 0, 0), in mm.
        spacing: distance of slices, of rows and of columns, in mm.
        row_cosine: direction in which the column index grows; DICOM's first three of ImageOrientationPatient.
        column_cosine: direction in which the row index grows.
        shape: slices, rows, columns.
    """

    origin: tuple[float, float, float]
    spacing: tuple[float, float, float]
    row_cosine: tuple[float, float, float]
    column_cosine: tuple[float, float, float]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.spacing) <= 0.0 or min(self.shape) < 1:
            raise ValueError(
                f"`spacing` must be > 0 and `shape` >= 1. Received: spacing={self.spacing}, shape={self.shape}."
            )

    @property
    def normal(self) -> F64:
        """Direction in which the slice index grows."""
        return np.cross(self.row_cosine, self.column_cosine)

    @property
    def step_33(self) -> F64:
        """Columns: displacement in mm (x, y, z) for one step of z, y and x."""
        columns = (self.normal, np.asarray(self.column_cosine), np.asarray(self.row_cosine))
        return np.stack([c * s for c, s in zip(columns, self.spacing, strict=True)], axis=1)

    @property
    def voxel_mm3(self) -> float:
        return float(np.prod(self.spacing))

    def to_patient(self, index_N3: ArrayLike) -> F64:
        """Positions (N, 3) in mm of indices (N, 3); fractions are allowed."""
        position_N3: F64 = np.asarray(index_N3, np.float64) @ self.step_33.T + np.asarray(self.origin)
        return position_N3

    def to_index(self, position_N3: ArrayLike) -> F64:
        """Indices (N, 3), with fractions, of positions (N, 3) in mm."""
        offset_N3 = np.asarray(position_N3, np.float64) - np.asarray(self.origin)
        index_N3: F64 = offset_N3 @ np.linalg.inv(self.step_33).T
        return index_N3

    def resampled(self, spacing: tuple[float, float, float]) -> Geometry:
        """A grid of another spacing with the same corner and, to a voxel, the same extent."""
        shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(self.shape, self.spacing, spacing, strict=True))
        # the corners of the grids coincide, so the first centres do not
        shift_3 = (np.asarray(spacing) / np.asarray(self.spacing) - 1.0) / 2.0
        origin = self.to_patient(shift_3[None])[0]
        return self._with(tuple(float(v) for v in origin), spacing, shape)

    def cropped(self, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Geometry:
        """The part of the grid that begins at index `start`."""
        origin = self.to_patient(np.asarray(start, float)[None])[0]
        return self._with(tuple(float(v) for v in origin), self.spacing, shape)

    def _with(self, origin: Any, spacing: Any, shape: Any) -> Geometry:
        return Geometry(
            origin=origin,
            spacing=spacing,
            row_cosine=self.row_cosine,
            column_cosine=self.column_cosine,
            shape=shape,
        )


@dataclass(frozen=True)
class Volume:
    """Hounsfield units (Z, Y, X) and where they lie."""

    hu_ZYX: HU
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.hu_ZYX.shape != self.geometry.shape:
            raise ValueError(
                f"`hu_ZYX` must have the shape of its geometry, {self.geometry.shape}. Received: {self.hu_ZYX.shape}."
            )


def resample(values_ZYX: NDArray[Any], source: Geometry, target: Geometry, *, order: int = 1) -> NDArray[Any]:
    """Values of one grid at the voxels of another with the same directions; beyond the edge the nearest value.

    Coarser targets are smoothed first, so that thin structures do not fall between the samples.
    """
    from scipy import ndimage

    values = values_ZYX.astype(np.float32, copy=False)
    start = source.to_index(target.to_patient([[0, 0, 0]]))[0]
    scale = np.asarray(target.spacing) / np.asarray(source.spacing)
    if order > 0 and (scale > 1.05).any():
        sigma = [0.5 * np.sqrt(max(s * s - 1.0, 0.0)) / 1.2 for s in scale]
        values = ndimage.gaussian_filter(values, sigma, truncate=2.0)
    out = np.empty(target.shape, np.float32)
    ndimage.affine_transform(values, scale, start, target.shape, output=out, order=order, mode="nearest")
    return out
