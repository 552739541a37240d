"""One curve: probabilities, expected life and quantiles agree; likelihood and its censoring against slow twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solutions.maintenance.hazard import (
    Curves,
    cautious_life,
    fit_scale,
    nasa_score,
    negative_log_likelihood,
    person_periods,
    scale_hazard,
)
from solutions.maintenance.intervals import CoverageMonitor, fit_interval
from solutions.maintenance.life_curves import LifeCurves
from solutions.maintenance.network import expected_life

EDGES = (0.0, 12.0, 24.0, 72.0, 168.0)
RNG = np.random.default_rng(0)


@given(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4), st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_probability_life_and_quantile_are_read_off_one_curve(hazard: list[float], share: float) -> None:
    curves = Curves.from_hazard(EDGES, np.array([hazard]))
    grid = np.linspace(0.0, 168.0, 4001)
    fails = np.array([curves.fails_within(h)[0] for h in grid])
    assert (np.diff(fails) >= -1e-12).all()
    np.testing.assert_allclose(curves.life()[0], np.trapezoid(1.0 - fails, grid), atol=0.05)
    time = curves.quantile(share)[0]
    if fails[-1] > share:
        np.testing.assert_allclose(curves.fails_within(time)[0], share, atol=1e-6)
    elif fails[-1] < share - 1e-9:
        assert time == 168.0


def test_network_and_curves_compute_the_same_life() -> None:
    logit = RNG.normal(size=(5, 4))
    slow = Curves.from_hazard(EDGES, 1.0 / (1.0 + np.exp(-logit))).life()
    fast = expected_life(torch.tensor(logit), torch.tensor(np.diff(EDGES)))
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-6)


def test_person_periods_by_hand() -> None:
    life = np.array([12.0, 13.0, 24.0, 24.0, 500.0])
    failed = np.array([True, False, True, False, True])
    at_risk, fails = person_periods(life, failed, EDGES)
    assert fails.tolist() == [
        [True, False, False, False],  # at the edge: before it
        [False] * 4,
        [False, True, False, False],
        [False] * 4,
        [False] * 4,  # beyond the horizon
    ]
    assert at_risk.tolist() == [
        [True, False, False, False],
        [True, False, False, False],  # censored inside an interval: nothing known of it
        [True, True, False, False],
        [True, True, False, False],
        [True] * 4,
    ]


def test_likelihood_agrees_with_its_slow_twin() -> None:
    hazard = RNG.uniform(0.01, 0.5, (40, 4))
    curves = Curves.from_hazard(EDGES, hazard)
    life, failed = RNG.uniform(0.5, 250.0, 40), RNG.random(40) < 0.6
    total = 0.0
    for i in range(40):
        for k in range(4):
            if failed[i] and EDGES[k] < life[i] <= EDGES[k + 1]:
                total -= np.log(hazard[i, k])
            elif life[i] >= EDGES[k + 1]:
                total -= np.log(1.0 - hazard[i, k])
    np.testing.assert_allclose(negative_log_likelihood(curves, life, failed), total / 40)


def test_scaling_repairs_a_wrong_level_and_keeps_the_order_in_time() -> None:
    true = RNG.uniform(0.02, 0.3, (4000, 1)) * np.ones((1, 4))
    survived = RNG.random((4000, 4)) >= true
    k = np.where(survived.all(1), 4, (~survived).argmax(1))
    life = np.where(k < 4, np.asarray([*EDGES[1:], 200.0])[k], 200.0)
    wrong = Curves.from_hazard(EDGES, 1.0 - (1.0 - true) ** 3.0)
    shift, slope = fit_scale(wrong, life, k < 4)
    mended = scale_hazard(wrong, shift, slope)
    np.testing.assert_allclose(mended.fails_within(72.0).mean(), (life <= 72.0).mean(), atol=0.02)
    assert (np.diff(mended.survival_NE, axis=1) <= 0.0).all()


def test_life_curves_keep_the_expected_life() -> None:
    edges = tuple(np.arange(0.0, 126.0, 5.0))
    life = RNG.uniform(0.0, 125.0, 3000)
    predicted = np.clip(life + RNG.normal(0.0, 12.0, 3000), 0.0, 125.0)
    curves = LifeCurves.fit(predicted, life, RNG.integers(0, 50, 3000), edges)
    asked = np.linspace(3.0, 122.0, 30)
    np.testing.assert_allclose(curves(asked).life(), asked, atol=0.6)
    stored = LifeCurves.from_json(curves.to_json())
    np.testing.assert_array_equal(stored(asked).survival_NE, curves(asked).survival_NE)


def test_intervals_cover_machines_to_come_although_their_rows_depend_on_each_other() -> None:
    """Errors are shared by all rows of a machine: row-wise calibration on few machines would not know."""
    edges = tuple(np.arange(0.0, 301.0, 10.0))

    def machines(count: int) -> tuple[Curves, np.ndarray, np.ndarray]:
        centre = RNG.uniform(80.0, 220.0, (count, 1)) * np.ones((1, 20))
        life = centre + RNG.normal(0.0, 15.0, (count, 1)) + RNG.normal(0.0, 5.0, (count, 20))
        far = (np.asarray(edges)[None, :] - centre.reshape(-1, 1)) / 8.0  # far too sure of itself
        survival = 1.0 / (1.0 + np.exp(far))
        survival[:, 0] = 1.0
        return Curves(edges, survival), life.ravel(), np.repeat(np.arange(count), 20)

    coverage = []
    for _ in range(12):
        curves, life, unit = machines(60)
        interval = fit_interval(curves, life, unit)
        fresh, truth, _ = machines(60)
        low, high = interval(fresh)
        coverage.append(((low <= truth) & (truth <= high)).mean())
    assert 0.86 < np.mean(coverage) < 0.96


def test_nasa_score_punishes_late_more_than_early() -> None:
    np.testing.assert_allclose(nasa_score(np.array([13.0])), np.expm1(1.3))
    np.testing.assert_allclose(nasa_score(np.array([-13.0])), np.expm1(1.0))
    assert nasa_score(np.zeros(3)) == 0.0


def test_coverage_is_watched_as_lives_become_known() -> None:
    monitor = CoverageMonitor(window=50)
    for _ in range(50):
        monitor.add(0.0, 10.0, 5.0)
    assert monitor.observed() == 1.0
    assert not monitor.broken()
    for _ in range(25):
        monitor.add(0.0, 10.0, 50.0)
    assert monitor.observed() == 0.5
    assert monitor.broken()


def test_refusals_say_what_came() -> None:
    curves = Curves.from_hazard(EDGES, np.full((1, 4), 0.1))
    with pytest.raises(ValueError, match=r"must be in \[0, 168\]. Received: hours=200"):
        curves.fails_within(200.0)
    with pytest.raises(ValueError, match="never rise"):
        Curves(EDGES, np.array([[1.0, 0.5, 0.6, 0.4, 0.1]]))
    with pytest.raises(ValueError, match="must begin with 0 and rise"):
        Curves((1.0, 2.0), np.array([[1.0, 0.5]]))


def test_the_cautious_life_is_the_one_with_the_least_expected_nasa_score() -> None:
    rng = np.random.default_rng(0)
    edges = tuple(float(e) for e in range(0, 126, 5))
    curves = Curves.from_hazard(edges, rng.uniform(0.0, 0.3, (5, len(edges) - 1)))
    found = cautious_life(curves)
    drawn = rng.random((5, 20_000))
    lives = np.stack(
        [np.interp(-u, -s, edges, right=edges[-1]) for u, s in zip(drawn, curves.survival_NE, strict=True)]
    )
    for life, chosen in zip(lives, found, strict=True):
        own = nasa_score(chosen - life)
        assert own <= min(nasa_score(chosen + by - life) for by in (-4.0, 4.0)) + 1e-9
