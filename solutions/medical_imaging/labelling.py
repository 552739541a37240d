"""Which nodules a reader should look at next: those of which the models are least sure (Lewis and Gale 1994)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.files import InputError
from solutions.medical_imaging.signing import read_chain


@dataclass(frozen=True)
class Asked:
    """A nodule to look at. doubt: 1 for a coin's toss, 0 for certainty."""

    folder: Path
    nodule: str
    doubt: float
    because: str


def doubt(probability_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) from 0 at certainty to 1 at one half."""
    return 1.0 - np.abs(2.0 * np.asarray(probability_N, np.float64) - 1.0)


def rank(folders: list[Path]) -> list[Asked]:
    """The unsigned nodules of some reviews, the most doubtful first; ties by folder and number.

    Raises:
        InputError: a folder holds no finished review.
    """
    asked = []
    for folder in folders:
        try:
            found = json.loads((folder / "findings.json").read_text())
            nodules = found["nodules"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"folder `{folder.name}` holds no findings.json of a review.") from error
        done = {line["nodule"] for line in read_chain(folder)}
        for number, nodule in enumerate(nodules, start=1):
            if number in done:
                continue
            chances = {"a nodule": nodule["confidence_percent"] / 100.0}
            if "malignancy_percent" in nodule:
                chances["likely malignant"] = nodule["malignancy_percent"] / 100.0
            doubts = {name: float(doubt(np.array([p]))[0]) for name, p in chances.items()}
            if "malignancy_percent" not in nodule:
                doubts["likely malignant"] = 1.0  # the model abstained
            what = max(doubts, key=lambda name: doubts[name])
            asked.append(Asked(folder, nodule["name"], doubts[what], what))
    return sorted(asked, key=lambda a: (-a.doubt, a.folder.name, a.nodule))
