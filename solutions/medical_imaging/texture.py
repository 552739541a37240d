"""Solid, part-solid or ground-glass, from the density of a nodule's brighter part and its size.

Small nodules look softer than they are, because their voxels hold lung too: so the size counts. Measured against readers'
ratings this tells soft nodules better than the raters' texture heads do (benchmarks/imaging_quality.py).

N nodules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solutions.medical_imaging.rules import Texture

F64 = NDArray[np.float64]
BRIGHT = 0.9  # quantile of the densities that stands for the nodule
SOFT, FIRM = 2.5, 4.0  # readers' ratings below and from which a nodule is ground-glass and solid
CALLED_SOFT = (0.05, 0.15)  # shares of the solid nodules that may be called ground-glass, and not solid


@dataclass(frozen=True)
class TextureRule:
    """Firmness is density less `per_log_mm` times the logarithm of the diameter; soft below `part_solid`, softest below
    `ground_glass`."""

    per_log_mm: float
    ground_glass: float
    part_solid: float

    def firmness(self, bright_hu_N: ArrayLike, diameter_mm_N: ArrayLike) -> F64:
        size = np.log(np.maximum(np.asarray(diameter_mm_N, np.float64), 1.0))
        return np.asarray(np.asarray(bright_hu_N, np.float64) - self.per_log_mm * size)

    def __call__(self, bright_hu: float, diameter_mm: float) -> Texture:
        firmness = float(self.firmness(bright_hu, diameter_mm))
        return (
            "ground-glass" if firmness < self.ground_glass else "part-solid" if firmness < self.part_solid else "solid"
        )


def bright_hu(hu: NDArray[np.generic]) -> float:
    """HU of the brighter part of a nodule's voxels."""
    return float(np.quantile(np.asarray(hu, np.float64), BRIGHT))


def fit_texture(bright_hu_N: F64, diameter_mm_N: F64, rating_N: F64) -> TextureRule:
    """From densities, diameters and readers' median ratings (1 non-solid to 5 solid)."""
    from sklearn.linear_model import LogisticRegression

    columns = np.stack([bright_hu_N / 100.0, np.log(np.maximum(diameter_mm_N, 1.0))], axis=1)
    line = LogisticRegression(class_weight="balanced", max_iter=1000).fit(columns, rating_N < SOFT)
    density, size = (float(w) for w in line.coef_[0])
    per_log_mm = -100.0 * size / density
    firmness = TextureRule(per_log_mm, 0.0, 0.0).firmness(bright_hu_N, diameter_mm_N)
    ground_glass, part_solid = (float(v) for v in np.quantile(firmness[rating_N >= FIRM], CALLED_SOFT))
    return TextureRule(per_log_mm, ground_glass, part_solid)
