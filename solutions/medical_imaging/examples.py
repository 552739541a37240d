"""What the second stage sees of a candidate: a cube of densities, a soft mask, and features of both.

M side of a cube, F features, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from solutions.medical_imaging.candidates import Candidate
from solutions.medical_imaging.insertion import GRID_MM

F32 = NDArray[np.float32]
SIDE = 32
FEATURES = (
    "log_volume",
    "diameter",
    "elongation",
    "flatness",
    "roundness",
    "mean_hu",
    "low_hu",
    "high_hu",
    "spread_hu",
    "rim_hu",
    "edge_hu",
)
HEADS = ("nodule", "malignancy", "texture", "spiculation", "lobulation", "calcified")
LOGITS = ("nodule", "malignancy", "calcified")  # the others are ratings, as (rating - 3) / 2


@dataclass(frozen=True)
class Example:
    """A cube of the working grid around a candidate: densities, and the candidate's soft mask."""

    hu_MMM: F32
    map_MMM: F32


def make_example(hu_ZYX: F32, candidate: Candidate) -> Example:
    """Cut the cube of a candidate and outline what lies in its middle."""
    hu = cut(hu_ZYX, corner(candidate.centre), SIDE)
    return Example(hu, soft_mask(hu, candidate.diameter_mm))


def corner(centre: tuple[float, float, float], side: int = SIDE) -> NDArray[np.int64]:
    """Index of the first voxel of the cube around a centre."""
    return np.asarray(np.rint(np.asarray(centre)), np.int64) - side // 2


def cut(values_ZYX: F32, low: NDArray[np.int64], side: int) -> F32:
    """A cube that begins at `low`; beyond the edge the nearest value."""
    index = [np.clip(np.arange(int(a), int(a) + side), 0, n - 1) for a, n in zip(low, values_ZYX.shape, strict=True)]
    return values_ZYX[np.ix_(*index)].astype(np.float32)


def soft_mask(hu_MMM: F32, diameter_mm: float) -> F32:
    """Soft threshold half-way between the candidate's core and lung, within a ball around the centre."""
    from scipy import ndimage

    middle = SIDE // 2
    core = slice(middle - 1, middle + 2)
    top = float(np.quantile(hu_MMM[core, core, core], 0.8))
    level = (min(top, 50.0) - 850.0) / 2.0
    z, y, x = np.ogrid[:SIDE, :SIDE, :SIDE]
    distance = np.sqrt((z - middle) ** 2 + (y - middle) ** 2 + (x - middle) ** 2) * GRID_MM
    reach = max(0.75 * diameter_mm + 1.0, 3.0)
    soft = expit((hu_MMM - level) / 60.0) * np.clip(reach + 0.5 - distance, 0.0, 1.0)
    labels, _ = ndimage.label(soft > 0.2)
    label = int(labels[middle, middle, middle])
    if label == 0:  # darker in the middle than around it: a small ball stands for the candidate
        return np.asarray(np.clip(diameter_mm / 2.0 + 1.0 - distance, 0.0, 1.0), np.float32)
    return np.where(labels == label, soft, 0.0).astype(np.float32)


def features(example: Example) -> F32:
    """(F,) shape and densities of the candidate, in the order of FEATURES."""
    from scipy import ndimage

    mask = example.map_MMM > 0.5
    if not mask.any():
        mask = example.map_MMM >= float(example.map_MMM.max())
    hu = np.clip(example.hu_MMM, -1000.0, 400.0)
    volume = float(mask.sum()) * GRID_MM**3
    points = np.argwhere(mask) * GRID_MM
    axis = np.sqrt(np.maximum(np.linalg.eigvalsh(np.cov(points.T) if len(points) > 3 else np.eye(3)), 0.05))
    rim = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_dilation(mask)
    surface = mask & ~ndimage.binary_erosion(mask)
    inside = hu[mask]
    area = float(surface.sum()) * GRID_MM**2
    roundness = np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / max(area, 1.0)
    return np.array(
        [
            np.log(volume),
            (6 * volume / np.pi) ** (1 / 3),
            axis[2] / axis[1],
            axis[1] / axis[0],
            roundness,
            inside.mean() / 100.0,
            np.quantile(inside, 0.1) / 100.0,
            np.quantile(inside, 0.9) / 100.0,
            inside.std() / 100.0,
            (hu[rim].mean() if rim.any() else -850.0) / 100.0,
            hu[surface].mean() / 100.0,
        ],
        np.float32,
    )


def rating(output: float) -> float:
    """From a head's output, (rating - 3) / 2, to a reader's scale of 1 to 5."""
    return float(np.clip(3.0 + 2.0 * output, 1.0, 5.0))
