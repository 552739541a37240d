"""Golden cases of both guidelines, of borderline sizes, and of growth."""

from __future__ import annotations

import math

import pytest

from solutions.medical_imaging.growth import Seen, compare, doubling_time
from solutions.medical_imaging.rules import (
    FLEISCHNER_VOLUME,
    LUNGRADS_VOLUME,
    Person,
    Size,
    fleischner,
    fleischner_exact,
    lung_rads,
    lung_rads_exact,
)


def exact(mm: float) -> Size:
    return Size(mm, mm, mm)


@pytest.mark.parametrize(
    ("mm", "texture", "seen", "solid", "category"),
    [
        (5.9, "solid", "baseline", None, "2"),
        (5.94, "solid", "baseline", None, "2"),  # measured to one decimal
        (5.96, "solid", "baseline", None, "3"),
        (6.0, "solid", "baseline", None, "3"),
        (7.9, "solid", "baseline", None, "3"),
        (8.0, "solid", "baseline", None, "4A"),
        (14.9, "solid", "baseline", None, "4A"),
        (15.0, "solid", "baseline", None, "4B"),
        (3.9, "solid", "new", None, "2"),
        (4.0, "solid", "new", None, "3"),
        (6.0, "solid", "new", None, "4A"),
        (8.0, "solid", "new", None, "4B"),
        (7.0, "solid", "growing", None, "4A"),
        (8.0, "solid", "growing", None, "4B"),
        (7.0, "solid", "stable", None, "2"),
        (5.0, "part-solid", "baseline", 2.0, "2"),
        (9.0, "part-solid", "baseline", 5.9, "3"),
        (9.0, "part-solid", "baseline", 6.0, "4A"),
        (12.0, "part-solid", "baseline", 8.0, "4B"),
        (5.0, "part-solid", "new", 1.0, "3"),
        (9.0, "part-solid", "growing", 3.9, "4A"),
        (9.0, "part-solid", "growing", 4.0, "4B"),
        (29.9, "ground-glass", "baseline", None, "2"),
        (30.0, "ground-glass", "baseline", None, "3"),
        (35.0, "ground-glass", "stable", None, "2"),
    ],
)
def test_lung_rads(mm: float, texture: str, seen: str, solid: float | None, category: str) -> None:
    assert lung_rads_exact(mm, texture, seen=seen, solid_mm=solid) == category  # type: ignore[arg-type]


def test_a_size_across_a_cut_off_shows_both_categories() -> None:
    assert lung_rads(Size(7.8, 7.1, 8.4), "solid") == ("3", "4A")
    assert lung_rads(exact(7.8), "solid") == ("3",)


def test_volumes_are_those_of_balls_and_the_tables_differ() -> None:
    for mm, mm3 in LUNGRADS_VOLUME.items():
        assert mm3 == pytest.approx(math.pi / 6 * mm**3, abs=0.8)
    assert FLEISCHNER_VOLUME[6] != LUNGRADS_VOLUME[6.0]


@pytest.mark.parametrize(
    ("mm", "texture", "multiple", "risk", "begins"),
    [
        (5.4, "solid", False, "low", "no routine"),
        (5.5, "solid", False, "low", "CT at 6-12 months, then consider"),  # rounds to 6
        (5.4, "solid", False, "high", "optional CT at 12"),
        (8.4, "solid", False, "high", "CT at 6-12 months, then at"),
        (8.5, "solid", False, "low", "consider CT at 3 months, PET"),
        (7.0, "solid", True, "low", "CT at 3-6 months, then consider"),
        (7.0, "ground-glass", False, "low", "CT at 6-12 months, then every 2"),
        (7.0, "part-solid", False, "high", "CT at 3-6 months"),
        (5.0, "ground-glass", False, "high", "no routine"),
    ],
)
def test_fleischner(mm: float, texture: str, multiple: bool, risk: str, begins: str) -> None:
    assert fleischner_exact(mm, texture, multiple=multiple, risk=risk).startswith(begins)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("person", "why"),
    [
        (Person(age=34), "younger than 35"),
        (Person(known_cancer=True), "known cancer"),
        (Person(immunosuppressed=True), "immunosuppression"),
        (Person(screening=True), "screening"),
    ],
)
def test_fleischner_excludes(person: Person, why: str) -> None:
    advice = fleischner(exact(7.0), "solid", person, multiple=False)
    assert advice.categories == ()
    assert why in advice.not_applicable


def test_an_unknown_risk_shows_both() -> None:
    assert len(fleischner(exact(7.0), "solid", Person(age=60), multiple=False).categories) == 2
    assert len(fleischner(exact(7.0), "solid", Person(age=60, risk="high"), multiple=False).categories) == 1


def test_every_advice_fits_a_coded_value() -> None:
    for texture in ("solid", "part-solid", "ground-glass"):
        for mm in (4.0, 7.0, 12.0):
            for multiple in (False, True):
                for risk in ("low", "high"):
                    assert len(fleischner_exact(mm, texture, multiple=multiple, risk=risk)) <= 64  # type: ignore[arg-type]
    assert len(fleischner(exact(7.0), "solid", Person(screening=True), multiple=False).not_applicable) <= 64


def seen(
    day: int, volume: float, *, spread: float = 0.1, slice_mm: float = 1.0, mm: float = 8.0, kernel: str = "B"
) -> Seen:
    return Seen(day, volume, volume * (1 - spread), volume * (1 + spread), mm, slice_mm, kernel)


def test_doubling_time_of_a_doubled_volume_is_the_time_between() -> None:
    growth = compare(seen(0, 100.0), seen(90, 200.0, mm=10.0))
    assert growth.doubling_days == pytest.approx(90.0)
    assert growth.grown
    assert growth.lung_rads_growth
    assert growth.doubling_low is not None
    assert growth.doubling_high is not None
    assert growth.doubling_low < 90.0 < growth.doubling_high


def test_a_halved_volume_has_a_negative_doubling_time() -> None:
    assert doubling_time(30.0, 0.5) == pytest.approx(-30.0)


@pytest.mark.parametrize(
    ("prior", "current", "why"),
    [
        (seen(0, 100.0, slice_mm=5.0), seen(90, 200.0), "slices of 5.00 mm"),
        (seen(0, 100.0), seen(10, 200.0), "10 days"),
        (seen(0, 100.0), seen(90, 200.0, kernel="Y"), "different kernels"),
        (seen(0, 100.0), seen(90, 110.0), "overlap"),
    ],
)
def test_guards_forbid_a_doubling_time(prior: Seen, current: Seen, why: str) -> None:
    growth = compare(prior, current)
    assert growth.doubling_days is None
    assert any(why in reason for reason in growth.why_not)


def test_a_prior_that_is_not_older_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be older"):
        compare(seen(10, 100.0), seen(10, 100.0))
