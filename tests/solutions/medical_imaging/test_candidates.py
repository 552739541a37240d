"""Candidates and what the second stage sees of them: places, sizes, outlines, features, pasted nodules."""

from __future__ import annotations

import numpy as np
import pytest

from solutions.medical_imaging.candidates import Candidate, _extreme_eigenvalues, blobs, responses
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.examples import FEATURES, Example, features, make_example, soft_mask
from solutions.medical_imaging.geometry import Geometry
from solutions.medical_imaging.insertion import GRID_MM, Patch, paste

SHAPE = (48, 49, 50)
BALLS = {(14, 14, 15): 3.0, (30, 32, 30): 9.0}  # centre and radius in mm


@pytest.fixture(scope="module")
def crop() -> LungCrop:
    hu = np.random.default_rng(0).normal(-850.0, 15.0, SHAPE).astype(np.float32)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for (cz, cy, cx), radius in BALLS.items():
        hu[np.sqrt((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) * GRID_MM < radius] = 30.0
    geometry = Geometry(
        origin=(0.0, 0.0, 0.0),
        spacing=(GRID_MM,) * 3,
        row_cosine=(1.0, 0.0, 0.0),
        column_cosine=(0.0, 1.0, 0.0),
        shape=SHAPE,
    )
    return LungCrop(hu, np.ones(SHAPE, bool), geometry)


def test_the_best_candidates_are_the_balls(crop: LungCrop) -> None:
    found = blobs(crop)[:2]
    for centre, radius in BALLS.items():
        near = [c for c in found if np.linalg.norm(np.asarray(c.centre) - centre) * GRID_MM < 2.5]
        assert len(near) == 1
        assert 0.6 < near[0].diameter_mm / (2 * radius) < 1.5


def test_half_the_resolution_gives_the_same_as_the_whole(crop: LungCrop) -> None:
    hu = np.clip(crop.hu_ZYX, -950.0, 100.0)
    fast, slow = (responses(hu, crop.lung_ZYX, roundness=False, halve=halve)[0] for halve in (True, False))
    for centre in BALLS:
        assert fast[centre] == pytest.approx(slow[centre], rel=0.1)
    assert np.corrcoef(fast.ravel(), slow.ravel())[0, 1] > 0.98


def test_a_ball_comes_before_a_brighter_tube(crop: LungCrop) -> None:
    hu = crop.hu_ZYX.copy()
    hu[:, 36:39, 10:13] = 300.0
    hu[14 - 3 : 14 + 4, 14 - 3 : 14 + 4, 15 - 3 : 15 + 4] -= 250.0  # a faint ball
    with_tube = LungCrop(hu, crop.lung_ZYX, crop.geometry)

    def on_tube(candidate: Candidate) -> bool:
        return abs(candidate.centre[1] - 37) < 4 and abs(candidate.centre[2] - 11) < 4

    assert not any(on_tube(c) for c in blobs(with_tube)[:2])
    assert any(on_tube(c) for c in blobs(with_tube, roundness=False)[:2])


def test_closed_form_eigenvalues_are_those_of_lapack() -> None:
    matrices = np.random.default_rng(0).normal(size=(500, 3, 3)).astype(np.float32)
    matrices = matrices + matrices.transpose(0, 2, 1)
    matrices[0] = np.eye(3)
    m = matrices
    found = _extreme_eigenvalues(m[:, 0, 0], m[:, 1, 1], m[:, 2, 2], m[:, 0, 1], m[:, 0, 2], m[:, 1, 2])
    true = np.linalg.eigvalsh(matrices)
    np.testing.assert_allclose(found[0], true[:, 0], atol=2e-3)
    np.testing.assert_allclose(found[1], true[:, 2], atol=2e-3)


def test_outline_and_features_of_a_ball(crop: LungCrop) -> None:
    centre, radius = (30, 32, 30), 9.0
    example = make_example(crop.hu_ZYX, next(c for c in blobs(crop) if c.diameter_mm > 10.0))
    volume = float((example.map_MMM > 0.5).sum()) * GRID_MM**3
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.1), centre
    made = features(example)
    assert made.shape == (len(FEATURES),)
    assert made[FEATURES.index("elongation")] < 1.1
    assert made[FEATURES.index("mean_hu")] == pytest.approx(0.3, abs=0.2)


def test_a_candidate_that_is_dark_in_the_middle_has_a_mask_and_finite_features() -> None:
    z, y, x = np.ogrid[:32, :32, :32]
    distance = np.sqrt((z - 16) ** 2 + (y - 16) ** 2 + (x - 16) ** 2)
    ring = np.where((distance > 0.5) & (distance < 5.0), 20.0, -850.0).astype(np.float32)
    soft = soft_mask(ring, 8.0)
    assert float(soft[16, 16, 16]) == 1.0
    assert np.isfinite(features(Example(ring, soft))).all()
    assert np.isfinite(features(Example(ring, np.zeros_like(ring)))).all()


def test_paste_blends_and_cuts_at_the_edge() -> None:
    patch = Patch(
        np.full((5, 5, 5), 100.0, np.float32), np.full((5, 5, 5), 0.5, np.float32), np.ones((5, 5, 5), bool), 1
    )
    hu, mask = np.full((8, 8, 8), -900.0, np.float32), np.zeros((8, 8, 8), bool)
    paste(hu, mask, patch, (0, 4, 4))
    assert hu[0, 4, 4] == -400.0
    assert int(mask.sum()) == 3 * 5 * 5
    paste(hu, mask, patch, (40, 4, 4))
    assert int(mask.sum()) == 3 * 5 * 5
