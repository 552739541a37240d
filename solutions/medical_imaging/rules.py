"""Lung-RADS v2022 and Fleischner 2017: two tables that share nothing, because their cut-offs differ.

A category is a tuple: one entry, or both when the interval of the size crosses a cut-off.
Lung-RADS: Christensen et al., JACR 2024, doi:10.1016/j.jacr.2023.09.009. Fleischner: MacMahon et al., Radiology 2017,
doi:10.1148/radiol.2017161659.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Texture = Literal["solid", "part-solid", "ground-glass"]
Risk = Literal["low", "high"]

# --- Lung-RADS v2022: mean diameter in mm, and the volumes that it gives for them ---
LUNGRADS_VOLUME = {4.0: 34.0, 6.0: 113.0, 8.0: 268.0, 15.0: 1767.0, 30.0: 14137.0}
CUT_OFFS = tuple(LUNGRADS_VOLUME)
GROWTH_MM = 1.5  # of the mean diameter, within 12 months
LUNGRADS_ADVICE = {
    "1": "screening in 12 months",
    "2": "screening in 12 months",
    "3": "low-dose CT in 6 months",
    "4A": "low-dose CT in 3 months; PET/CT may be considered from 8 mm of solid part",
    "4B": "CT with or without contrast, PET/CT, tissue sampling, as fits the probability of malignancy",
}


@dataclass(frozen=True)
class Size:
    """Mean diameter in mm with its interval; of the solid part too, for part-solid nodules."""

    mean_mm: float
    low_mm: float
    high_mm: float

    def __post_init__(self) -> None:
        if not 0.0 < self.low_mm <= self.mean_mm <= self.high_mm:
            raise ValueError(
                "a size must be 0 < low <= mean <= high. "
                f"Received: low={self.low_mm}, mean={self.mean_mm}, high={self.high_mm}."
            )


Seen = Literal["baseline", "new", "stable", "growing"]


def lung_rads_exact(mean_mm: float, texture: Texture, *, seen: Seen = "baseline", solid_mm: float | None = None) -> str:
    """The category of one size. `solid_mm` is the mean diameter of the solid part of a part-solid nodule."""
    mean = round(mean_mm, 1)
    if texture == "ground-glass":
        # growing slowly stays 2; non-solid from 30 mm is 3 at baseline or when new
        return "3" if mean >= 30.0 and seen in ("baseline", "new") else "2"
    if texture == "part-solid":
        solid = round(solid_mm if solid_mm is not None else 0.0, 1)
        if mean < 6.0:
            return "3" if seen == "new" else "2"
        if seen in ("new", "growing") and solid >= 4.0:
            return "4B"
        if seen in ("new", "growing"):
            return "4A"
        return "3" if solid < 6.0 else "4A" if solid < 8.0 else "4B"
    if seen == "new":
        return "2" if mean < 4.0 else "3" if mean < 6.0 else "4A" if mean < 8.0 else "4B"
    if seen == "growing":
        return "4A" if mean < 8.0 else "4B"
    if seen == "stable" and mean < 8.0:
        return "2"
    return "2" if mean < 6.0 else "3" if mean < 8.0 else "4A" if mean < 15.0 else "4B"


def lung_rads(size: Size, texture: Texture, *, seen: Seen = "baseline", solid: Size | None = None) -> tuple[str, ...]:
    """Categories that the interval of the size allows, mildest first; more than one is borderline.

    A part-solid nodule whose solid part was not measured may be solid in any part: all that follow are shown.
    """
    sizes = _between(size)
    if texture != "part-solid":
        pairs: list[tuple[float, float | None]] = [(mm, None) for mm in sizes]
    else:
        parts = _between(solid) if solid is not None else (*(c for c in CUT_OFFS if c <= size.high_mm), 0.0)
        pairs = [(mm, part) for mm in sizes for part in parts if part <= mm]
    return tuple(sorted({lung_rads_exact(mm, texture, seen=seen, solid_mm=part) for mm, part in pairs}))


def _between(size: Size) -> tuple[float, ...]:
    """The ends of an interval, its middle, and every cut-off that it holds."""
    return (size.low_mm, size.mean_mm, size.high_mm, *(c for c in CUT_OFFS if size.low_mm <= c <= size.high_mm))


# --- Fleischner 2017: rounded whole millimetres, volumes of its own ---
FLEISCHNER_VOLUME = {6: 100.0, 8: 250.0}
LEAST_AGE = 35


Sex = Literal["female", "male"]


@dataclass(frozen=True)
class Person:
    """What Fleischner asks before it applies, and what the Brock model asks; None is unknown."""

    age: int | None = None
    sex: Sex | None = None
    family_history: bool | None = None
    emphysema: bool | None = None
    known_cancer: bool | None = None
    immunosuppressed: bool | None = None
    screening: bool | None = None
    risk: Risk | None = None


@dataclass(frozen=True)
class Advice:
    """Categories with their advice, or the reason why the guideline does not apply."""

    categories: tuple[str, ...]
    not_applicable: str = ""


def fleischner_excludes(person: Person) -> str:
    """Why the guideline does not apply, or nothing."""
    if person.age is not None and person.age < LEAST_AGE:
        return f"younger than {LEAST_AGE}"
    for name, why in (
        ("known_cancer", "known cancer"),
        ("immunosuppressed", "immunosuppression"),
        ("screening", "lung-cancer screening"),
    ):
        if getattr(person, name):
            return why
    return ""


def fleischner_exact(mean_mm: float, texture: Texture, *, multiple: bool, risk: Risk) -> str:
    """The advice for one size, rounded to whole millimetres as the guideline does."""
    mm = int(mean_mm + 0.5)
    if texture == "ground-glass":
        if mm < 6:
            return "no routine follow-up" if not multiple else "CT at 3-6 months; if stable consider 2 and 4 years"
        if multiple:
            return "CT at 3-6 months; then by the most suspicious nodule"
        return "CT at 6-12 months, then every 2 years until 5 years"
    if texture == "part-solid":
        if mm < 6:
            return "no routine follow-up" if not multiple else "CT at 3-6 months; if stable consider 2 and 4 years"
        if multiple:
            return "CT at 3-6 months; then by the most suspicious nodule"
        return "CT at 3-6 months; if solid part < 6 mm yearly for 5 years"
    if mm < 6:
        return "no routine follow-up" if risk == "low" else "optional CT at 12 months"
    if multiple:
        return (
            "CT at 3-6 months, then consider CT at 18-24 months"
            if risk == "low"
            else "CT at 3-6 months, then at 18-24 months"
        )
    if mm <= 8:
        return (
            "CT at 6-12 months, then consider CT at 18-24 months"
            if risk == "low"
            else "CT at 6-12 months, then at 18-24 months"
        )
    return "consider CT at 3 months, PET/CT or tissue sampling"


def fleischner(size: Size, texture: Texture, person: Person, *, multiple: bool) -> Advice:
    """Advice for every size of the interval and, when the risk is unknown, for both risks."""
    if why := fleischner_excludes(person):
        return Advice((), f"Fleischner 2017 does not apply: {why}")
    risks: tuple[Risk, ...] = (person.risk,) if person.risk is not None else ("low", "high")
    found: list[str] = []
    for risk in risks:
        for mm in sorted(
            {size.low_mm, size.mean_mm, size.high_mm, *range(int(size.low_mm) + 1, int(size.high_mm) + 1)}
        ):
            advice = fleischner_exact(mm, texture, multiple=multiple, risk=risk)
            if advice not in found:
                found.append(advice)
    return Advice(tuple(found))
