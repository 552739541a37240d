"""Detection in one scan: candidates, second stage, measurement, categories.

N candidates, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from solutions.medical_imaging.candidates import Candidate, laplacian
from solutions.medical_imaging.crop import LungCrop, lung_crop
from solutions.medical_imaging.detected import Bounds, DetectedNodule, Detection, Side, Zone
from solutions.medical_imaging.examples import HEADS, SIDE, Example, corner, make_example, rating
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.insertion import GRID_MM
from solutions.medical_imaging.measure import Outlined, measure, outline
from solutions.medical_imaging.models import NAME, Calibration, Models
from solutions.medical_imaging.rules import Person, Size, Texture, fleischner, lung_rads

F32 = NDArray[np.float32]
MOST_LOOKED_AT, MOST_SHOWN = 250, 12
LEAST_MM = 3.0
REACH = SIDE * GRID_MM / 2.0 - 2.0


@dataclass(frozen=True)
class Rated:
    """A candidate after the second stage: logits and ratings (H,), and what they were computed from."""

    candidate: Candidate
    example: Example
    output_H: F32

    @property
    def logit(self) -> float:
        return float(self.output_H[0])


def second_stage(models: Models, crop: LungCrop, candidates: list[Candidate]) -> list[Rated]:
    """Candidates with the second stage's opinion, best first."""
    examples = [make_example(crop.hu_ZYX, c) for c in candidates]
    outputs = models.second.rate(examples)
    rated = [Rated(c, e, o) for c, e, o in zip(candidates, examples, outputs, strict=True)]
    return sorted(rated, key=lambda r: -r.logit)


def detect(series: Series, models: Models, person: Person | None = None) -> Detection:
    """All nodules of a series."""
    crop = lung_crop(series.volume, series.lungs)
    rated = second_stage(models, crop, laplacian(crop)[:MOST_LOOKED_AT])
    c = models.calibration
    shown = [r for r in rated if expit(c.nodule_scale * r.logit + c.nodule_shift) >= c.show][:MOST_SHOWN]
    measured = [(r, o) for r in shown if (o := outline_of(r, crop, series)) is not None]
    large = [(r, o, m) for r, o in measured if (m := measure(o)).mean_mm >= LEAST_MM]
    notes = () if len(shown) < MOST_SHOWN else (f"only the {MOST_SHOWN} most probable places are shown",)
    nodules = [
        describe(i, r, o, series, c, person or Person(), multiple=len(large) > 1)
        for i, (r, o, _) in enumerate(large, start=1)
    ]
    return Detection(tuple(nodules), NAME, models.digest, notes)


def outline_of(rated: Rated, crop: LungCrop, series: Series) -> Outlined | None:
    low = corner(rated.candidate.centre)
    grid = crop.geometry.cropped((int(low[0]), int(low[1]), int(low[2])), (SIDE,) * 3)
    z, y, x = (float(v) for v in np.asarray(rated.candidate.centre) - low)
    return outline(rated.example.map_MMM, grid, series.volume.geometry, (z, y, x), REACH)


def describe(
    number: int, rated: Rated, outlined: Outlined, series: Series, c: Calibration, person: Person, *, multiple: bool
) -> DetectedNodule:
    """Measurement with intervals, place, texture, categories."""
    m = measure(outlined)
    confidence = float(expit(c.nodule_scale * rated.logit + c.nodule_shift))
    low, high = c.volume_low ** (1 / 3), c.volume_high ** (1 / 3)  # a diameter goes with the cube root
    diameter = Bounds(m.mean_mm * low, m.mean_mm * high)
    size = Size(m.mean_mm, min(diameter.low, m.mean_mm), max(diameter.high, m.mean_mm))
    texture = _texture(float(rated.output_H[HEADS.index("texture")]))
    malignancy = float(expit(c.malignancy_scale * float(rated.output_H[1]) + c.malignancy_shift))
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
