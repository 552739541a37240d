"""Detection in one scan: candidates, second stage, measurement, categories.

N candidates, H heads, E pieces of evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.brock import MARKED, brock_range
from solutions.medical_imaging.candidates import Candidate, blobs
from solutions.medical_imaging.context import Known, Seen
from solutions.medical_imaging.crop import LungCrop, lung_crop
from solutions.medical_imaging.cubes import M, cube_geometry, cut_cube, scaled, voxel_mm
from solutions.medical_imaging.detected import Bounds, DetectedNodule, Detection, Side, Zone
from solutions.medical_imaging.examples import HEADS, make_example, rating
from solutions.medical_imaging.gate import Series
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.looking import Cube, look
from solutions.medical_imaging.measure import LEVEL, Outlined, Segment, measure, outline
from solutions.medical_imaging.models import NAME, Calibration, Models
from solutions.medical_imaging.rules import Person, Size, Texture, fleischner, lung_rads
from solutions.medical_imaging.texture import bright_hu

if TYPE_CHECKING:
    from solutions.medical_imaging.network import NoduleNet

F32 = NDArray[np.float32]
MOST_LOOKED_AT, MOST_SHOWN = 250, 12
LEAST_MM = 3.0
NOTED = 0.05  # change of a confidence by the context that is told
SAME_MM = 3.0  # between the middles of two outlines of one nodule


@dataclass(frozen=True)
class Rated:
    """A candidate after the second stage.

    Args:
        boosted_H, network_H: logits and ratings of the two raters.
        map_MMM: the network's probability of the outline, where `grid` lies.
        logit: of a nodule, by all the evidence; NaN before a calibration weighed it.
        shift: of the logit, by what was known before the scan.
    """

    candidate: Candidate
    boosted_H: F32
    network_H: F32
    map_MMM: F32
    grid: Geometry
    logit: float = float("nan")
    shift: float = 0.0

    @property
    def joined(self) -> float:
        """Logit by image and context."""
        return self.logit + self.shift

    @property
    def outline_logit(self) -> float:
        """How sure the outline is of its surest voxels near the middle."""
        near = slice(M // 2 - 4, M // 2 + 4)
        top = float(np.sort(self.map_MMM[near, near, near], axis=None)[-27:].mean())
        return float(np.log(max(top, 1e-6) / max(1.0 - top, 1e-6)))

    @property
    def evidence_E(self) -> NDArray[np.float64]:
        """(E,) in the order of EVIDENCE."""
        score = np.log(max(self.candidate.score, 1e-3))
        return np.array([self.boosted_H[0], self.network_H[0], self.outline_logit, score], np.float64)

    @cached_property
    def position(self) -> tuple[float, float, float]:
        """Middle of the outline, else of the candidate, in mm of the patient."""
        from scipy import ndimage

        labels, _ = ndimage.label(self.map_MMM >= LEVEL)
        middle = slice(M // 2 - 3, M // 2 + 3)
        here = labels[middle, middle, middle]
        index = [(M - 1) / 2.0] * 3
        if here.any():
            index = list(ndimage.center_of_mass(labels == np.bincount(here[here > 0]).argmax()))
        x, y, z = (float(v) for v in self.grid.to_patient([index])[0])
        return x, y, z


def rate_candidates(
    second: BoostedRater,
    network: NoduleNet,
    crop: LungCrop,
    candidates: list[Candidate],
    source: tuple[NDArray[Any], Geometry] | None = None,
) -> list[Rated]:
    """Both raters' opinions.

    Args:
        source: densities and grid that the network's cubes are cut from: the scan's own; the crop's when left out.
    """
    if not candidates:
        return []
    hu_ZYX, grid = source or (crop.hu_ZYX, crop.geometry)
    boosted = second.rate([make_example(crop.hu_ZYX, c) for c in candidates])
    centres = grid.to_index(crop.geometry.to_patient([c.centre for c in candidates]))
    cubes, grids = [], []
    for candidate, centre in zip(candidates, centres, strict=True):
        z, y, x = (float(v) for v in centre)
        step = voxel_mm(candidate.diameter_mm)
        cubes.append(Cube(scaled(cut_cube(hu_ZYX, grid.spacing, (z, y, x), step)), step))
        grids.append(cube_geometry(grid, (z, y, x), step))
    maps, ratings = look(network, cubes)
    return [Rated(c, boosted[i], ratings[i], maps[i], grids[i]) for i, c in enumerate(candidates)]


def second_stage(
    models: Models,
    crop: LungCrop,
    candidates: list[Candidate],
    source: tuple[NDArray[Any], Geometry] | None = None,
) -> list[Rated]:
    """Candidates with the second stage's opinion, best first, each place once; `source` as in `rate_candidates`."""
    rated = rate_candidates(models.second, models.network, crop, candidates, source)
    if not rated:
        return []
    logit_N = models.calibration.nodule_logit([r.evidence_E for r in rated])
    kept: list[Rated] = []
    for i in np.argsort(-logit_N, kind="stable"):
        if all(np.linalg.norm(np.subtract(rated[i].position, k.position)) > SAME_MM for k in kept):
            kept.append(replace(rated[i], logit=float(logit_N[i])))
    return kept


def seen_of(rated: Sequence[Rated], crop: LungCrop) -> list[Seen]:
    """What words can speak of: size of the outline, side and height in the lungs."""
    found = []
    for r in rated:
        volume = float((r.map_MMM >= LEVEL).sum() * np.prod(r.grid.spacing))
        diameter = (6.0 * volume / np.pi) ** (1 / 3) if volume else r.candidate.diameter_mm
        found.append(Seen(r.logit, diameter, *crop.place(r.position)))
    return found


def detect(series: Series, models: Models, known: Known | None = None) -> Detection:
    """All nodules of a series. What was known before the scan moves confidences, but hides nothing that the image shows."""
    known = known or Known()
    crop = lung_crop(series.volume, series.lungs)
    source = (series.volume.hu_ZYX, series.volume.geometry)
    rated = second_stage(models, crop, blobs(crop)[:MOST_LOOKED_AT], source)
    c = models.calibration
    if known:
        shift_N = models.context.shifts(seen_of(rated, crop), known)
        rated = [replace(r, shift=float(shift)) for r, shift in zip(rated, shift_N, strict=True)]
        rated.sort(key=lambda r: -max(r.logit, r.joined))
    shown = [r for r in rated if expit(max(r.logit, r.joined)) >= c.show][:MOST_SHOWN]
    measured = [(r, o) for r in shown if (o := outline_of(r, series, c.outline_level)) is not None]
    large = [(r, o, m) for r, o in measured if (m := measure(o)).mean_mm >= LEAST_MM]
    notes = [] if len(shown) < MOST_SHOWN else [f"only the {MOST_SHOWN} most probable places are shown"]
    for i, (r, _, _) in enumerate(large, start=1):
        alone, joined = (float(expit(v)) for v in (r.logit, r.joined))
        if abs(joined - alone) >= NOTED:
            notes.append(
                f"what was known before the scan moved the confidence of nodule {i} from {alone:.0%} to {joined:.0%}"
            )
    nodules = [
        describe(i, r, o, series, c, known.person, count=len(large)) for i, (r, o, _) in enumerate(large, start=1)
    ]
    return Detection(tuple(nodules), NAME, models.digest, tuple(notes))


def outline_of(rated: Rated, series: Series, level: float) -> Outlined | None:
    middle = (M - 1) / 2.0
    reach = middle * rated.grid.spacing[0] - 1.0
    return outline(rated.map_MMM, rated.grid, series.volume.geometry, (middle,) * 3, reach, level=level)


def describe(
    number: int, rated: Rated, outlined: Outlined, series: Series, c: Calibration, person: Person, *, count: int
) -> DetectedNodule:
    """Measurement with intervals, place, texture, categories."""
    m = measure(outlined)
    confidence, surest = float(expit(rated.joined)), float(expit(max(rated.logit, rated.joined)))
    low, high = c.volume_low ** (1 / 3), c.volume_high ** (1 / 3)  # a diameter goes with the cube root
    diameter = Bounds(m.mean_mm * low, m.mean_mm * high)
    size = Size(m.mean_mm, min(diameter.low, m.mean_mm), max(diameter.high, m.mean_mm))
    trait = dict(zip(HEADS, ((rated.boosted_H + rated.network_H) / 2.0).tolist(), strict=True))
    texture = c.texture(bright_hu(inside(outlined.segment, series)), (6.0 * m.volume_mm3 / np.pi) ** (1 / 3))
    columns = [rated.boosted_H[1], rated.network_H[1], np.log(max(m.volume_mm3, 1.0))]
    malignancy = float(c.malignancy_probability([columns])[0])
    side, zone = place_in_lungs(m.centre, series)
    spiculation = rating(trait["spiculation"])
    cancer = brock_range(person, m.long_mm, texture, count, upper=zone == "upper", spiculated=spiculation >= MARKED)
    return DetectedNodule(
        number=number,
        segment=outlined.segment,
        measurement=m,
        volume=Bounds(m.volume_mm3 * c.volume_low, m.volume_mm3 * c.volume_high),
        mean_diameter=diameter,
        confidence=confidence,
        assessment="nodule" if surest >= c.sure else "uncertain",
        side=side,
        zone=zone,
        texture=texture,
        lung_rads=lung_rads(size, texture),
        fleischner=_fleischner(size, texture, person, count > 1),
        spiculation=spiculation,
        lobulation=rating(trait["lobulation"]),
        calcified=float(expit(trait["calcified"])),
        malignancy=None if c.abstain_low < malignancy < c.abstain_high else malignancy,
        cancer=None if cancer is None else Bounds(*cancer),
    )


def _fleischner(size: Size, texture: Texture, person: Person, multiple: bool) -> tuple[str, ...]:
    advice = fleischner(size, texture, person, multiple=multiple)
    return advice.categories or (advice.not_applicable,)


def inside(segment: Segment, series: Series) -> NDArray[Any]:
    """HU of a segment's voxels."""
    box = tuple(slice(a, a + n) for a, n in zip(segment.start, segment.mask_ZYX.shape, strict=True))
    return np.asarray(series.volume.hu_ZYX[box][segment.mask_ZYX])


def place_in_lungs(centre: tuple[float, float, float], series: Series) -> tuple[Side, Zone]:
    """Side by the middle of the lungs (x grows to the patient's left), third by height."""
    g = series.lungs.geometry
    where = np.argwhere(series.lungs.mask_ZYX)
    position = g.to_patient(where[:: max(1, len(where) // 5000)].astype(float))
    middle = (position[:, 0].min() + position[:, 0].max()) / 2.0
    height = (centre[2] - position[:, 2].min()) / max(float(np.ptp(position[:, 2])), 1.0)
    zone: Zone = "lower" if height < 1 / 3 else "middle" if height < 2 / 3 else "upper"
    return ("left" if centre[0] > middle else "right"), zone
