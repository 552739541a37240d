"""As-of features: slow twins, and nothing of the future in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from solutions.maintenance import windows
from solutions.maintenance.conditions import Conditions
from solutions.maintenance.data import HOUR, History, load_history
from solutions.maintenance.features import FeatureSettings, Featurizer, event_codes
from solutions.maintenance.labels import make_labels
from solutions.maintenance.panel import hours_of, make_panel
from solutions.maintenance.task import recurring_task, run_to_failure_task
from tests.solutions.maintenance.fleets import small_fleet, write

RNG = np.random.default_rng(0)
START = np.array([0] * 7 + [7] * 12)
SLICES = [slice(0, 7), slice(7, 19)]


def gappy() -> np.ndarray:
    x = RNG.normal(size=(19, 3))
    x[RNG.random(x.shape) < 0.3] = np.nan
    return x


def past(x: np.ndarray, row: int, window: int) -> np.ndarray:
    return x[max(int(START[row]), row - window + 1) : row + 1]


@pytest.mark.parametrize("window", [1, 4, 100])
def test_rolling_statistics_agree_with_their_slow_twins(window: int) -> None:
    x = gappy()
    mean, deviation = windows.rolling_mean(x, START, window), windows.rolling_deviation(x, START, window)
    slope, high = windows.rolling_slope(x, START, window), windows.largest(x, SLICES, window)
    shrunken = windows.rolling_slope(x, START, window, shrink=3.0)
    for row in range(len(x)):
        for s in range(x.shape[1]):
            part = past(x, row, window)[:, s]
            step = np.arange(len(part))[np.isfinite(part)]
            known = part[np.isfinite(part)]
            if not len(known):
                assert np.isnan([mean[row, s], deviation[row, s], high[row, s]]).all()
                assert slope[row, s] == 0.0
                continue
            np.testing.assert_allclose(mean[row, s], known.mean(), atol=1e-12)
            np.testing.assert_allclose(deviation[row, s], known.std(), atol=1e-7)
            assert high[row, s] == np.abs(known).max()
            expected = np.polyfit(step, known, 1)[0] if len(known) > 1 else 0.0
            np.testing.assert_allclose(slope[row, s], expected, atol=1e-9)
            spread = ((step - step.mean()) ** 2).sum()
            np.testing.assert_allclose(shrunken[row, s], expected * spread / (spread + 3.0), atol=1e-9)


def test_exponential_and_first_means_agree_with_pandas() -> None:
    x = gappy()
    fast, first = windows.ewma(x, SLICES, 5.0), windows.first_mean(x, SLICES, 4)
    for rows in SLICES:
        frame = pd.DataFrame(x[rows])
        expected = frame.ewm(span=5.0, ignore_na=False).mean().to_numpy()
        there = np.isfinite(x[rows])
        np.testing.assert_allclose(fast[rows][there], expected[there])
        np.testing.assert_allclose(first[rows], frame.where(frame.index.to_series() < 4).expanding().mean().ffill())


def test_last_known_value_and_its_age() -> None:
    x = np.array([[np.nan], [2.0], [np.nan], [np.nan], [5.0]])
    value, age = windows.last_known(x, [slice(0, 5)])
    np.testing.assert_array_equal(value[:, 0], [np.nan, 2.0, 2.0, 2.0, 5.0])
    np.testing.assert_array_equal(age[:, 0], [1, 0, 1, 2, 0])


def test_conditions_are_found_and_each_has_its_own_scale() -> None:
    setting = np.repeat([[0.0], [10.0], [20.0]], 200, axis=0) + RNG.normal(0, 0.05, (600, 1))
    x = setting * 3.0 + RNG.normal(0, 1.0, (600, 1)) * (1.0 + setting / 10.0)
    conditions = Conditions.fit(setting, x)
    assert conditions.count == 3
    z = conditions.z_RS(setting, x)
    for k in range(3):
        np.testing.assert_allclose(
            [z[k * 200 : (k + 1) * 200].mean(), z[k * 200 : (k + 1) * 200].std()], [0, 1], atol=0.05
        )
    assert Conditions.fit(RNG.normal(size=(600, 1)), x).count == 1  # noise is no condition
    again = Conditions.from_json(conditions.to_json())
    np.testing.assert_array_equal(again.z_RS(setting, x), z)


def history_of(tmp_path: Path) -> History:
    return load_history(write(small_fleet(3, 25), tmp_path), "sensors.condition=load")


@pytest.mark.parametrize("settings", [recurring_task().features, run_to_failure_task().features], ids=["event", "life"])
def test_features_know_nothing_of_the_future(tmp_path: Path, settings: FeatureSettings) -> None:
    """Rows up to a moment are the same whether or not anything happened after it."""
    history = history_of(tmp_path)
    panel = make_panel(history)
    moment = history.readings["time"].min().to_datetime64() + 15 * 24 * HOUR
    until = int(hours_of(np.array([moment]))[0])
    featurizer = Featurizer.fit(history, panel, panel.hour_R <= until, settings)
    whole = featurizer.transform(history, panel)
    featurizer = Featurizer.from_json(json.loads(json.dumps(featurizer.to_json())))
    cut = history.known_at(moment)
    part_panel = make_panel(cut)
    part = featurizer.transform(cut, part_panel)
    rows = panel.hour_R <= until
    np.testing.assert_allclose(whole.x_RF[rows], part.x_RF, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole.log_RL[rows], part.log_RL)
    np.testing.assert_array_equal(whole.log_age_RL[rows], part.log_age_RL)


def test_a_component_is_what_sensors_share(tmp_path: Path) -> None:
    """Three noisy copies of one wear: the component follows it more closely than any of them, whatever is missing."""
    history = history_of(tmp_path)
    panel = make_panel(history)
    wear_R = np.cumsum(RNG.normal(size=len(panel)))
    wear_R = (wear_R - wear_R.mean()) / wear_R.std()
    x_RS = np.where(RNG.random((len(panel), 3)) < 0.1, np.nan, wear_R[:, None] + RNG.normal(0.0, 1.0, (len(panel), 3)))
    panel = replace(panel, sensors=("a", "b", "c"), x_RS=x_RS, condition_RC=np.zeros((len(panel), 0)))
    settings = FeatureSettings(from_new=True, components=1)
    featurizer = Featurizer.fit(history, panel, np.ones(len(panel), bool), settings)
    features = Featurizer.from_json(json.loads(json.dumps(featurizer.to_json()))).transform(history, panel)

    def likeness(name: str) -> float:
        value_R = features.x_RF[:, features.names.index(f"{name} now")]
        known_R = np.isfinite(value_R)
        return abs(float(np.corrcoef(value_R[known_R], wear_R[known_R])[0, 1]))

    assert likeness("component 1") > max(likeness(name) for name in "abc") + 0.05
    component_R = features.x_RF[:, features.names.index("component 1 now")]
    assert abs(component_R.std() - 1.0) < 0.05


def test_event_features_agree_with_their_slow_twin(tmp_path: Path) -> None:
    history = history_of(tmp_path)
    panel = make_panel(history)
    settings = replace(FeatureSettings(), least_events=1)
    featurizer = Featurizer.fit(history, panel, np.ones(len(panel), bool), settings)
    features = featurizer.transform(history, panel)
    code = next(c for c in featurizer.codes if c.startswith("item:"))
    since = features.x_RF[:, features.names.index(f"hours since {code}")]
    count = features.x_RF[:, features.names.index(f"{code} in 72 h")]
    events = history.events
    has = np.array([code in codes for codes in event_codes(events)])
    when = hours_of(events["time"])
    for row in RNG.choice(len(panel), 60, replace=False):
        mine = when[has & (events["asset"] == panel.assets[panel.asset_R[row]]).to_numpy()]
        before = mine[mine <= panel.hour_R[row]]
        assert since[row] == (panel.hour_R[row] - before.max() if len(before) else 24 * 365)
        assert count[row] == (before > panel.hour_R[row] - 72).sum()


def test_a_positive_ends_before_the_failure_and_the_end_censors(tmp_path: Path) -> None:
    history = history_of(tmp_path)
    panel = make_panel(history)
    hour = int(panel.hour_R[panel.slices()[0]][100])
    time = np.datetime64(0, "us") + hour * HOUR
    event = pd.DataFrame(
        [{"asset": panel.assets[0], "time": time, "arrived": time, "kind": "failure", "code": "x", "text": ""}]
    )
    rest = history.events[history.events["kind"] != "failure"]
    labels = make_labels(replace(history, events=pd.concat([rest, event])), panel)
    rows = panel.slices()[0]
    life, failed = labels.life_R[rows], labels.failed_R[rows]
    assert (life[99], failed[99]) == (1.0, True)
    assert not failed[100]  # at the failure the machine has been repaired
    positive, known = labels.within(24.0)
    assert positive[rows].nonzero()[0].tolist() == list(range(76, 100))
    assert not known[rows][-5:].any()  # the end of observation says nothing about the next day
    early = make_labels(replace(history, events=pd.concat([rest, event])), panel, until_hour=hour - 1)
    assert not early.failed_R[rows][:99].any()  # a failure after the cut is not known before it
