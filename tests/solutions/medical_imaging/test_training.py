"""Calibration of the shipped models on made-up logits: natural prior, thresholds by rate, intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.examples import FEATURES, HEADS
from solutions.medical_imaging.training import (
    PER_SCAN,
    Placed,
    Views,
    at_rate,
    calibrate,
    fit_rater,
    unbiased_level,
    volume_factors,
)

RNG = np.random.default_rng(0)


def placed(count: int) -> list[Placed]:
    made = []
    for i in range(count):
        feature = RNG.normal(1.0, 1.0, len(FEATURES)).astype(np.float32)
        target = np.array([1.0, (np.nan, 0.0, 1.0)[i % 3], 1.0], np.float32)
        made.append(Placed(f"p{i}", feature, target, 0.8, 100.0, float(RNG.uniform(60, 140))))
    return made


def seen(count: int, larger: float = 1.0) -> Views:
    """Nodules whose outlines are balls, at level .5 `larger` times the readers' volume."""
    z, y, x = np.ogrid[:16, :16, :16]
    distance = np.sqrt((z - 7.5) ** 2 + (y - 7.5) ** 2 + (x - 7.5) ** 2)
    radius = RNG.uniform(3.0, 6.0, count)
    maps = np.stack([expit(2.0 * (r * larger ** (1 / 3) - distance)) for r in radius]).astype(np.float32)
    outputs = np.stack([RNG.normal(1.0, 1.0, count), RNG.normal(0.0, 1.0, count), np.ones(count)], 1).astype(np.float32)
    target = np.stack([np.ones(count), np.resize((np.nan, 0.0, 1.0), count), np.ones(count)], 1).astype(np.float32)
    return Views(
        np.array([f"p{i}" for i in range(count)]),
        outputs,
        outputs + RNG.normal(0.0, 0.5, outputs.shape).astype(np.float32),
        target,
        maps,
        np.stack([distance < r for r in radius]),
        np.ones(count, np.float32),
    )


def test_probabilities_start_from_the_nodules_of_a_natural_scan() -> None:
    views = seen(120)
    none = tuple(RNG.normal(-1.0, 1.0, (500, 3)).astype(np.float32) for _ in range(2))
    c = calibrate(views, none, scans=2)  # type: ignore[arg-type]
    probability = c.nodule_probability(none[0][:, 0], none[1][:, 0])
    of_nodules = c.nodule_probability(views.boosted_NH[:, 0], views.network_NH[:, 0])
    expected = PER_SCAN * of_nodules.mean() + probability.sum() / 2
    assert expected == pytest.approx(PER_SCAN, rel=0.15)
    assert of_nodules.mean() > 5.0 * probability.mean()
    assert c.show <= c.sure
    assert (probability >= c.show).sum() == pytest.approx(2 * 8, abs=2)


@pytest.mark.parametrize("larger", [0.6, 1.0, 1.6])
def test_the_level_takes_the_bias_out_of_the_volume(larger: float) -> None:
    views = seen(60, larger)
    ratio = views.volumes(unbiased_level(views)) / views.true_volumes
    assert np.median(ratio) == pytest.approx(1.0, abs=0.1)


def test_a_threshold_lets_so_many_false_places_through() -> None:
    probability = np.linspace(0.01, 0.9, 90)
    assert (probability > at_rate(probability, 4.0, 2.0)).sum() == 8


def test_the_interval_of_the_volume_holds_the_readers_volumes() -> None:
    found, true = np.full(200, 100.0), RNG.uniform(60, 140, 200)
    low, high = volume_factors(found, true)
    assert 0.88 <= np.mean((low <= true / found) & (true / found <= high)) <= 0.95


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
