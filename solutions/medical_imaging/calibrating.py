"""What turns the raters' outputs into probabilities and intervals: fitted where they could not have learnt the answer.

N nodules, H heads, E pieces of evidence, M side of a cube.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.candidates import blobs
from solutions.medical_imaging.context import Seen
from solutions.medical_imaging.context_training import Pool
from solutions.medical_imaging.crop import LungCrop
from solutions.medical_imaging.data import RealScan
from solutions.medical_imaging.detect import MOST_LOOKED_AT, rate_candidates, seen_of
from solutions.medical_imaging.insertion import GRID_MM, insert, make_patch
from solutions.medical_imaging.lidc import Nodule
from solutions.medical_imaging.looking import look
from solutions.medical_imaging.models import EVIDENCE, STRONGEST, Calibration, joined_logit
from solutions.medical_imaging.network import NoduleNet
from solutions.medical_imaging.placing import false_places, place_nodules, target_array
from solutions.medical_imaging.texture import TextureRule, bright_hu

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
PER_COPY, APART_MM = 15, 28.0  # nodules in a copy of a lung, and their distance
LEAST_READERS, LEAST_MM = 3, 3.0  # LUNA16's reference
SHOWN_FALSE, SURE_FALSE = 4.0, 0.5  # false positives per scan at which a place is shown, and called a nodule
LEAST_SURE = 0.3  # probability below which nothing is called a nodule
PER_SCAN = 1186 / 888  # nodules, in LUNA16: what a candidate's probability has to start from
ABSTAINED = 0.12


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


@dataclass(frozen=True)
class Unseen:
    """Opinions of raters on nodules of patients, and in a lung, that they were not trained on.

    Args:
        nodule_NE: evidence of inserted nodules that were candidates. false_NE: of the lung's own candidates.
        inserted: nodules that were put there.
        malignancy_N3: boosted and network logit, logarithm of the outline's volume in mm3, of nodules with a clear opinion.
        malignant_N: that opinion.
        nodules, false: what words can speak of, in the order of the evidence; their logits are not weighed yet.
    """

    nodule_NE: F64
    false_NE: F64
    inserted: int
    malignancy_N3: F64
    malignant_N: NDArray[np.int64]
    nodules: tuple[Seen, ...]
    false: tuple[Seen, ...]

    def pool(self, nodule: Sequence[float]) -> Pool:
        """With the logits that some weights of the evidence give them."""
        parts = (self.nodules, self.nodule_NE), (self.false, self.false_NE)
        nodules, false = (
            tuple(replace(s, logit=float(v)) for s, v in zip(seen, joined_logit(nodule, evidence), strict=True))
            for seen, evidence in parts
        )
        return Pool(nodules, false)


def unseen(rater: BoostedRater, network: NoduleNet, nodules: Sequence[Nodule], lung: RealScan, seed: int) -> Unseen:
    """The whole way of detection for nodules inserted into copies of a lung; malignancy with their own surroundings."""
    rng = np.random.default_rng(seed)
    counted = [n for n in nodules if n.readers >= LEAST_READERS and n.diameter_mm >= LEAST_MM]
    order = rng.permutation(len(counted))
    avoid = [(round(z), round(y), round(x)) for z, y, x in lung.avoid()]
    found, inserted = [], 0
    nodules_seen: list[Seen] = []
    for begin in range(0, len(order), PER_COPY):
        patches = [make_patch(counted[i], context="nodule") for i in order[begin : begin + PER_COPY]]
        copy = insert(lung.crop.hu_ZYX, lung.crop.lung_ZYX, patches, seed + begin, avoid=avoid, apart_mm=APART_MM)
        crop = LungCrop(copy.hu_ZYX, lung.crop.lung_ZYX, lung.crop.geometry)
        candidates = blobs(crop)[:MOST_LOOKED_AT]
        place_C3 = np.array([c.centre for c in candidates])
        hits = []
        for centre, diameter in zip(copy.centres, copy.diameters_mm, strict=True):
            distance_C = np.linalg.norm((place_C3 - centre) * GRID_MM, axis=1)
            near = np.flatnonzero(distance_C < max(diameter / 2.0, 2.0))
            hits += [candidates[int(near[0])]] if len(near) else []
        inserted += len(copy.centres)
        rated = rate_candidates(rater, network, crop, hits)
        found += [r.evidence_E for r in rated]
        nodules_seen += seen_of(rated, crop)
    false = rate_candidates(rater, network, lung.crop, false_places(lung)[:MOST_LOOKED_AT])
    views = view(rater, network, nodules, [lung], seed)
    known = np.isfinite(views.target_NH[:, 1])
    return Unseen(
        np.stack(found),
        np.stack([r.evidence_E for r in false]),
        inserted,
        malignancy_columns(views, 0.5)[known],
        views.target_NH[known, 1].astype(np.int64),
        tuple(nodules_seen),
        tuple(seen_of(false, lung.crop)),
    )


def malignancy_columns(views: Views, level: float) -> F64:
    """(N, 3) boosted and network logit, logarithm of the volume."""
    volume = np.log(np.maximum(views.volumes(level), 1.0))
    return np.stack([views.boosted_NH[:, 1], views.network_NH[:, 1], volume], axis=1).astype(np.float64)


def texture_of(nodules: Sequence[Nodule]) -> tuple[F64, F64, F64]:
    """Bright densities within the readers' consensus, equivalent diameters and texture ratings, where there is a rating."""
    rated = [n for n in nodules if n.traits["texture"] > 0]
    bright = np.array([bright_hu(n.hu_ZYX[n.consensus_ZYX]) for n in rated])
    diameter = np.array([(6.0 * n.volume_mm3 / np.pi) ** (1 / 3) for n in rated])
    return bright, diameter, np.array([n.traits["texture"] for n in rated])


def weigh(parts: Sequence[Unseen]) -> tuple[float, ...]:
    """Weights of the evidence, and a shift, for the logit of a nodule."""
    from sklearn.linear_model import LogisticRegression

    nodule, false = (np.concatenate(v) for v in ([p.nodule_NE for p in parts], [p.false_NE for p in parts]))
    scans, inserted = len(parts), sum(p.inserted for p in parts)
    evidence = np.clip(np.concatenate([nodule, false]), -STRONGEST, STRONGEST)
    is_nodule = np.repeat([1, 0], [len(nodule), len(false)])
    # a scan has PER_SCAN nodules, not as many as were inserted
    weight = np.where(is_nodule == 1, PER_SCAN * scans / inserted, 1.0)
    ranking = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000).fit(evidence, is_nodule)
    joined = evidence @ ranking.coef_[0]
    line = LogisticRegression(C=100.0, max_iter=1000).fit(joined[:, None], is_nodule, weight)
    slope, shift = float(line.coef_[0, 0]), float(line.intercept_[0])
    return (*(slope * float(w) for w in ranking.coef_[0]), shift)


def calibrate(views: Views, parts: Sequence[Unseen], texture: TextureRule) -> Calibration:
    """Levels and intervals from validation nodules, weights and probabilities from what cross-fitted raters said.

    Args:
        views: of validation nodules by the final raters.
        parts: one for each lung.
        texture: fitted on training nodules.
    """
    from sklearn.linear_model import LogisticRegression

    nodule = weigh(parts)
    level = unbiased_level(views)
    low, high = volume_factors(views.volumes(level), views.true_volumes)
    columns, malignant = (np.concatenate(v) for v in ([p.malignancy_N3 for p in parts], [p.malignant_N for p in parts]))
    likely = LogisticRegression(C=1.0, max_iter=1000).fit(columns, malignant)
    half = float(np.quantile(np.abs(likely.predict_proba(columns)[:, 1] - 0.5), ABSTAINED))
    draft = Calibration(
        nodule=nodule,  # type: ignore[arg-type]
        malignancy=(*(float(w) for w in likely.coef_[0]), float(likely.intercept_[0])),  # type: ignore[arg-type]
        texture=texture,
        outline_level=level,
        show=0.5,
        sure=0.5,
        abstain_low=0.5 - half,
        abstain_high=0.5 + half,
        volume_low=low,
        volume_high=high,
    )
    assert len(draft.nodule) == len(EVIDENCE) + 1
    scans, probability = len(parts), expit(draft.nodule_logit(np.concatenate([p.false_NE for p in parts])))
    show = at_rate(probability, SHOWN_FALSE, scans)
    return replace(draft, show=show, sure=max(show, LEAST_SURE, at_rate(probability, SURE_FALSE, scans)))


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
