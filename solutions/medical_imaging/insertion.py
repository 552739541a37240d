"""Real nodules pasted into real lungs: where the truth of a scan is known because we put it there.

Z slices, Y rows, X columns; M size of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import Mask
from solutions.medical_imaging.lidc import Nodule

F32 = NDArray[np.float32]
GRID_MM = 1.25
FADE_MM = 1.5  # beyond the mask: the nodule's own partial-volume rim comes with it
BORDER_MM = 4.0
PADDING = 2  # slices on either side of a crop


@dataclass(frozen=True)
class Patch:
    """A nodule on the working grid: densities, how much of them is pasted (0 to 1), and the consensus mask."""

    hu_MMM: F32
    alpha_MMM: F32
    mask_MMM: Mask
    key: int

    @property
    def diameter_mm(self) -> float:
        """Of the ball with the mask's volume."""
        return float((6.0 * self.mask_MMM.sum() * GRID_MM**3 / np.pi) ** (1 / 3))


@dataclass(frozen=True)
class Layers:
    """A nodule on its own grid with slices of padding: densities, how much of them is pasted, signed distance to the mask."""

    hu_ZYX: F32
    alpha_ZYX: F32
    signed_ZYX: F32  # mm, positive inside: keeps thin masks whole where linear weights would wash them out
    centre: tuple[float, float, float]
    spacing: tuple[float, float, float]


def layers_of(nodule: Nodule, *, context: Literal["nodule", "crop"]) -> Layers:
    """The nodule alone with its rim, or with all that its crop shows around it."""
    from scipy import ndimage

    mask, hu = nodule.consensus_ZYX, nodule.hu_ZYX
    if context == "nodule":  # the rest is not pasted
        reach = np.argwhere(mask.any(0))
        low = np.maximum(reach.min(0) - 8, 0)
        part = tuple(slice(int(a), int(b) + 9) for a, b in zip(low, reach.max(0), strict=True))
        mask, hu = mask[:, part[0], part[1]], hu[:, part[0], part[1]]
    hu = np.pad(hu, ((PADDING, PADDING), (0, 0), (0, 0)), mode="edge")
    mask = np.pad(mask, ((PADDING, PADDING), (0, 0), (0, 0)))
    outside = ndimage.distance_transform_edt(~mask, nodule.spacing)
    alpha = np.clip(1.0 - outside / FADE_MM, 0.0, 1.0)
    if context == "crop":
        inside = np.zeros_like(mask)
        inside[PADDING:-PADDING, 1:-1, 1:-1] = True
        # slices end with the nodule, so it is never faded itself
        alpha = np.maximum(alpha, np.clip(ndimage.distance_transform_edt(inside, nodule.spacing) / BORDER_MM, 0.0, 1.0))
    signed = ndimage.distance_transform_edt(mask, nodule.spacing) - outside
    z, y, x = (float(v) for v in ndimage.center_of_mass(mask))
    return Layers(hu, alpha.astype(np.float32), signed.astype(np.float32), (z, y, x), nodule.spacing)


def make_patch(nodule: Nodule, *, context: Literal["nodule", "crop"]) -> Patch:
    """A nodule on the working grid, centred on its mask."""
    from scipy import ndimage

    layers = layers_of(nodule, context=context)
    scale = GRID_MM / np.asarray(layers.spacing)
    extent = np.asarray(layers.hu_ZYX.shape) * layers.spacing / GRID_MM
    size = np.ceil(extent).astype(int) // 2 * 2 + 1
    start = np.asarray(layers.centre) - (size // 2) * scale

    def grid(values: NDArray[np.float32], order: int) -> F32:
        out = np.empty(tuple(size), np.float32)
        ndimage.affine_transform(values.astype(np.float32), scale, start, tuple(size), out, order=order, mode="nearest")
        return out

    sharp = [max(0.0, 0.4 * np.sqrt(max(s * s - 1.0, 0.0))) for s in scale]
    smooth = ndimage.gaussian_filter(layers.hu_ZYX, sharp)
    return Patch(grid(smooth, 1), grid(layers.alpha_ZYX, 1), grid(layers.signed_ZYX, 1) > 0.0, nodule.key)


def turned(patch: Patch, rng: np.random.Generator, *, upright: bool = False) -> Patch:
    """Mirrored and turned in the slice by quarter turns; along the patient too, unless upright."""
    arrays = [patch.hu_MMM, patch.alpha_MMM, patch.mask_MMM]
    quarter = int(rng.integers(4))
    flips = tuple(axis for axis in ((1, 2) if upright else (0, 1, 2)) if rng.random() < 0.5)
    moved = [np.flip(np.rot90(a, quarter, (1, 2)), flips) for a in arrays]
    return Patch(moved[0], moved[1], moved[2], patch.key)


def paste(hu_ZYX: NDArray[np.float32], mask_ZYX: Mask, patch: Patch, centre: tuple[int, int, int]) -> None:
    """Blend a patch into a volume, in place; what lies outside is cut off."""
    size = patch.hu_MMM.shape
    low = [c - n // 2 for c, n in zip(centre, size, strict=True)]
    into = tuple(slice(max(lo, 0), min(lo + n, s)) for lo, n, s in zip(low, size, hu_ZYX.shape, strict=True))
    if any(part.stop <= part.start for part in into):
        return
    source = tuple(slice(p.start - lo, p.stop - lo) for p, lo in zip(into, low, strict=True))
    alpha = patch.alpha_MMM[source]
    hu_ZYX[into] = (1.0 - alpha) * hu_ZYX[into] + alpha * patch.hu_MMM[source]
    mask_ZYX[into] |= patch.mask_MMM[source]


@dataclass(frozen=True)
class Inserted:
    """A scan with nodules that were put there: centres as indices, and equivalent diameters."""

    hu_ZYX: F32
    mask_ZYX: Mask
    centres: tuple[tuple[int, int, int], ...]
    diameters_mm: tuple[float, ...]
    keys: tuple[int, ...]


def insert(
    hu_ZYX: NDArray[np.float32],
    lung_ZYX: Mask,
    patches: list[Patch],
    seed: int,
    *,
    avoid: list[tuple[int, int, int]] | None = None,
    apart_mm: float = 35.0,
) -> Inserted:
    """Put patches at random places of the lung, at least `apart_mm` from each other and from `avoid`."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    out, mask = hu_ZYX.astype(np.float32), np.zeros(hu_ZYX.shape, bool)
    depth = ndimage.distance_transform_edt(lung_ZYX, (GRID_MM,) * 3)
    airy = ndimage.uniform_filter(out, 5) < -650.0  # not in the middle of a vessel
    taken = [np.array(p, float) for p in avoid or []]
    centres, diameters, keys = [], [], []
    for patch in patches:
        patch = turned(patch, rng)
        deep = np.flatnonzero(((depth > min(0.5 * patch.diameter_mm, 12.0) + 1.0) & airy).ravel())
        for _ in range(200):
            if not len(deep):
                break
            place = np.array(np.unravel_index(int(rng.choice(deep)), lung_ZYX.shape))
            if all(np.linalg.norm((place - other) * GRID_MM) >= apart_mm for other in taken):
                z, y, x = (int(v) for v in place)
                paste(out, mask, patch, (z, y, x))
                taken.append(place.astype(float))
                centres.append((z, y, x))
                diameters.append(patch.diameter_mm)
                keys.append(patch.key)
                break
    return Inserted(out, mask, tuple(centres), tuple(diameters), tuple(keys))
