"""Detection in one scan: candidates, second stage, measurement, categories.

N candidates, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from solutions.medical_imaging.candidates import Candidate, laplacian
from solutions.medical_imaging.crop import LungCrop, lung_crop
from solutions.medical_imaging.cubes import M, cube_geometry, cut_cube, scaled, voxel_mm
from solutions.medical_imaging.detected import Bounds, DetectedNodule, Detection, Side, Zone
from solutions.medical_imaging.examples import HEADS, make_example, rating
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.looking import Cube, look
from solutions.medical_imaging.measure import Outlined, measure, outline
from solutions.medical_imaging.models import NAME, Calibration, Models
from solutions.medical_imaging.rules import Person, Size, Texture, fleischner, lung_rads

F32 = NDArray[np.float32]
MOST_LOOKED_AT, MOST_SHOWN = 250, 12
LEAST_MM = 3.0


@dataclass(frozen=True)
class Rated:
    """A candidate after the second stage.

    Args:
        boosted_H, network_H: logits and ratings of the two raters.
        map_MMM: the network's probability of the outline, where `grid` lies.
    """

    candidate: Candidate
    boosted_H: F32
    network_H: F32
    map_MMM: F32
    grid: Geometry
    logit: float


def second_stage(
    models: Models,
    crop: LungCrop,
    candidates: list[Candidate],
    source: tuple[NDArray[Any], Geometry] | None = None,
) -> list[Rated]:
    """Candidates with the second stage's opinion, best first.

    Args:
        source: densities and grid that the network's cubes are cut from: the scan's own; the crop's when left out.
    """
    if not candidates:
        return []
    hu_ZYX, grid = source or (crop.hu_ZYX, crop.geometry)
    boosted = models.second.rate([make_example(crop.hu_ZYX, c) for c in candidates])
    centres = grid.to_index(crop.geometry.to_patient([c.centre for c in candidates]))
    cubes, grids = [], []
    for candidate, centre in zip(candidates, centres, strict=True):
        z, y, x = (float(v) for v in centre)
        step = voxel_mm(candidate.diameter_mm)
        cubes.append(Cube(scaled(cut_cube(hu_ZYX, grid.spacing, (z, y, x), step)), step))
        grids.append(cube_geometry(grid, (z, y, x), step))
    maps, network = look(models.network, cubes)
    logit = models.calibration.nodule_logit(boosted[:, 0], network[:, 0])
    rated = [Rated(c, boosted[i], network[i], maps[i], grids[i], float(logit[i])) for i, c in enumerate(candidates)]
    return sorted(rated, key=lambda r: -r.logit)


def detect(series: Series, models: Models, person: Person | None = None) -> Detection:
    """All nodules of a series."""
    crop = lung_crop(series.volume, series.lungs)
    source = (series.volume.hu_ZYX, series.volume.geometry)
    rated = second_stage(models, crop, laplacian(crop)[:MOST_LOOKED_AT], source)
    c = models.calibration
    shown = [r for r in rated if expit(r.logit) >= c.show][:MOST_SHOWN]
    measured = [(r, o) for r in shown if (o := outline_of(r, series, c.outline_level)) is not None]
    large = [(r, o, m) for r, o in measured if (m := measure(o)).mean_mm >= LEAST_MM]
    notes = () if len(shown) < MOST_SHOWN else (f"only the {MOST_SHOWN} most probable places are shown",)
    nodules = [
        describe(i, r, o, series, c, person or Person(), multiple=len(large) > 1)
        for i, (r, o, _) in enumerate(large, start=1)
    ]
    return Detection(tuple(nodules), NAME, models.digest, notes)


def outline_of(rated: Rated, series: Series, level: float) -> Outlined | None:
    middle = (M - 1) / 2.0
    reach = middle * rated.grid.spacing[0] - 1.0
    return outline(rated.map_MMM, rated.grid, series.volume.geometry, (middle,) * 3, reach, level=level)


def describe(
    number: int, rated: Rated, outlined: Outlined, series: Series, c: Calibration, person: Person, *, multiple: bool
) -> DetectedNodule:
    """Measurement with intervals, place, texture, categories."""
    m = measure(outlined)
    confidence = float(expit(rated.logit))
    low, high = c.volume_low ** (1 / 3), c.volume_high ** (1 / 3)  # a diameter goes with the cube root
    diameter = Bounds(m.mean_mm * low, m.mean_mm * high)
    size = Size(m.mean_mm, min(diameter.low, m.mean_mm), max(diameter.high, m.mean_mm))
    texture = _texture(float(rated.boosted_H[HEADS.index("texture")]))
    malignancy = float(c.malignancy_probability(rated.boosted_H[1], rated.network_H[1], m.volume_mm3))
    side, zone = place_in_lungs(m.centre, series)
    return DetectedNodule(
        number=number,
        segment=outlined.segment,
        measurement=m,
        volume=Bounds(m.volume_mm3 * c.volume_low, m.volume_mm3 * c.volume_high),
        mean_diameter=diameter,
        confidence=confidence,
        assessment="nodule" if confidence >= c.sure else "uncertain",
        side=side,
        zone=zone,
        texture=texture,
        lung_rads=lung_rads(size, texture),
        fleischner=_fleischner(size, texture, person, multiple),
        malignancy=None if c.abstain_low < malignancy < c.abstain_high else malignancy,
    )


def _fleischner(size: Size, texture: Texture, person: Person, multiple: bool) -> tuple[str, ...]:
    advice = fleischner(size, texture, person, multiple=multiple)
    return advice.categories or (advice.not_applicable,)


def _texture(output: float) -> Texture:
    """From the readers' scale: 1 non-solid, 3 part-solid, 5 solid."""
    value = rating(output)
    return "ground-glass" if value < 2.0 else "part-solid" if value < 3.5 else "solid"


def place_in_lungs(centre: tuple[float, float, float], series: Series) -> tuple[Side, Zone]:
    """Side by the middle of the lungs (x grows to the patient's left), third by height."""
    g = series.lungs.geometry
    where = np.argwhere(series.lungs.mask_ZYX)
    position = g.to_patient(where[:: max(1, len(where) // 5000)].astype(float))
    middle = (position[:, 0].min() + position[:, 0].max()) / 2.0
    height = (centre[2] - position[:, 2].min()) / max(float(np.ptp(position[:, 2])), 1.0)
    zone: Zone = "lower" if height < 1 / 3 else "middle" if height < 2 / 3 else "upper"
    return ("left" if centre[0] > middle else "right"), zone
