"""Probability of cancer from the patient's record and what was measured: the full Brock (PanCan 2b) model.

McWilliams et al., NEJM 369:910 (2013). It was made on nodules of a first screening CT of smokers from 50 to 75 years; outside
of that it is an extrapolation.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from solutions.medical_imaging.rules import Person, Texture

FEMALE, FAMILY, EMPHYSEMA, UPPER, SPICULATED = 0.6011, 0.2961, 0.2953, 0.6581, 0.7729
PER_YEAR, PER_NODULE, SIZE, START = 0.0287, -0.0824, -5.3854, -6.7892
MEAN_AGE, MEAN_COUNT, MEAN_SIZE = 62.0, 4.0, 1.58113883
TYPE: dict[Texture, float] = {"solid": 0.0, "part-solid": 0.3770, "ground-glass": -0.1276}
MARKED = 3.0  # rating of spiculation, 1 to 5, from which it counts


def brock(person: Person, long_mm: float, texture: Texture, nodules: int, *, upper: bool, spiculated: bool) -> float:
    """Probability of cancer within two to four years; age, sex, family history and emphysema must be known.

    Args:
        long_mm: largest diameter, > 0. upper: in an upper lobe. nodules: in the scan.
    """
    if person.age is None or person.sex is None or person.family_history is None or person.emphysema is None:
        raise ValueError("`person` must have age, sex, family_history and emphysema.")
    if not long_mm > 0.0 or nodules < 1:
        raise ValueError(f"`long_mm` must be > 0 and `nodules` >= 1. Received: long_mm={long_mm}, nodules={nodules}.")
    logit = (
        START
        + PER_YEAR * (person.age - MEAN_AGE)
        + FEMALE * (person.sex == "female")
        + FAMILY * person.family_history
        + EMPHYSEMA * person.emphysema
        + SIZE * ((long_mm / 10.0) ** -0.5 - MEAN_SIZE)
        + TYPE[texture]
        + UPPER * upper
        + SPICULATED * spiculated
        + PER_NODULE * (nodules - MEAN_COUNT)
    )
    return 1.0 / (1.0 + math.exp(-logit))


def brock_range(
    person: Person, long_mm: float, texture: Texture, nodules: int, *, upper: bool, spiculated: bool
) -> tuple[float, float] | None:
    """Least and largest probability over what the record leaves open; None without age or sex, or with a known cancer."""
    if person.age is None or person.sex is None or person.known_cancer:
        return None
    families = (False, True) if person.family_history is None else (person.family_history,)
    lungs = (False, True) if person.emphysema is None else (person.emphysema,)
    found = [
        brock(
            replace(person, family_history=family, emphysema=emphysema),
            long_mm,
            texture,
            nodules,
            upper=upper,
            spiculated=spiculated,
        )
        for family, emphysema in itertools.product(families, lungs)
    ]
    return min(found), max(found)
