"""From a probability map to a nodule on the scan's own grid: mask, volume and diameters.

Z slices, Y rows, X columns; F sub-voxels per side; P points of an outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.geometry import Geometry, Mask

FINE = 3  # sub-voxels per voxel and axis when a volume is measured
LEVEL = 0.5


@dataclass(frozen=True)
class Segment:
    """A mask within a box of the scan's grid: `start` is the index of the box's first voxel."""

    start: tuple[int, int, int]
    mask_ZYX: Mask

    @property
    def slices(self) -> range:
        return range(self.start[0], self.start[0] + self.mask_ZYX.shape[0])


@dataclass(frozen=True)
class Measurement:
    """Millimetres and cubic millimetres; the mean diameter is that of long and short axis, to one decimal (Lung-RADS).

    Args:
        long_axis: end points of the long axis as positions in mm.
        slice_index: where the axes were measured.
    """

    volume_mm3: float
    long_mm: float
    short_mm: float
    centre: tuple[float, float, float]
    slice_index: int
    long_axis: tuple[tuple[float, float, float], tuple[float, float, float]]

    @property
    def mean_mm(self) -> float:
        return round((self.long_mm + self.short_mm) / 2.0, 1)


@dataclass(frozen=True)
class Outlined:
    """A segment, and its level set on a finer grid, from which volume and axes come."""

    segment: Segment
    fine_ZYX: Mask
    fine: Geometry


def outline(
    probability_ZYX: NDArray[np.floating],
    source: Geometry,
    target: Geometry,
    centre: tuple[float, float, float],
    reach_mm: float,
    *,
    level: float = LEVEL,
) -> Outlined | None:
    """The component of the map at `centre` (an index of `source`) on the target grid; None when nothing is there.

    The map is interpolated, so that the surface lies between voxels; the mask and the volume see the same surface.
    """
    middle = target.to_index(source.to_patient([centre]))[0]
    half = reach_mm / np.asarray(target.spacing)
    low = np.maximum(np.floor(middle - half), 0).astype(int)
    high = np.minimum(np.ceil(middle + half), np.asarray(target.shape) - 1).astype(int)
    if (high < low).any():
        return None
    shape = tuple(int(b - a) + 1 for a, b in zip(low, high, strict=True))
    box = target.cropped((int(low[0]), int(low[1]), int(low[2])), (shape[0], shape[1], shape[2]))
    fine = box.resampled((box.spacing[0] / FINE, box.spacing[1] / FINE, box.spacing[2] / FINE))
    inside = _component(_sample(probability_ZYX, source, fine) >= level, source.to_patient([centre])[0], fine)
    if inside is None:
        return None
    mask = _component(_sample(probability_ZYX, source, box) >= level, source.to_patient([centre])[0], box)
    if mask is None:  # thinner than a voxel: the voxels that hold most of it
        mask = _blocks(inside) >= min(0.5, float(_blocks(inside).max()))
    return Outlined(Segment((int(low[0]), int(low[1]), int(low[2])), mask), inside, fine)


def _sample(values: NDArray[np.floating], source: Geometry, target: Geometry) -> NDArray[np.float32]:
    from scipy import ndimage

    start = source.to_index(target.to_patient([[0, 0, 0]]))[0]
    scale = np.asarray(target.spacing) / np.asarray(source.spacing)
    low = np.maximum(np.floor(start) - 2, 0).astype(int)
    high = np.minimum(np.ceil(start + scale * np.asarray(target.shape)) + 3, values.shape).astype(int)
    part = values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float32)
    out = np.empty(target.shape, np.float32)
    ndimage.affine_transform(part, scale, start - low, target.shape, out, order=1, mode="nearest")
    return out


def _component(inside: Mask, position: NDArray[np.float64], grid: Geometry) -> Mask | None:
    """The component that holds the position, or the one nearest to it."""
    from scipy import ndimage

    labels, count = ndimage.label(inside)
    if count == 0:
        return None
    index = np.clip(np.rint(grid.to_index(position[None])[0]), 0, np.asarray(inside.shape) - 1).astype(int)
    label = int(labels[tuple(index)])
    if label == 0:
        where = np.argwhere(labels > 0)
        distance = (((where - index) * np.asarray(grid.spacing)) ** 2).sum(1)
        label = int(labels[tuple(where[int(distance.argmin())])])
    return np.asarray(labels == label, bool)


def _blocks(fine_ZYX: Mask) -> NDArray[np.float64]:
    z, y, x = (n // FINE for n in fine_ZYX.shape)
    return np.asarray(fine_ZYX.reshape(z, FINE, y, FINE, x, FINE).mean((1, 3, 5)), np.float64)


def measure(outlined: Outlined) -> Measurement:
    """Volume by counting sub-voxels; axes in the axial slice of the largest area, as radiologists take them."""
    inside, grid = outlined.fine_ZYX, outlined.fine
    volume = float(inside.sum()) * grid.voxel_mm3
    centre = grid.to_patient([np.argwhere(inside).mean(0)])[0]
    z = int(inside.sum(axis=(1, 2)).argmax())
    long_mm, short_mm, ends = axes(inside[z], (grid.spacing[1], grid.spacing[2]))
    points = grid.to_patient([[z, *ends[0]], [z, *ends[1]]])
    a, b = (tuple(float(v) for v in p) for p in points)
    return Measurement(
        volume_mm3=volume,
        long_mm=long_mm,
        short_mm=short_mm,
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        slice_index=outlined.segment.start[0] + z // FINE,
        long_axis=((a[0], a[1], a[2]), (b[0], b[1], b[2])),
    )


def axes(
    inside_YX: Mask, spacing: tuple[float, float]
) -> tuple[float, float, tuple[tuple[float, float], tuple[float, float]]]:
    """Longest chord of the outline, the widest extent perpendicular to it, and the ends of the chord as (y, x)."""
    pixels = np.argwhere(inside_YX).astype(float)
    corners = np.concatenate([pixels + offset for offset in ((-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5))])
    mm_P2 = corners * np.asarray(spacing)
    hull = mm_P2[_hull(mm_P2)]
    distance = np.linalg.norm(hull[:, None] - hull[None], axis=-1)
    i, j = (int(v) for v in np.unravel_index(int(distance.argmax()), distance.shape))
    along = (hull[j] - hull[i]) / max(float(distance[i, j]), 1e-9)
    across = hull @ np.array([-along[1], along[0]])
    ends = [tuple(float(v) for v in hull[k] / np.asarray(spacing)) for k in (i, j)]
    return (
        float(distance[i, j]),
        float(across.max() - across.min()),
        ((ends[0][0], ends[0][1]), (ends[1][0], ends[1][1])),
    )


def _hull(points_P2: NDArray[np.float64]) -> NDArray[np.int64]:
    from scipy.spatial import ConvexHull

    return np.asarray(ConvexHull(points_P2).vertices, np.int64)
