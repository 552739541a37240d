"""The LUNA16 rule on cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from solutions.medical_imaging.froc import RATES, Reference, ScanResult, Scored, bootstrap_froc, froc, match

NODULE = Reference((0.0, 0.0, 0.0), 10.0)


def at(x: float, score: float) -> Scored:
    return Scored((x, 0.0, 0.0), score)


def test_a_hit_lies_strictly_within_half_the_diameter() -> None:
    assert match([at(4.99, 0.5)], [NODULE]).hits_R.tolist() == [0.5]
    missed = match([at(5.0, 0.5)], [NODULE])
    assert missed.hits_R.tolist() == [-math.inf]
    assert missed.false_N.tolist() == [0.5]


def test_the_best_hit_counts_once_and_the_others_are_ignored() -> None:
    result = match([at(0.0, 0.4), at(1.0, 0.9), at(2.0, 0.7)], [NODULE])
    assert result.hits_R.tolist() == [0.9]
    assert len(result.false_N) == 0


def test_candidates_in_excluded_findings_are_ignored() -> None:
    result = match([at(50.0, 0.9), at(90.0, 0.8)], [NODULE], [Reference((50.0, 0.0, 0.0), 6.0)])
    assert result.false_N.tolist() == [0.8]


def test_curve_by_hand() -> None:
    """Two scans, two nodules: hit at .9; false at .8; hit at .7. Rates: 0 -> 1/2, 1/2 -> 1/2 and then 1."""
    scans = [ScanResult(np.array([0.9]), np.array([0.8])), ScanResult(np.array([0.7]), np.array([]))]
    curve = froc(scans)
    # at 1/8 and 1/4 the line between (0, 1/2) and (1/2, 1/2); from 1/2 on everything is found
    assert curve.sensitivity == (0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert curve.cpm == pytest.approx(6.0 / 7.0)
    assert curve.at_one == 1.0


def test_a_missed_nodule_lowers_every_rate() -> None:
    scans = [ScanResult(np.array([0.9, -math.inf]), np.array([]))]
    assert froc(scans).sensitivity == (0.5,) * len(RATES)


def test_weights_are_copies() -> None:
    rng = np.random.default_rng(0)
    scans = [ScanResult(rng.random(2), rng.random(3)) for _ in range(4)]
    weighted = froc(scans, [2, 0, 1, 1])
    copied = froc([scans[0], scans[0], scans[2], scans[3]])
    np.testing.assert_allclose(weighted.sensitivity, copied.sensitivity)


def test_bootstrap_over_scans_holds_the_estimate_and_repeats() -> None:
    rng = np.random.default_rng(1)
    scans = [ScanResult(rng.normal(1.0, 1.0, 3), rng.normal(0.0, 1.0, 5)) for _ in range(20)]
    first, again = bootstrap_froc(scans, replicates=200), bootstrap_froc(scans, replicates=200)
    assert first == again
    assert first.cpm_low < first.estimate.cpm < first.cpm_high


def test_nothing_to_find_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one nodule"):
        froc([ScanResult(np.array([]), np.array([0.5]))])
    with pytest.raises(ValueError, match="finite"):
        match([at(0.0, math.nan)], [NODULE])
