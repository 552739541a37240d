"""The lungs of a scan on the working grid of the networks.

Z slices, Y rows, X columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import Geometry, Mask, Volume, resample
from solutions.medical_imaging.insertion import GRID_MM
from solutions.medical_imaging.lungs import Lungs

MARGIN_MM = 12.0


@dataclass(frozen=True)
class LungCrop:
    """Densities and lung mask on a cubic grid around the lungs."""

    hu_ZYX: NDArray[np.float32]
    lung_ZYX: Mask
    geometry: Geometry

    @cached_property
    def _box(self) -> tuple[float, float, float, float]:
        """Of the lungs: left and right, low and high, in mm of the patient."""
        slices, columns = np.flatnonzero(self.lung_ZYX.any((1, 2))), np.flatnonzero(self.lung_ZYX.any((0, 1)))
        ends = self.geometry.to_patient([[slices[0], 0.0, columns[0]], [slices[-1], 0.0, columns[-1]]])
        return (*sorted(map(float, ends[:, 0])), *sorted(map(float, ends[:, 2])))  # type: ignore[return-value]

    def place(self, position: tuple[float, float, float]) -> tuple[bool, float]:
        """Whether a point lies in the patient's left lung (x grows to the left), and its height as a share of the lungs'."""
        x0, x1, z0, z1 = self._box
        return position[0] > (x0 + x1) / 2.0, float(np.clip((position[2] - z0) / max(z1 - z0, 1.0), 0.0, 1.0))


def lung_crop(volume: Volume, lungs: Lungs) -> LungCrop:
    """Cut the box of the lungs and resample it to GRID_MM."""
    where = np.argwhere(lungs.mask_ZYX)
    g = volume.geometry
    corners = lungs.geometry.to_patient(np.stack([where.min(0) - 0.5, where.max(0) + 0.5]))
    box = g.to_index(corners) + np.array([[-1.0], [1.0]]) * MARGIN_MM / np.asarray(g.spacing)
    low = np.clip(np.floor(box[0]), 0, None).astype(int)
    high = np.minimum(np.ceil(box[1]).astype(int), np.asarray(g.shape) - 1)
    z, y, x = (slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))
    shape = (z.stop - z.start, y.stop - y.start, x.stop - x.start)
    part = g.cropped((z.start, y.start, x.start), shape)
    target = part.resampled((GRID_MM,) * 3)
    hu = resample(volume.hu_ZYX[z, y, x], part, target)
    lung = resample(lungs.mask_ZYX, lungs.geometry, target) > 0.5
    return LungCrop(hu, lung, target)
