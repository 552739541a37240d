"""The U-Net over whole lungs: a map of how likely every voxel belongs to a nodule, and the places where it peaks.

Z slices, Y rows, X columns of the working grid; M side of a tile.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.candidates import Candidate, merged
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.cubes import M, scaled
from solutions.medical_imaging.examples import cut
from solutions.medical_imaging.insertion import GRID_MM
from solutions.medical_imaging.looking import BATCH, Cube, look

if TYPE_CHECKING:
    from solutions.medical_imaging.network import NoduleNet

STRIDE = 20  # tiles overlap by 12 voxels, 15 mm
EDGE = 2  # voxels of a tile that are not believed
LEAST = 0.05
FULL = 255  # what a probability of 1 is stored as


def heat_map(network: NoduleNet, crop: LungCrop) -> NDArray[np.uint8]:
    """(Z, Y, X) probabilities times 255 where there is lung, the largest where tiles overlap.

    No floating-point map of the whole scan is held.
    """
    heat = np.zeros(crop.lung_ZYX.shape, np.uint8)
    corners = [np.array(c) for c in itertools.product(*(range(-EDGE, n, STRIDE) for n in crop.lung_ZYX.shape))]
    tiles = [c for c in corners if crop.lung_ZYX[_slices(c, 0, heat.shape)].any()]
    for begin in range(0, len(tiles), BATCH):
        part = tiles[begin : begin + BATCH]
        maps, _ = look(network, [Cube(scaled(cut(crop.hu_ZYX, c, M)), GRID_MM) for c in part])
        for corner, probability in zip(part, maps, strict=True):
            into = _slices(corner, EDGE, heat.shape)
            source = tuple(slice(p.start - int(c), p.stop - int(c)) for p, c in zip(into, corner, strict=True))
            np.maximum(heat[into], np.rint(FULL * probability[source]).astype(np.uint8), out=heat[into])
    heat[~crop.lung_ZYX] = 0
    return heat


def _slices(corner: NDArray[np.int64], edge: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(max(int(c) + edge, 0), min(int(c) + M - edge, n)) for c, n in zip(corner, shape, strict=True))


def peaks(heat_ZYX: NDArray[np.uint8], most: int = 250) -> list[Candidate]:
    """The components above one half, and lower peaks elsewhere; the diameter is that of a ball of the same volume."""
    from scipy import ndimage

    smooth = ndimage.uniform_filter(heat_ZYX.astype(np.float32) / FULL, 3)
    labels, count = ndimage.label(heat_ZYX > FULL // 2)
    each = np.arange(1, count + 1)
    found = [
        Candidate((float(z), float(y), float(x)), float(score), float((6.0 * voxels / np.pi) ** (1 / 3)) * GRID_MM)
        for (z, y, x), score, voxels in zip(
            ndimage.center_of_mass(labels > 0, labels, each),
            ndimage.maximum(smooth, labels, each),
            np.bincount(labels.ravel(), minlength=count + 1)[1:],
            strict=True,
        )
    ]
    low = (smooth == ndimage.maximum_filter(smooth, 5)) & (smooth > LEAST) & (labels == 0)
    found += [Candidate((float(z), float(y), float(x)), float(smooth[z, y, x]), 3.0) for z, y, x in np.argwhere(low)]
    return merged(found)[:most]
