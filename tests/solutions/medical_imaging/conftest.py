"""Phantoms that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from solutions.medical_imaging.phantom import (
    Phantom,
    PhantomNodule,
    PhantomSettings,
    datasets,
    make_phantom,
    write_series,
)

NODULES = (PhantomNodule((-70.0, -10.0, 12.0), 16.0), PhantomNodule((66.0, 10.0, -20.0), 12.0))


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    return make_phantom(PhantomSettings(slices=54, side=96, spacing=(5.0, 3.7, 3.7), nodules=NODULES, vessels=8))


@pytest.fixture(scope="session")
def fine_phantom() -> Phantom:
    return make_phantom(PhantomSettings(slices=110, side=160, spacing=(2.5, 2.2, 2.2), nodules=NODULES, vessels=8))


@pytest.fixture
def sets(phantom: Phantom) -> list[Any]:
    return datasets(phantom.volume)


@pytest.fixture(scope="session")
def series_dir(fine_phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(datasets(fine_phantom.volume), tmp_path_factory.mktemp("series") / "ct")
