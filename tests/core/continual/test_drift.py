"""Drift: silent when nothing moves, loud when something does, and the two kinds are kept apart."""

from __future__ import annotations

import numpy as np
import pytest

from core.continual.drift import DriftSettings, detect, error_shift, holm, input_shift, population_stability
from core.continual.updater import Updater

NAMES = [f"f{i}" for i in range(10)]


def window(rng: np.random.Generator, n: int = 2000) -> np.ndarray:
    """Ten unlike features: bell-shaped, heavy-tailed, counts, flags, with missing values, constant."""
    x = rng.normal(size=(n, 10))
    x[:, 1] = np.exp(2 * x[:, 1])
    x[:, 2] = rng.poisson(1.5, n)
    x[:, 3] = rng.random(n) < 0.02
    x[rng.random(n) < 0.3, 4] = np.nan
    x[:, 5] = 7.0
    return x


def brier_errors(rng: np.random.Generator, n: int = 4000, rate: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Errors of calibrated probabilities, and the outcomes."""
    p = rng.beta(rate, 1 - rate, n)
    y = rng.random(n) < p
    return (p - y) ** 2, y


def test_nothing_is_updated_when_nothing_drifts() -> None:
    rng = np.random.default_rng(0)
    reports = [detect(window(rng), window(rng), NAMES, brier_errors(rng)[0]) for _ in range(40)]
    assert [r for r in reports if r.any] == []
    assert {Updater().plan(r).scope for r in reports} == {"none"}


def test_without_the_effect_threshold_the_level_is_the_promised_one() -> None:
    rng = np.random.default_rng(1)
    strict = DriftSettings(alpha=0.2, least_effect=1e-6)
    alarms = [any(f.moved for f in input_shift(window(rng, 300), window(rng, 300), NAMES, strict)) for _ in range(150)]
    assert 0.05 < np.mean(alarms) < 0.27  # ties make the test conservative


@pytest.mark.parametrize("feature", [0, 1, 2])
def test_the_shifted_feature_is_found_and_no_other(feature: int) -> None:
    rng = np.random.default_rng(2)
    current = window(rng)
    current[:, feature] = current[:, feature] * 1.5 + 0.5
    report = detect(window(rng), current, NAMES, brier_errors(rng)[0])
    assert list(report.input_shift) == [f"f{feature}"]
    assert not report.error_shift
    shift = report.features[feature]
    assert shift.p_value < 1e-6
    assert shift.psi > 5 * max(f.psi for f in report.features if not f.moved)


def test_a_feature_that_goes_missing_has_moved() -> None:
    rng = np.random.default_rng(3)
    current = window(rng)
    current[rng.random(len(current)) < 0.3, 0] = np.nan
    assert list(detect(window(rng), current, NAMES, []).input_shift) == ["f0"]


def test_a_difference_too_small_to_matter_is_no_alarm_in_a_large_sample() -> None:
    rng = np.random.default_rng(4)
    reference, current = rng.normal(size=(100_000, 1)), rng.normal(size=(100_000, 1)) + 0.1
    shift = input_shift(reference, current, ["x"], DriftSettings(rows=100_000))[0]
    assert shift.p_value < 1e-30
    assert not shift.moved


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03], 0.05).tolist() == [False, True, False]
    assert holm([0.02, 0.01, 0.04], 0.05).tolist() == [True, True, True]
    assert holm([0.02, 0.03, 0.03], 0.05).tolist() == [False, False, False]


def test_stability_index_by_hand_and_zero_for_equal_windows() -> None:
    a, b = np.repeat([1.0, 2.0], [500, 500]), np.repeat([1.0, 2.0], [250, 750])
    expected = (0.25 - 0.5) * np.log(0.25 / 0.5) + (0.75 - 0.5) * np.log(0.75 / 0.5)
    assert population_stability(a, b, bins=2) == pytest.approx(expected, rel=0.02)
    assert population_stability(a, a) == 0.0


@pytest.mark.parametrize("change", [1500, 6000])
def test_a_rise_of_the_errors_is_found_where_it_happened(change: int) -> None:
    rng = np.random.default_rng(5)
    error = np.concatenate([rng.random(change) * 0.2, rng.random(2000) * 0.4])
    found = error_shift(error)
    assert found.rose
    assert found.at == pytest.approx(change, abs=60)
    assert (found.before, found.after) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.2, abs=0.01))


def test_errors_that_fall_are_no_alarm() -> None:
    rng = np.random.default_rng(6)
    assert not error_shift(np.concatenate([rng.random(3000), rng.random(3000) * 0.5])).rose


def test_a_rise_after_an_improvement_is_found() -> None:
    rng = np.random.default_rng(11)
    error = np.concatenate([rng.random(3000) * size for size in (1.0, 0.2, 0.4)])
    found = error_shift(error)
    assert found.at == pytest.approx(6000, abs=60)
    assert found.after == pytest.approx(2 * found.before, rel=0.15)


def test_a_rise_too_small_to_matter_is_no_alarm() -> None:
    rng = np.random.default_rng(7)
    error = np.concatenate([0.5 + 0.02 * rng.random(5000), 0.53 + 0.02 * rng.random(5000)])
    assert not error_shift(error).rose
    assert error_shift(error, DriftSettings(least_rise=0.01)).rose


def test_missed_rare_events_keep_their_size_when_classes_are_watched_apart() -> None:
    rng = np.random.default_rng(8)
    n = 40_000
    fraud = rng.random(n) < 0.01
    miss = np.where(np.arange(n) < n // 2, 0.3, 0.6)  # frauds of a new kind: the model misses twice as many
    error = np.where(fraud, rng.random(n) < miss, 0.02 * rng.random(n)).astype(float)
    mixed, apart = error_shift(error), error_shift(error, group_N=fraud)
    assert (apart.rose, apart.group) == (True, "True")
    assert apart.after > 1.7 * apart.before
    assert mixed.after < 1.5 * mixed.before, "the control: 99 % genuine payments dilute the rise"
    assert apart.at == pytest.approx(n // 2, abs=2500)  # frauds come every hundred payments
    report = detect(window(rng), window(rng), NAMES, error, group_N=fraud)
    assert (report.error_group, report.error_after) == ("True", apart.after)


def test_a_change_of_the_base_rate_is_no_error_shift_when_classes_are_watched_apart() -> None:
    rng = np.random.default_rng(9)
    rate = np.where(np.arange(20_000) < 10_000, 0.05, 0.2)
    fraud = rng.random(20_000) < rate
    error = np.where(fraud, 0.5, 0.05) + 0.1 * rng.random(20_000) - 0.05
    assert error_shift(error).rose
    assert not error_shift(error, group_N=fraud).rose


def test_input_shift_and_error_shift_are_reported_apart() -> None:
    rng = np.random.default_rng(10)
    same, moved = window(rng), window(rng) + 1.0
    calm, worse = rng.random(4000) * 0.2, np.repeat([0.1, 0.4], 2000) + 0.05 * rng.random(4000)
    only_inputs, only_errors = detect(same, moved, NAMES, calm), detect(same, window(rng), NAMES, worse)
    assert (bool(only_inputs.input_shift), only_inputs.error_shift) == (True, False)
    assert (bool(only_errors.input_shift), only_errors.error_shift) == (False, True)
    assert only_errors.error_at == pytest.approx(2000, abs=30)


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="from 0 to 1.5"):
        error_shift([0.0, 1.5])
    with pytest.raises(ValueError, match=r"the 2 named features. Received: shape \(5, 3\)"):
        input_shift(np.zeros((5, 3)), np.zeros((5, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="alpha=0"):
        DriftSettings(alpha=0.0)
    with pytest.raises(ValueError, match="one length"):
        error_shift([0.1, 0.2], group_N=[1])
    assert not error_shift([]).rose


def test_the_earliest_of_several_rises_is_the_change_and_the_largest_speaks() -> None:
    rng = np.random.default_rng(4)
    group = np.arange(4000) % 2
    later = np.where(group == 0, 1000, 2500)
    rate = np.where(np.arange(4000) < later, np.where(group == 0, 0.3, 0.02), np.where(group == 0, 0.7, 0.4))
    found = error_shift((rng.random(4000) < rate).astype(float), group_N=group)
    assert found.group == "1"  # twenty times as many errors
    assert found.at == pytest.approx(1000, abs=60)
