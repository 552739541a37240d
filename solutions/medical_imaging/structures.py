"""What else a crop shows: vessels and walls near a nodule, from hundreds of patients, which are no nodules.

Z slices, Y rows, X columns of the crop's own grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.insertion import PADDING, Layers
from solutions.medical_imaging.lidc import Nodule

RADII_MM = (1.8, 2.7, 4.0)
AWAY_MM = 5.0  # from every voxel that any reader marked
CLOSE_MM = 5.0  # fills vessels in the air of the crop
LEAST_HU = 150.0
AIR_HU = -500.0
MOST = 4  # per crop


@dataclass(frozen=True)
class Structure:
    """A bright place, as an index of the crop's layers, and its rough diameter."""

    centre: tuple[float, float, float]
    diameter_mm: float


def other_structures(nodule: Nodule, layers: Layers) -> list[Structure]:
    """The strongest blobs of a crop that no reader marked, within its lung.

    Args:
        layers: of the nodule with all that its crop shows.
    """
    from scipy import ndimage

    spacing = np.asarray(layers.spacing)
    hu = np.clip(layers.hu_ZYX, -950.0, 100.0)
    best, radius = np.zeros(hu.shape, np.float32), np.zeros(hu.shape, np.float32)
    for mm in RADII_MM:
        sigma = mm / np.sqrt(3.0) / spacing
        curved = [
            ndimage.gaussian_filter(hu, sigma, order=[2 * (a == b) for b in range(3)], truncate=3.0) / spacing[a] ** 2
            for a in range(3)
        ]
        response = -(mm**2) / 3.0 * sum(curved)
        better = response > best
        best[better], radius[better] = response[better], mm
    marked = np.pad(nodule.votes_ZYX > 0, ((PADDING, PADDING), (0, 0), (0, 0)))
    shown = np.zeros(hu.shape, bool)
    shown[PADDING:-PADDING, 4:-4, 4:-4] = True
    allowed = shown & _lung(layers.hu_ZYX, spacing) & (ndimage.distance_transform_edt(~marked, spacing) > AWAY_MM)
    peak = (best == ndimage.maximum_filter(best, 5)) & (best > LEAST_HU) & allowed
    where = np.argwhere(peak)
    order = np.argsort(-best[peak], kind="stable")[:MOST]
    return [Structure((float(z), float(y), float(x)), 2.0 * float(radius[z, y, x])) for z, y, x in where[order]]


def _lung(hu_ZYX: NDArray[np.float32], spacing: NDArray[np.float64]) -> NDArray[np.bool_]:
    from scipy import ndimage

    grown = ndimage.distance_transform_edt(hu_ZYX > AIR_HU, spacing) <= CLOSE_MM
    return np.asarray(ndimage.distance_transform_edt(grown, spacing) > CLOSE_MM, bool)
