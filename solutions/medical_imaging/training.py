"""Making of the shipped models: boosting and a network, on candidates of two real lungs and on real nodules placed in them.

Everything is split by patient: the third lung and the test patients stay out; thresholds and calibration come from validation
patients and from half a lung whose candidates neither rater has seen.
N examples, F features, H heads, M side of a cube.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.candidates import LOG_RADII_MM, Candidate, laplacian
from solutions.medical_imaging.cubes import cut_cube, scaled, voxel_mm
from solutions.medical_imaging.data import LidcData, RealScan, load_scan
from solutions.medical_imaging.examples import HEADS, SIDE, corner, cut, features, make_example
from solutions.medical_imaging.insertion import GRID_MM, make_patch, paste
from solutions.medical_imaging.lidc import Nodule, Split, load_nodules, split_of
from solutions.medical_imaging.looking import Cube, look
from solutions.medical_imaging.models import (
    BOOSTED,
    CALIBRATION,
    NETWORK,
    Calibration,
    load_network,
    save_network,
)
from solutions.medical_imaging.network import NetworkSettings, NoduleNet

F32 = NDArray[np.float32]
Say = Callable[[str], None]
TRAINING_SCANS, HELD_OUT_SCAN = ("0002", "0003"), "0001"
TRAINED_ON = 400  # nodules of the boosted rater: a random choice of the training patients
EPOCHS = 10  # of the network
HELD_SHARE = 0.5  # of a scan: what calibrates
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


def false_places(scan: RealScan) -> list[Candidate]:
    """The candidates away from every marked finding: none of them is a nodule."""
    marked = scan.avoid()
    return [
        c
        for c in laplacian(scan.crop)[:LOOKED_AT]
        if all(np.linalg.norm((np.asarray(c.centre) - place) * GRID_MM) > CLEAR_MM for place in marked)
    ]


def features_at(scan: RealScan, candidates: Sequence[Candidate]) -> F32:
    """(N, F) of candidates of a scan."""
    return np.stack([features(make_example(scan.crop.hu_ZYX, c)) for c in candidates])


def fit_rater(placed: Sequence[Placed], false: Sequence[F32], seed: int = 0) -> BoostedRater:
    """Nodules against the false candidates of some lungs."""
    negative = np.concatenate(false)
    unknown = np.full((len(negative), len(HEADS)), np.nan, np.float32)
    unknown[:, 0] = 0.0
    feature = np.concatenate([np.stack([p.feature_F for p in placed]), negative])
    return BoostedRater.fit(feature, np.concatenate([np.stack([p.target_H for p in placed]), unknown]), seed=seed)


def build(data: Path, out: Path, cache: Path, *, seed: int = 0, say: Say = print) -> None:
    """Train, calibrate and write the three files of a model folder.

    Args:
        cache: where the lungs of the complete scans are kept between calls.
    """
    from solutions.medical_imaging.network_training import NoduleSource, train_network

    out.mkdir(parents=True, exist_ok=True)
    lidc = LidcData.find(data)
    lungs = [load_scan(lidc, name, cache) for name in TRAINING_SCANS]
    say("lungs read")
    seen, held = shared_out(lungs)
    all_train, validation = nodules_of(lidc, "train"), nodules_of(lidc, "validation")
    false = [(k, c) for k, found in enumerate(seen) for c in found]
    say(f"to train on: {len(all_train)} nodules, {len(false)} false candidates")
    say(f"to calibrate with: {len(validation)} and {len(held)}")
    rater = fit_rater(
        place_nodules(nodules_of(lidc, "train", TRAINED_ON), lungs, seed),
        [features_at(lung, found) for lung, found in zip(lungs, seen, strict=True)],
        seed,
    )
    source = NoduleSource(all_train, target_array(all_train), lungs, false)
    network = train_network(source, NetworkSettings(), epochs=EPOCHS, seed=seed, half=True, say=say)
    save_network(network, out / NETWORK)
    rater.save(out / BOOSTED)
    calibration = fit_calibration(rater, load_network(out / NETWORK), lungs, held, validation, seed + 1)
    calibration.save(out / CALIBRATION)
    say(f"calibrated: {calibration}")


def fit_calibration(
    rater: BoostedRater,
    network: NoduleNet,
    lungs: Sequence[RealScan],
    held: Sequence[Candidate],
    validation: Sequence[Nodule],
    seed: int,
) -> Calibration:
    """held: false candidates of the last lung that neither rater has seen."""
    views = view(rater, network, validation, lungs, seed)
    return calibrate(views, opinions(rater, network, lungs[-1], held), HELD_SHARE)


def shared_out(lungs: Sequence[RealScan]) -> tuple[list[list[Candidate]], list[Candidate]]:
    """False candidates to train on, by lung, and those of the upper half of the last lung, to calibrate with."""
    places = [false_places(lung) for lung in lungs]
    middle = lungs[-1].crop.hu_ZYX.shape[0] / 2
    held = [c for c in places[-1] if c.centre[0] > middle]
    return [*places[:-1], [c for c in places[-1] if c.centre[0] <= middle]], held


def target_array(nodules: Sequence[Nodule]) -> F32:
    return np.stack([targets(n) for n in nodules])


@dataclass(frozen=True)
class Views:
    """Nodules as both raters see them.

    Args:
        boosted_NH, network_NH: outputs. target_NH: what they should be.
        map_NMMM, mask_NMMM: the network's outline as probabilities, and the readers' consensus on the same grid.
        voxel_N: mm3 of a voxel of those grids.
    """

    patient_N: NDArray[Any]
    boosted_NH: F32
    network_NH: F32
    target_NH: F32
    map_NMMM: F32
    mask_NMMM: NDArray[np.bool_]
    voxel_N: F32

    def volumes(self, level: float) -> NDArray[np.float64]:
        """(N,) mm3 of the outlines."""
        return np.asarray((self.map_NMMM >= level).sum((1, 2, 3)) * self.voxel_N, np.float64)

    @property
    def true_volumes(self) -> NDArray[np.float64]:
        return np.asarray(self.mask_NMMM.sum((1, 2, 3)) * self.voxel_N, np.float64)

    def dice(self, level: float) -> NDArray[np.float64]:
        """(N,) of the outlines with the consensus."""
        found = self.map_NMMM >= level
        both = (found & self.mask_NMMM).sum((1, 2, 3))
        return np.asarray(2.0 * both / np.maximum(found.sum((1, 2, 3)) + self.mask_NMMM.sum((1, 2, 3)), 1))


def view(
    rater: BoostedRater, network: NoduleNet, nodules: Sequence[Nodule], lungs: Sequence[RealScan], seed: int
) -> Views:
    """Nodules with their own surroundings in random places of lungs, once for each rater."""
    from solutions.medical_imaging.network_training import NoduleSource

    placed = place_nodules(nodules, lungs, seed)
    source, rng = NoduleSource(nodules, target_array(nodules), lungs, []), np.random.default_rng(seed)
    samples = [source.nodule(i, rng, plain=True) for i in range(len(nodules))]
    maps, ratings = look(network, samples)
    return Views(
        np.array([p.patient for p in placed]),
        rater.outputs(np.stack([p.feature_F for p in placed])),
        ratings,
        np.stack([p.target_H for p in placed]),
        maps,
        np.stack([s.mask_MMM for s in samples]) > 0,
        np.array([s.step_mm**3 for s in samples], np.float32),
    )


def opinions(
    rater: BoostedRater, network: NoduleNet, scan: RealScan, candidates: Sequence[Candidate]
) -> tuple[F32, F32]:
    """Outputs (N, H) of the boosted rater and of the network on candidates of a scan."""
    cubes = [
        Cube(scaled(cut_cube(scan.crop.hu_ZYX, (GRID_MM,) * 3, c.centre, step)), step)
        for c in candidates
        for step in [voxel_mm(c.diameter_mm)]
    ]
    return rater.outputs(features_at(scan, candidates)), look(network, cubes)[1]


def calibrate(views: Views, none: tuple[F32, F32], scans: float) -> Calibration:
    """Fit on validation nodules and on the raters' outputs for the false candidates of `scans` scans."""
    from sklearn.linear_model import LogisticRegression

    logits = np.concatenate(
        [np.stack([b[:, 0], n[:, 0]], axis=1) for b, n in ((views.boosted_NH, views.network_NH), none)]
    )
    is_nodule = np.repeat([1, 0], [len(views.target_NH), len(none[0])])
    # a scan has PER_SCAN nodules, not as many as validation has patients
    weight = np.where(is_nodule == 1, PER_SCAN * scans / len(views.target_NH), 1.0)
    balanced = LogisticRegression(C=1.0, class_weight="balanced").fit(logits, is_nodule)
    joined = logits @ balanced.coef_[0]
    line = LogisticRegression(C=100.0, max_iter=1000).fit(joined[:, None], is_nodule, weight)
    slope = float(line.coef_[0, 0])
    nodule = (slope * float(balanced.coef_[0, 0]), slope * float(balanced.coef_[0, 1]), float(line.intercept_[0]))
    level = unbiased_level(views)
    volume = views.volumes(level)
    known = np.isfinite(views.target_NH[:, 1])
    columns = np.stack([views.boosted_NH[:, 1], views.network_NH[:, 1], np.log(np.maximum(volume, 1.0))], axis=1)[known]
    likely = LogisticRegression(C=1.0, max_iter=1000).fit(columns, views.target_NH[known, 1].astype(int))
    half = float(np.quantile(np.abs(likely.predict_proba(columns)[:, 1] - 0.5), ABSTAINED))
    low, high = volume_factors(volume, views.true_volumes)
    probability = expit(nodule[0] * none[0][:, 0] + nodule[1] * none[1][:, 0] + nodule[2])
    show = at_rate(probability, SHOWN_FALSE, scans)
    b, n, v = (float(w) for w in likely.coef_[0])
    return Calibration(
        nodule=nodule,
        malignancy=(b, n, v, float(likely.intercept_[0])),
        outline_level=level,
        show=show,
        sure=max(show, at_rate(probability, SURE_FALSE, scans)),
        abstain_low=0.5 - half,
        abstain_high=0.5 + half,
        volume_low=low,
        volume_high=high,
    )


def unbiased_level(views: Views) -> float:
    """The level at which half of the outlines are larger than the readers' and half are smaller."""
    levels = np.linspace(0.15, 0.85, 71)
    bias = [float(np.median(np.log(np.maximum(views.volumes(t), 1e-3) / views.true_volumes))) for t in levels]
    return float(levels[int(np.abs(bias).argmin())])


def at_rate(probability_N: NDArray[Any], rate_per_scan: float, scans: float) -> float:
    """The probability that so many false candidates per scan reach."""
    falling = np.sort(probability_N)[::-1]
    return float(np.clip(falling[min(round(rate_per_scan * scans), len(falling) - 1)], 1e-4, 0.98))


def volume_factors(found_N: NDArray[Any], true_N: NDArray[Any]) -> tuple[float, float]:
    """Factors that turn a measured volume into an interval that holds 90 % of the consensus volumes."""
    ratio = true_N[found_N > 0] / found_N[found_N > 0]
    level = min(1.0, np.ceil((len(ratio) + 1) * 0.95) / len(ratio))  # split conformal, both sides
    low, high = np.quantile(ratio, [1.0 - level, level])
    return float(min(low, 1.0)), float(max(high, 1.0))
