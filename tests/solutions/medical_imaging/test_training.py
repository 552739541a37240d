"""Calibration of the shipped models on made-up logits: natural prior, thresholds by rate, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.examples import FEATURES, HEADS
from solutions.medical_imaging.training import PER_SCAN, Placed, at_rate, calibrate, fit_rater, volume_factors

RNG = np.random.default_rng(0)


def placed(count: int) -> list[Placed]:
    made = []
    for i in range(count):
        feature = RNG.normal(1.0, 1.0, len(FEATURES)).astype(np.float32)
        target = np.array([1.0, (np.nan, 0.0, 1.0)[i % 3], 1.0], np.float32)
        made.append(Placed(f"p{i}", feature, target, 0.8, 100.0, float(RNG.uniform(60, 140))))
    return made


def test_probabilities_start_from_the_nodules_of_a_natural_scan() -> None:
    nodules = placed(120)
    false = RNG.normal(-1.0, 1.0, 500)
    output = np.stack([RNG.normal(1.0, 1.0, 120), RNG.normal(0.0, 1.0, 120), np.ones(120)], 1).astype(np.float32)
    c = calibrate(output, nodules, false, scans=2)
    probability = expit(c.nodule_scale * false + c.nodule_shift)
    of_nodules = expit(c.nodule_scale * output[:, 0] + c.nodule_shift)
    expected = PER_SCAN * of_nodules.mean() + probability.sum() / 2
    assert expected == pytest.approx(PER_SCAN, rel=0.1)
    assert c.show <= c.sure
    assert (probability >= c.show).sum() == pytest.approx(2 * 8, abs=2)


def test_a_threshold_lets_so_many_false_places_through() -> None:
    probability = np.linspace(0.01, 0.9, 90)
    assert (probability > at_rate(probability, 4.0, 2.0)).sum() == 8


def test_the_interval_of_the_volume_holds_the_readers_volumes() -> None:
    nodules = placed(200)
    low, high = volume_factors(nodules)
    inside = [low <= p.true / p.found <= high for p in nodules]
    assert 0.88 <= np.mean(inside) <= 0.95


def test_boosting_learns_what_it_is_shown_and_reads_back_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    false = RNG.normal(-1.0, 1.0, (150, len(FEATURES))).astype(np.float32)
    nodules = placed(150)
    rater = fit_rater(nodules, [false])
    outputs = rater.outputs(np.concatenate([[p.feature_F for p in nodules], false]))
    assert outputs.shape == (300, len(HEADS))
    assert outputs[:150, 0].mean() > 2.0 + outputs[150:, 0].mean()
    path = tmp_path_factory.mktemp("weights") / "boosted.json"
    rater.save(path)
    assert np.array_equal(BoostedRater.load(path).outputs(false), rater.outputs(false))
