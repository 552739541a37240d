"""Calibrators repair known distortions, and coverage is what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from core.calibration import (
    Calibrator,
    ConformalInterval,
    ConformalSet,
    Isotonic,
    Platt,
    Temperature,
    brier,
    calibrator_state,
    correct_for_sampling,
    expected_calibration_error,
    load_calibrator,
)


def stream(n: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True logits of a rare event, and outcomes drawn from them."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-3.0, 2.0, n)
    return logit, rng.random(n) < expit(logit)


def test_temperature_finds_the_overconfidence_that_was_planted() -> None:
    logit, target = stream()
    fitted = Temperature.fit(2.5 * logit, target)
    assert fitted.temperature == pytest.approx(2.5, rel=0.05)
    assert expected_calibration_error(fitted(2.5 * logit), target) < 0.004
    assert expected_calibration_error(expit(2.5 * logit), target) > 0.02


def test_platt_undoes_a_shift_and_equals_logistic_regression() -> None:
    logit, target = stream()
    distorted = (logit - 1.3) / 0.6
    fitted = Platt.fit(distorted, target)
    assert (fitted.slope, fitted.intercept) == (pytest.approx(0.6, rel=0.05), pytest.approx(1.3, rel=0.08))
    twin = LogisticRegression(C=1e9).fit(distorted[:, None], target)
    np.testing.assert_allclose(fitted(distorted), twin.predict_proba(distorted[:, None])[:, 1], atol=2e-3)


def test_platt_stays_finite_on_separable_data() -> None:
    fitted = Platt.fit(np.linspace(-1, 1, 20), np.arange(20) >= 10)
    assert 0.0 < fitted.slope < 100.0


def test_isotonic_repairs_a_bent_curve_and_never_says_never() -> None:
    logit, target = stream()
    bent = np.sign(logit) * np.abs(logit) ** 3
    fitted = Isotonic.fit(bent[:20_000], target[:20_000])
    assert expected_calibration_error(fitted(bent[20_000:]), target[20_000:]) < 0.01
    assert 0.0 < fitted([-1e9])[0] < fitted([1e9])[0] < 1.0


def test_correction_restores_the_base_rate_after_dropping_negatives() -> None:
    logit, target = stream(100_000)
    kept = target | (np.random.default_rng(1).random(len(target)) < 0.1)
    model = LogisticRegression(C=1e9).fit(logit[kept, None], target[kept])
    inflated = model.decision_function(logit[:, None])
    assert expit(inflated).mean() > 2.0 * target.mean()
    assert expit(correct_for_sampling(inflated, 0.1)).mean() == pytest.approx(target.mean(), rel=0.03)
    with pytest.raises(ValueError, match="keep_rate=0"):
        correct_for_sampling(logit, 0.0)


def test_calibration_error_by_hand() -> None:
    probability, target = [0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1]
    for binning in ("mass", "width"):
        error = expected_calibration_error(probability, target, bins=2, binning=binning)  # type: ignore[arg-type]
        assert error == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert brier(probability, target) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)


def test_equal_probabilities_share_a_bin() -> None:
    target = np.arange(1000) < 100  # sorted: cut inside the tie, the bins would hold 100 % and 0 %
    assert expected_calibration_error(np.full(1000, 0.1), target) == pytest.approx(0.0, abs=1e-12)


def test_equal_mass_sees_what_equal_width_averages_away() -> None:
    rng = np.random.default_rng(2)
    probability = rng.uniform(0.0, 0.06, 50_000)
    target = rng.random(50_000) < 0.06 - probability  # right on average, wrong everywhere
    mass, width = (expected_calibration_error(probability, target, binning=b) for b in ("mass", "width"))  # type: ignore[arg-type]
    assert width < 0.005
    assert mass > 0.01


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_interval_covers_new_samples_as_promised(coverage: float) -> None:
    rng = np.random.default_rng(3)
    hits = []
    for _ in range(300):
        truth = rng.exponential(size=219)
        interval = ConformalInterval.fit(np.zeros(19), truth[:19], coverage=coverage)
        low, high = interval(np.zeros(200))
        hits.append(((low <= truth[19:]) & (truth[19:] <= high)).mean())
    assert np.mean(hits) == pytest.approx(coverage, abs=0.015)


def test_scale_widens_the_interval_where_errors_are_large() -> None:
    rng = np.random.default_rng(4)
    scale = rng.choice([1.0, 10.0], 4000)
    truth = scale * rng.normal(size=4000)
    interval = ConformalInterval.fit(np.zeros(2000), truth[:2000], scale_N=scale[:2000])
    low, high = interval(np.zeros(2000), scale[2000:])
    inside, large = (low <= truth[2000:]) & (truth[2000:] <= high), scale[2000:] == 10.0
    assert inside[large].mean() == pytest.approx(0.9, abs=0.03)
    assert inside[~large].mean() == pytest.approx(0.9, abs=0.03)


def test_class_sets_cover_as_promised_and_are_never_empty() -> None:
    rng = np.random.default_rng(5)
    probability = rng.dirichlet([0.5] * 4, 6000)
    target = np.array([rng.choice(4, p=p) for p in probability])
    chosen = ConformalSet.fit(probability[:3000], target[:3000])(probability[3000:])
    assert chosen[np.arange(3000), target[3000:]].mean() == pytest.approx(0.9, abs=0.02)
    assert chosen.any(1).all()
    assert 1.0 < chosen.sum(1).mean() < 3.0


@pytest.mark.parametrize(
    "calibrator",
    [
        Temperature(temperature=1.7),
        Platt(slope=0.5, intercept=-1.0),
        Isotonic(logits=(-1.0, 0.0, 2.0), probabilities=(0.1, 0.2, 0.9)),
        ConformalInterval(width=3.0),
        ConformalSet(threshold=0.2, coverage=0.8),
    ],
    ids=lambda c: c.kind,
)
def test_state_survives_json(calibrator: Calibrator) -> None:
    assert load_calibrator(json.loads(json.dumps(calibrator_state(calibrator)))) == calibrator


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="kind='magic'"):
        load_calibrator({"kind": "magic"})
    with pytest.raises(ValueError, match="temperature=0"):
        Temperature(temperature=0.0)
    with pytest.raises(ValueError, match="from -1 to 2"):
        expected_calibration_error([-1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match=r"at least 9 calibration samples. Received: 8"):
        ConformalInterval.fit(np.zeros(8), np.zeros(8))
    ConformalInterval.fit(np.zeros(9), np.zeros(9))
    with pytest.raises(ValueError, match="1 others"):
        Temperature.fit([0.0, 1.0, 2.0], [0, 1, -1])
    with pytest.raises(ValueError, match="`scale_N` must be > 0"):
        ConformalInterval(width=1.0)([0.0], [0.0])
