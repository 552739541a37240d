"""One tiny monitor that the tests of scoring, causes and operation share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from solutions.maintenance.data import HOUR, History, load_history
from solutions.maintenance.monitor import Monitor, fit_monitor
from solutions.maintenance.simulator import FleetSettings, simulate
from tests.solutions.maintenance.fleets import tiny_task, write


@pytest.fixture(scope="session")
def fleet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = FleetSettings(assets=8, days=40, failures=1.5, onset=(72, 120), stuck=0)
    return write(simulate(settings, 0), tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="session")
def history(fleet_folder: Path) -> History:
    return load_history(fleet_folder, "sensors.condition=load")


@pytest.fixture(scope="session")
def cut(history: History) -> np.datetime64:
    return history.readings["time"].max().to_datetime64() - 10 * 24 * HOUR


@pytest.fixture(scope="session")
def monitor(history: History, cut: np.datetime64) -> Monitor:
    torch.set_num_threads(1)
    return fit_monitor(history, tiny_task(), seed=0, cut=cut)[0]
