"""The rule for texture: learnt from ratings, size taken into account, the named kinds in order."""

from __future__ import annotations

import numpy as np
import pytest

from solutions.medical_imaging.models import Models
from solutions.medical_imaging.texture import CALLED_SOFT, TextureRule, bright_hu, fit_texture

RNG = np.random.default_rng(0)


def test_it_finds_back_what_made_the_ratings() -> None:
    diameter, firmness = RNG.uniform(4.0, 25.0, 2000), RNG.normal(-250.0, 250.0, 2000)
    rating = np.where(firmness < -500.0, 1.0, np.where(firmness < -350.0, 3.0, 5.0))
    bright = firmness + 120.0 * np.log(diameter)
    rule = fit_texture(bright, diameter, rating)
    assert rule.per_log_mm == pytest.approx(120.0, abs=20.0)
    called = np.array([rule(b, d) for b, d in zip(bright, diameter, strict=True)])
    assert (called[rating == 1.0] == "ground-glass").mean() > 0.95
    assert (called[rating == 5.0] == "ground-glass").mean() == pytest.approx(CALLED_SOFT[0], abs=0.01)
    assert (called[rating == 5.0] != "solid").mean() == pytest.approx(CALLED_SOFT[1], abs=0.01)


def test_the_same_density_is_softer_in_a_large_nodule() -> None:
    rule = TextureRule(135.0, -526.0, -526.0)
    assert rule(-250.0, 20.0) == "ground-glass"
    assert rule(-250.0, 4.0) == "solid"


@pytest.mark.parametrize(("density", "kind"), [(-600.0, "ground-glass"), (30.0, "solid")])
def test_the_shipped_rule_names_plain_cases(density: float, kind: str) -> None:
    assert Models.load().calibration.texture(density, 11.0) == kind


def test_the_brighter_part_counts_not_the_rim() -> None:
    assert bright_hu(np.array([-700] * 80 + [20] * 20)) == 20.0
