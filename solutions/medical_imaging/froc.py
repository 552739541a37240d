"""The LUNA16 rule: sensitivity at false positives per scan, and their mean over seven rates (CPM).

Setio et al., Med Image Anal 42 (2017), section 3.3. A candidate hits a nodule when it lies nearer to its centre than
half its diameter. Of several hits the best-scored one counts and the others are ignored; candidates inside an excluded
finding are ignored. N candidates, R references of one scan, S scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """A candidate: position in mm and score."""

    position: tuple[float, float, float]
    score: float


@dataclass(frozen=True)
class Reference:
    """A marked place: position and diameter in mm."""

    position: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True)
class ScanResult:
    """Of one scan: the best score of each nodule (-inf when missed), and the scores of the false positives."""

    hits_R: F64
    false_N: F64


def match(candidates: Sequence[Scored], nodules: Sequence[Reference], excluded: Sequence[Reference] = ()) -> ScanResult:
    """Apply the rule to one scan."""
    hits = np.full(len(nodules), -math.inf)
    false = []
    for candidate in candidates:
        if not math.isfinite(candidate.score):
            raise ValueError(f"scores must be finite. Received: {candidate.score}.")
        near = [r for r, nodule in enumerate(nodules) if _inside(candidate, nodule)]
        if near:
            for r in near:
                hits[r] = max(hits[r], candidate.score)
        elif not any(_inside(candidate, place) for place in excluded):
            false.append(candidate.score)
    return ScanResult(hits, np.array(false, np.float64))


def _inside(candidate: Scored, place: Reference) -> bool:
    return math.dist(candidate.position, place.position) < place.diameter_mm / 2.0


@dataclass(frozen=True)
class Froc:
    """Sensitivity at each rate of RATES, and their mean."""

    sensitivity: tuple[float, ...]
    cpm: float

    @property
    def at_one(self) -> float:
        return self.sensitivity[RATES.index(1.0)]


def froc(scans: Sequence[ScanResult], weight_S: Sequence[float] | None = None) -> Froc:
    """The curve at RATES: between two thresholds it is interpolated, as LUNA16's evaluation does.

    Raises:
        ValueError: there is no nodule.
    """
    weight = np.ones(len(scans)) if weight_S is None else np.asarray(weight_S, np.float64)
    hit, hit_w = _collect([s.hits_R for s in scans], weight)
    false, false_w = _collect([s.false_N for s in scans], weight)
    nodules, total = float(hit_w.sum()), float(weight.sum())
    if nodules <= 0.0 or total <= 0.0:
        raise ValueError("FROC needs at least one nodule. Received: none.")
    found = np.isfinite(hit)
    thresholds = np.unique(np.concatenate([hit[found], false]))[::-1]
    rate = np.concatenate([[0.0], _above(false, false_w, thresholds) / total])
    sensitivity = np.concatenate([[0.0], _above(hit[found], hit_w[found], thresholds) / nodules])
    values = np.interp(RATES, rate, sensitivity)
    # at equal rates the higher threshold comes first, and np.interp takes the last: the best reached at that rate
    return Froc(tuple(float(v) for v in values), float(values.mean()))


def _collect(parts: Sequence[F64], weight_S: F64) -> tuple[F64, F64]:
    values = np.concatenate([np.asarray(p, np.float64) for p in parts]) if parts else np.zeros(0)
    return values, np.repeat(weight_S, [len(p) for p in parts])


def _above(score_N: F64, weight_N: F64, thresholds: F64) -> F64:
    """Weight of the scores at or above each threshold (falling)."""
    order = np.argsort(-score_N, kind="stable")
    running = np.concatenate([[0.0], np.cumsum(weight_N[order])])
    return np.asarray(running[np.searchsorted(-score_N[order], -thresholds, side="right")], np.float64)


@dataclass(frozen=True)
class FrocInterval:
    """Estimate and 95 % bootstrap bounds over scans, for CPM and for the sensitivity at one false positive per scan."""

    estimate: Froc
    cpm_low: float
    cpm_high: float
    at_one_low: float
    at_one_high: float


def bootstrap_froc(scans: Sequence[ScanResult], *, replicates: int = 1000, seed: int = 0) -> FrocInterval:
    """Resample whole scans; replicates without a nodule are drawn again."""
    rng = np.random.default_rng(seed)
    cpm: list[float] = []
    one: list[float] = []
    count = np.array([len(s.hits_R) for s in scans])
    while len(cpm) < replicates:
        weight = np.bincount(rng.integers(len(scans), size=len(scans)), minlength=len(scans)).astype(float)
        if weight @ count == 0:
            continue
        drawn = froc(scans, weight.tolist())
        cpm.append(drawn.cpm)
        one.append(drawn.at_one)
    low, high = np.quantile(cpm, [0.025, 0.975])
    one_low, one_high = np.quantile(one, [0.025, 0.975])
    return FrocInterval(froc(scans), float(low), float(high), float(one_low), float(one_high))
