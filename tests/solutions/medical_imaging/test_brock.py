"""The Brock model: its published second form, limits, and what an incomplete record leaves open."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from solutions.medical_imaging.brock import brock, brock_range
from solutions.medical_imaging.rules import Person, Texture

WOMAN = Person(age=70, sex="female", family_history=True, emphysema=False)


@pytest.mark.parametrize("texture", ["solid", "part-solid", "ground-glass"])
@pytest.mark.parametrize(("age", "size", "count"), [(50, 5.0, 1), (62, 10.0, 4), (75, 22.0, 2)])
def test_it_agrees_with_the_uncentred_form(texture: Texture, age: int, size: float, count: int) -> None:
    # Uthoff et al., Eur Radiol 29:5367 (2019), table 2: the same model with everything folded into the intercept
    soft = {"solid": 0.0, "part-solid": 0.377, "ground-glass": -0.1276}[texture]
    x = (
        0.2761
        + 0.0287 * age
        + 0.6011
        + 0.2961
        - 5.3854 * (size / 10.0) ** -0.5
        + soft
        - 0.0824 * count
        + 0.6581
        + 0.7729
    )
    person = replace(WOMAN, age=age)
    found = brock(person, size, texture, count, upper=True, spiculated=True)
    assert found == pytest.approx(1.0 / (1.0 + math.exp(-x)), rel=2e-3)


def test_the_mean_patient_of_the_paper_has_the_intercept() -> None:
    mean = Person(age=62, sex="male", family_history=False, emphysema=False)
    found = brock(mean, 4.0, "solid", 4, upper=False, spiculated=False)  # 4 mm: (4 / 10) ** -.5 = 1.58113883
    assert found == pytest.approx(1.0 / (1.0 + math.exp(6.7892)), rel=1e-4)


def test_what_the_record_leaves_open_is_a_range() -> None:
    known = brock_range(WOMAN, 9.0, "solid", 1, upper=True, spiculated=False)
    open_ = brock_range(
        replace(WOMAN, emphysema=None, family_history=None), 9.0, "solid", 1, upper=True, spiculated=False
    )
    assert known is not None
    assert open_ is not None
    assert known[0] == known[1]
    assert open_[0] < known[0] < open_[1]


@pytest.mark.parametrize("gone", [{"age": None}, {"sex": None}, {"known_cancer": True}])
def test_without_age_or_sex_or_with_a_cancer_it_says_nothing(gone: dict[str, bool | None]) -> None:
    assert brock_range(replace(WOMAN, **gone), 9.0, "solid", 1, upper=False, spiculated=False) is None  # type: ignore[arg-type]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"long_mm=0.0"):
        brock(WOMAN, 0.0, "solid", 1, upper=False, spiculated=False)
