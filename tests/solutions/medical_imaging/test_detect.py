"""The second stage: one place for every nodule, where the outline lies; evidence in the order that the calibration expects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solutions.medical_imaging.candidates import Candidate
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.cubes import M
from solutions.medical_imaging.detect import Rated, second_stage
from solutions.medical_imaging.evaluate import bright_components
from solutions.medical_imaging.examples import HEADS
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.insertion import GRID_MM
from solutions.medical_imaging.models import EVIDENCE, STRONGEST, Models

SHAPE = (48, 60, 60)
CENTRE = (24, 30, 28)
GRID = Geometry(
    origin=(-30.0, -20.0, 5.0),
    spacing=(GRID_MM,) * 3,
    row_cosine=(1.0, 0.0, 0.0),
    column_cosine=(0.0, 1.0, 0.0),
    shape=SHAPE,
)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models.load()


@pytest.fixture(scope="module")
def crop() -> LungCrop:
    hu = np.random.default_rng(0).normal(-860.0, 20.0, SHAPE).astype(np.float32)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    hu[(z - CENTRE[0]) ** 2 + (y - CENTRE[1]) ** 2 + (x - CENTRE[2]) ** 2 < 16] = 30.0
    return LungCrop(hu, np.ones(SHAPE, bool), GRID)


def rated(shift: int) -> Rated:
    """A ball that lies some voxels beside the candidate."""
    z, y, x = np.ogrid[:M, :M, :M]
    middle = (M - 1) / 2.0
    ball = (z - middle) ** 2 + (y - middle) ** 2 + (x - middle - shift) ** 2 < 20
    outputs = np.arange(len(HEADS), dtype=np.float32)
    where = replace(GRID, shape=(M,) * 3)
    return Rated(Candidate((0.0, 0.0, 0.0), 0.2, 6.0), outputs, outputs + 1.0, ball.astype(np.float32), where)


def test_a_place_is_the_middle_of_the_outline() -> None:
    middle = (M - 1) / 2.0
    for shift in (0, 3):
        expected = GRID.to_patient([(middle, middle, middle + shift)])[0]
        assert rated(shift).position == pytest.approx(expected, abs=0.1)
    nothing = replace(rated(0), map_MMM=np.zeros((M, M, M), np.float32))
    assert nothing.position == pytest.approx(GRID.to_patient([(middle,) * 3])[0])


def test_evidence_has_the_order_of_the_calibration_and_a_bound(models: Models) -> None:
    evidence = rated(0).evidence_E
    assert len(evidence) == len(EVIDENCE)
    assert evidence[:2] == pytest.approx([0.0, 1.0])
    assert evidence[3] == pytest.approx(np.log(0.2))
    strong = np.full(len(EVIDENCE), STRONGEST)
    assert models.calibration.nodule_logit([strong]) == pytest.approx(models.calibration.nodule_logit([10.0 * strong]))


def test_two_candidates_on_one_nodule_are_one_place(models: Models, crop: LungCrop) -> None:
    z, y, x = (float(v) for v in CENTRE)
    twins = [Candidate((z, y, x), 0.2, 10.0), Candidate((z, y, x + 2.0), 0.2, 10.0)]
    found = second_stage(models, crop, [*twins, Candidate((8.0, 8.0, 8.0), 0.06, 4.0)])
    near = [r for r in found if np.linalg.norm(np.subtract(r.position, GRID.to_patient([CENTRE])[0])) < 4.0]
    assert len(near) == 1
    assert found[0] is near[0]
    assert [r.logit for r in found] == sorted((r.logit for r in found), reverse=True)


def test_nothing_to_look_at_gives_nothing(models: Models, crop: LungCrop) -> None:
    assert second_stage(models, crop, []) == []


def test_the_plain_threshold_finds_the_ball(crop: LungCrop) -> None:
    (found,) = bright_components(crop)
    assert found.centre == pytest.approx(CENTRE, abs=0.1)
    assert found.diameter_mm == pytest.approx(8 * GRID_MM, rel=0.15)
