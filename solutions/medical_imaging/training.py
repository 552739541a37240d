"""Making of the shipped models: boosting on candidates of two real lungs and on real nodules placed in them.

Everything is split by patient: the third lung and the test patients stay out, thresholds and calibration come from
validation patients and from lungs whose own candidates the model that rates them has not seen.
N examples, F features, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.calibration import Platt
from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.candidates import LOG_RADII_MM, Candidate, laplacian
from solutions.medical_imaging.data import LidcData, RealScan, load_scan
from solutions.medical_imaging.examples import HEADS, SIDE, corner, cut, features, make_example
from solutions.medical_imaging.insertion import GRID_MM, make_patch, paste
from solutions.medical_imaging.lidc import Nodule, Split, load_nodules, split_of
from solutions.medical_imaging.models import BOOSTED, CALIBRATION, Calibration

F32 = NDArray[np.float32]
Say = Callable[[str], None]
TRAINING_SCANS, HELD_OUT_SCAN = ("0002", "0003"), "0001"
TRAINED_ON = 400  # nodules: a random choice of the training patients
ROOM = 40  # side of the cube in which a nodule is placed
APART_MM = 20.0  # of a placed nodule from every marked finding
CLEAR_MM = 15.0  # around marked findings: a candidate there is neither right nor wrong
BENIGN, MALIGNANT = 2.0, 4.0  # median reader rating; 3 is "indeterminate" and no target
LOOKED_AT = 250  # candidates per scan, as in detection
SHOWN_FALSE, SURE_FALSE = 8.0, 2.0  # false positives per scan at which a place is shown, and called a nodule
PER_SCAN = 1186 / 888  # nodules, in LUNA16: what a candidate's probability has to start from
ABSTAINED = 0.15


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
    malignancy, texture = nodule.traits["malignancy"], nodule.traits["texture"]
    clear = malignancy <= BENIGN or malignancy >= MALIGNANT
    rated = (texture - 3.0) / 2.0 if np.isfinite(texture) and texture > 0 else np.nan
    return np.array([1.0, float(malignancy >= MALIGNANT) if clear else np.nan, rated], np.float32)


def false_candidates(scan: RealScan) -> F32:
    """(N, F) of the candidates away from every marked finding: none of them is a nodule."""
    marked = scan.avoid()
    far = [
        c
        for c in laplacian(scan.crop)[:LOOKED_AT]
        if all(np.linalg.norm((np.asarray(c.centre) - place) * GRID_MM) > CLEAR_MM for place in marked)
    ]
    return np.stack([features(make_example(scan.crop.hu_ZYX, c)) for c in far])


def fit_rater(placed: Sequence[Placed], false: Sequence[F32], seed: int = 0) -> BoostedRater:
    """Nodules against the false candidates of some lungs."""
    negative = np.concatenate(false)
    unknown = np.full((len(negative), len(HEADS)), np.nan, np.float32)
    unknown[:, 0] = 0.0
    feature = np.concatenate([np.stack([p.feature_F for p in placed]), negative])
    return BoostedRater.fit(feature, np.concatenate([np.stack([p.target_H for p in placed]), unknown]), seed=seed)


def build(data: Path, out: Path, cache: Path, *, seed: int = 0, say: Say = print) -> None:
    """Train, calibrate and write the two files of a model folder.

    Args:
        cache: where the lungs of the complete scans are kept between calls.
    """
    out.mkdir(parents=True, exist_ok=True)
    lidc = LidcData.find(data)
    lungs = [load_scan(lidc, name, cache) for name in TRAINING_SCANS]
    say("lungs read")
    false = [false_candidates(lung) for lung in lungs]
    say(f"{sum(map(len, false))} false candidates in {len(lungs)} lungs")
    train = place_nodules(nodules_of(lidc, "train", TRAINED_ON), lungs, seed)
    validation = place_nodules(nodules_of(lidc, "validation"), lungs, seed + 1)
    say(f"{len(train)} nodules to train on, {len(validation)} to calibrate with")
    rater = fit_rater(train, false, seed)
    # each lung's candidates are rated by a model that has seen only the other's
    others = [fit_rater(train, [f for k, f in enumerate(false) if k != i], seed) for i in range(len(false))]
    crossed = np.concatenate([other.outputs(f)[:, 0] for other, f in zip(others, false, strict=True)])
    calibration = calibrate(rater.outputs(np.stack([p.feature_F for p in validation])), validation, crossed, len(lungs))
    rater.save(out / BOOSTED)
    calibration.save(out / CALIBRATION)
    say(f"calibrated: {calibration}")


def calibrate(output_NH: F32, placed: Sequence[Placed], false_N: NDArray[Any], scans: int) -> Calibration:
    """Fit on validation nodules and on the logits of the false candidates of `scans` scans."""
    # validation holds far more nodules per false candidate than a patient does
    natural = np.repeat(false_N, max(round(len(placed) / PER_SCAN / scans), 1))
    logit = np.concatenate([output_NH[:, 0], natural])
    platt = Platt.fit(logit, np.repeat([1, 0], [len(placed), len(natural)]))
    probability = platt(false_N)
    target = np.array([p.target_H[1] for p in placed])
    known = np.isfinite(target)
    likely = Platt.fit(output_NH[known, 1], target[known].astype(int))
    half = float(np.quantile(np.abs(likely(output_NH[known, 1]) - 0.5), ABSTAINED))
    low, high = volume_factors(placed)
    show = at_rate(probability, SHOWN_FALSE, scans)
    return Calibration(
        nodule_scale=platt.slope,
        nodule_shift=platt.intercept,
        malignancy_scale=likely.slope,
        malignancy_shift=likely.intercept,
        show=show,
        sure=max(show, at_rate(probability, SURE_FALSE, scans)),
        abstain_low=0.5 - half,
        abstain_high=0.5 + half,
        volume_low=low,
        volume_high=high,
    )


def at_rate(probability_N: NDArray[Any], rate_per_scan: float, scans: float) -> float:
    """The probability that so many false candidates per scan reach."""
    falling = np.sort(probability_N)[::-1]
    return float(np.clip(falling[min(round(rate_per_scan * scans), len(falling) - 1)], 1e-4, 0.98))


def volume_factors(placed: Sequence[Placed]) -> tuple[float, float]:
    """Factors that turn a measured volume into an interval that holds 90 % of the consensus volumes."""
    ratio = [p.true / p.found for p in placed if p.found > 0]
    level = min(1.0, np.ceil((len(ratio) + 1) * 0.95) / len(ratio))  # split conformal, both sides
    low, high = np.quantile(ratio, [1.0 - level, level])
    return float(min(low, 1.0)), float(max(high, 1.0))
