"""Calibration of the shipped models on made-up logits: natural prior, thresholds by rate, intervals that cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from solutions.medical_imaging.boosting import BoostedRater
from solutions.medical_imaging.calibrating import (
    PER_SCAN,
    SHOWN_FALSE,
    Unseen,
    Views,
    at_rate,
    calibrate,
    unbiased_level,
    volume_factors,
)
from solutions.medical_imaging.context import Seen
from solutions.medical_imaging.examples import FEATURES, HEADS
from solutions.medical_imaging.lidc import split_of
from solutions.medical_imaging.models import EVIDENCE
from solutions.medical_imaging.placing import Placed
from solutions.medical_imaging.texture import TextureRule
from solutions.medical_imaging.training import fit_rater, half_of

RNG = np.random.default_rng(0)


def placed(count: int) -> list[Placed]:
    made = []
    for i in range(count):
        feature = RNG.normal(1.0, 1.0, len(FEATURES)).astype(np.float32)
        target = np.array([1.0, (np.nan, 0.0, 1.0)[i % 3], 1.0, 0.0, 0.0, float(i % 2)], np.float32)
        made.append(Placed(f"p{i}", feature, target, 0.8, 100.0, float(RNG.uniform(60, 140))))
    return made


def seen(count: int, larger: float = 1.0) -> Views:
    """Nodules whose outlines are balls, at level .5 `larger` times the readers' volume."""
    z, y, x = np.ogrid[:16, :16, :16]
    distance = np.sqrt((z - 7.5) ** 2 + (y - 7.5) ** 2 + (x - 7.5) ** 2)
    radius = RNG.uniform(3.0, 6.0, count)
    maps = np.stack([expit(2.0 * (r * larger ** (1 / 3) - distance)) for r in radius]).astype(np.float32)
    outputs = RNG.normal(1.0, 1.0, (count, len(HEADS))).astype(np.float32)
    target = np.ones((count, len(HEADS)), np.float32)
    target[:, 1] = np.resize((np.nan, 0.0, 1.0), count)
    return Views(
        np.array([f"p{i}" for i in range(count)]),
        outputs,
        outputs + RNG.normal(0.0, 0.5, outputs.shape).astype(np.float32),
        target,
        maps,
        np.stack([distance < r for r in radius]),
        np.ones(count, np.float32),
    )


TEXTURE = TextureRule(100.0, -500.0, -300.0)


def unseen(nodules: int, false: int) -> Unseen:
    malignant = RNG.integers(0, 2, nodules)
    columns = RNG.normal(0.0, 1.0, (nodules, 3)) + malignant[:, None]
    evidence = [RNG.normal(level, 1.0, (count, len(EVIDENCE))) for level, count in ((1.0, nodules), (-1.0, false))]
    places = [tuple(Seen(0.0, 8.0, True, 0.5) for _ in part) for part in evidence]
    return Unseen(evidence[0], evidence[1], nodules, columns, malignant, *places)


def test_probabilities_start_from_the_nodules_of_a_natural_scan() -> None:
    parts = [unseen(300, 250) for _ in range(2)]
    c = calibrate(seen(60), parts, TEXTURE)
    of_nodules, of_others = (
        expit(c.nodule_logit(np.concatenate(v))) for v in ([p.nodule_NE for p in parts], [p.false_NE for p in parts])
    )
    expected = PER_SCAN * of_nodules.mean() + of_others.sum() / len(parts)
    assert expected == pytest.approx(PER_SCAN, rel=0.15)
    assert of_nodules.mean() > 5.0 * of_others.mean()
    assert c.show <= c.sure
    assert (of_others >= c.show).sum() == pytest.approx(2 * SHOWN_FALSE, abs=2)


def test_a_nodule_that_was_no_candidate_lowers_the_others_probabilities() -> None:
    parts = [unseen(300, 250)]
    some_missed = [replace(p, inserted=3 * p.inserted) for p in parts]
    one, other = (calibrate(seen(60), p, TEXTURE).nodule_logit(parts[0].nodule_NE).mean() for p in (parts, some_missed))
    assert other < one


def test_malignancy_is_calibrated_and_abstains_where_it_is_in_doubt() -> None:
    part = unseen(600, 50)
    c = calibrate(seen(60), [part], TEXTURE)
    p = c.malignancy_probability(part.malignancy_N3)
    assert p.mean() == pytest.approx(part.malignant_N.mean(), abs=0.01)
    silent = (p > c.abstain_low) & (p < c.abstain_high)
    assert 0.10 <= silent.mean() <= 0.14
    assert ((p >= 0.5) != part.malignant_N)[silent].mean() > 0.3


def test_halves_are_of_patients_and_apart_from_the_split() -> None:
    names = [f"LIDC-IDRI-{i:04d}" for i in range(10, 1010)]
    half = np.array([half_of(name) for name in names])
    assert 0.45 < half.mean() < 0.55
    train = np.array([split_of(name) == "train" for name in names])
    assert abs(half[train].mean() - half[~train].mean()) < 0.1


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
