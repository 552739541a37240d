"""The lungs of a scan on the working grid of the networks.

Z slices, Y rows, X columns.
"""

from __future__ import annotations

from dataclasses import dataclass

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
