"""Real nodules at random places of real lungs, as the raters see them, and places of those lungs that are none.

N examples, F features, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solutions.medical_imaging.candidates import LOG_RADII_MM, Candidate, blobs
from solutions.medical_imaging.data import LidcData, RealScan
from solutions.medical_imaging.examples import HEADS, LOGITS, SIDE, corner, cut, features, make_example
from solutions.medical_imaging.insertion import GRID_MM, make_patch, paste
from solutions.medical_imaging.lidc import Nodule, Split, load_nodules, split_of

F32 = NDArray[np.float32]
ROOM = 40  # side of the cube in which a nodule is placed
APART_MM = 20.0  # of a placed nodule from every marked finding
CLEAR_MM = 15.0  # around marked findings: a candidate there is neither right nor wrong
BENIGN, MALIGNANT = 2.0, 4.0  # median reader rating; 3 is "indeterminate" and no target
NOT_CALCIFIED = 6.0  # on the readers' scale


@dataclass(frozen=True)
class Placed:
    """A real nodule in a real lung, as the detector sees it.

    Args:
        target_H: what each head should say; NaN is unknown.
        dice: of the outline with the readers' consensus.
        found, true: volumes of both in voxels of the working grid.
    """

    patient: str
    feature_F: F32
    target_H: F32
    dice: float
    found: float
    true: float


def nodules_of(data: LidcData, split: Split, most: int = 0) -> list[Nodule]:
    """Clean nodules of a split; a random choice of them when there are more than `most`."""
    nodules = [n for n in load_nodules(data.crops) if split_of(n.patient) == split and n.consensus_ZYX.sum() >= 3]
    if not most or len(nodules) <= most:
        return nodules
    return [nodules[i] for i in np.sort(np.random.default_rng(0).permutation(len(nodules))[:most])]


def place_nodules(nodules: Sequence[Nodule], lungs: Sequence[RealScan], seed: int) -> list[Placed]:
    """Paste each nodule, with its own surroundings, at a random place of a lung and outline it."""
    rng = np.random.default_rng(seed)
    inside = [np.flatnonzero(lung.crop.lung_ZYX.ravel()) for lung in lungs]
    avoid = [np.array(lung.avoid()).reshape(-1, 3) for lung in lungs]
    return [_place(nodule, lungs, inside, avoid, rng) for nodule in nodules]


def _place(
    nodule: Nodule,
    lungs: Sequence[RealScan],
    inside: list[NDArray[np.int64]],
    avoid: list[NDArray[np.float64]],
    rng: np.random.Generator,
) -> Placed:
    patch = make_patch(nodule, context="crop")
    for _ in range(50):
        which = int(rng.integers(len(lungs)))
        crop = lungs[which].crop
        place = np.array(np.unravel_index(int(rng.choice(inside[which])), crop.lung_ZYX.shape))
        if (np.abs((place - avoid[which]) * GRID_MM).max(1, initial=0.0) > APART_MM + ROOM * GRID_MM / 2).all():
            break
    hu, truth = cut(crop.hu_ZYX, place - ROOM // 2, ROOM), np.zeros((ROOM,) * 3, bool)
    paste(hu, truth, patch, (ROOM // 2,) * 3)
    # the detector's centre is never exact, and its size is one of its radii, sometimes the next one
    z, y, x = (float(ROOM // 2 + v) for v in rng.normal(0.0, 0.6, 3))
    candidate = Candidate((z, y, x), 1.0, _seen_diameter(patch.diameter_mm, rng))
    example = make_example(hu, candidate)
    mask = example.map_MMM > 0.5
    both = float((mask & (cut(truth.astype(np.float32), corner(candidate.centre), SIDE) > 0.5)).sum())
    found, true = float(mask.sum()), float(truth.sum())
    return Placed(nodule.patient, features(example), targets(nodule), 2.0 * both / max(found + true, 1.0), found, true)


def _seen_diameter(diameter_mm: float, rng: np.random.Generator) -> float:
    best = int(np.abs(np.log(np.asarray(LOG_RADII_MM) / (diameter_mm / 2.0))).argmin())
    step = int(rng.choice((-1, 0, 0, 1)))
    return 2.0 * LOG_RADII_MM[int(np.clip(best + step, 0, len(LOG_RADII_MM) - 1))]


def targets(nodule: Nodule) -> F32:
    """(H,) in the order of HEADS; NaN where readers gave no clear opinion."""
    malignancy = nodule.traits["malignancy"]
    said = {"nodule": 1.0}
    if malignancy <= BENIGN or malignancy >= MALIGNANT:
        said["malignancy"] = float(malignancy >= MALIGNANT)
    for name in HEADS:
        if name not in LOGITS and nodule.traits[name] > 0:
            said[name] = (nodule.traits[name] - 3.0) / 2.0
    if nodule.traits["calcification"] > 0:
        said["calcified"] = float(nodule.traits["calcification"] < NOT_CALCIFIED)
    return np.array([said.get(name, np.nan) for name in HEADS], np.float32)


def false_places(scan: RealScan) -> list[Candidate]:
    """The candidates away from every marked finding: none of them is a nodule."""
    marked = scan.avoid()
    return [
        c
        for c in blobs(scan.crop)
        if all(np.linalg.norm((np.asarray(c.centre) - place) * GRID_MM) > CLEAR_MM for place in marked)
    ]


def features_at(scan: RealScan, candidates: Sequence[Candidate]) -> F32:
    """(N, F) of candidates of a scan."""
    return np.stack([features(make_example(scan.crop.hu_ZYX, c)) for c in candidates])


def target_array(nodules: Sequence[Nodule]) -> F32:
    return np.stack([targets(n) for n in nodules])
