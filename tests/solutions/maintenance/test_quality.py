"""Ill sensors: each cause is found, named, and taken out; healthy ones are left alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from solutions.maintenance.data import load_history
from solutions.maintenance.panel import Panel, make_panel
from solutions.maintenance.quality import SensorHealth
from tests.solutions.maintenance.fleets import small_fleet, write


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    folder = write(small_fleet(3, 25), tmp_path_factory.mktemp("fleet"))
    return make_panel(load_history(folder, "sensors.condition=load"))


def broken(panel: Panel, cause: str) -> Panel:
    x, s = panel.x_RS.copy(), panel.sensors.index("bearing_temperature")
    rows = np.arange(300, 360)
    if cause == "stuck":
        x[rows, s] = x[300, s]
    if cause == "dead":
        x[rows, s] = 0.0
    if cause == "silent":
        x[rows, s] = np.nan
    if cause == "spiking":
        x[rows[::7], s] += 400.0
    if cause == "rescaled":
        x[rows, s] = x[rows, s] * 1.8
    return replace(panel, x_RS=x)


@pytest.mark.parametrize("cause", ["stuck", "dead", "silent", "spiking", "rescaled"])
def test_each_illness_is_found_named_and_taken_out(panel: Panel, cause: str) -> None:
    health = SensorHealth.fit(panel, panel.age_R() < 240)
    clean, findings = health.check(broken(panel, cause))
    assert {(f.asset, f.sensor, f.cause) for f in findings} == {("P-001", "bearing_temperature", cause)}
    assert findings[0].advice
    assert panel.hour_R[300] <= findings[0].first_hour <= panel.hour_R[359]
    s = panel.sensors.index("bearing_temperature")
    assert np.isnan(clean.x_RS[355, s])
    others = [i for i in range(len(panel.sensors)) if i != s]
    np.testing.assert_array_equal(clean.x_RS[:, others], panel.x_RS[:, others])


def test_a_healthy_fleet_is_left_alone(panel: Panel) -> None:
    health = SensorHealth.fit(panel, panel.age_R() < 240)
    clean, findings = health.check(panel)
    assert findings == []
    np.testing.assert_array_equal(clean.x_RS, panel.x_RS)


def test_a_sensor_that_always_repeats_itself_is_not_stuck(panel: Panel) -> None:
    x = panel.x_RS.copy()
    x[:, 0] = np.round(x[:, 0] / 20.0)  # a valve position
    stepped = replace(panel, x_RS=x)
    assert SensorHealth.fit(stepped, panel.age_R() < 240).check(stepped)[1] == []


def test_only_the_past_counts(panel: Panel) -> None:
    health = SensorHealth.fit(panel, panel.age_R() < 240)
    ill = health.ill(broken(panel, "stuck"))["stuck"]
    assert not ill[:305].any()


def test_other_sensors_are_refused(panel: Panel) -> None:
    health = SensorHealth.fit(panel, panel.age_R() < 240)
    with pytest.raises(ValueError, match="expected sensors"):
        health.check(replace(panel, sensors=panel.sensors[::-1]))
