"""kill -9 at planted points of training, scoring and case writing: run again, everything is as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from core.tracking import Tracker
from solutions.maintenance.cases import CaseBook
from solutions.maintenance.operate import Workspace, champion_run
from solutions.maintenance.simulator import FleetSettings, simulate
from tests.solutions.maintenance.fleets import write

TRAIN = ["train:fit:2", "train:save:1", "train:write:1", "train:move:1", "train:register:1", "train:promote:1",
         "train:move:2"]  # fmt: skip
SCORE = ["score:write:1", "score:move:1", "score:write:2", "score:move:4"]
CASES = ["cases:move:1"]


def steps(var: Path, folder: Path, points: list[str]) -> list[int]:
    environment = {k: v for k, v in os.environ.items() if k not in ("VIGIL_VAR", "MLFLOW_TRACKING_URI")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.solutions.maintenance.stub", str(var), str(folder), *points],
        capture_output=True, text=True, check=True, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    ended: list[int] = json.loads(done.stdout.splitlines()[-1])
    assert 1 not in ended, done.stderr
    return ended


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """One that ran through, and one that was killed at every point before it ran through."""
    base = tmp_path_factory.mktemp("kills")
    folder = write(simulate(FleetSettings(assets=6, days=30, onset=(48, 96), stuck=0), 1), base / "fleet")
    straight = ["train:", "score:", "cases:"]
    assert steps(base / "calm", folder, straight) == [0, 0, 0]
    killed = [*TRAIN, "train:", *SCORE, "score:", *CASES, "cases:", "cases:"]
    return base / "calm", base / "killed", steps(base / "killed", folder, killed)


def test_every_planted_point_was_reached(workspaces: tuple[Path, Path, list[int]]) -> None:
    expected = [*([-9] * len(TRAIN)), 0, *([-9] * len(SCORE)), 0, *([-9] * len(CASES)), 0, 0]
    assert workspaces[2] == expected


def test_scores_cases_and_models_are_those_of_an_uninterrupted_run(workspaces: tuple[Path, Path, list[int]]) -> None:
    calm, killed = (Workspace(path / "maintenance") for path in workspaces[:2])
    for place in (calm, killed):
        assert sorted(p.parent.name for p in (place.root / "scores").glob("*/*.parquet")) == ["P-001", "P-002"]
    runs = [champion_run(place) for place in (calm, killed)]
    models = [
        json.loads((place.model(str(run)) / "model.json").read_text())
        for place, run in zip((calm, killed), runs, strict=True)
    ]
    assert models[0] == models[1]
    for file in ("scores", "quality"):
        for path in sorted((calm.root / file).glob("*/*.parquet")):
            again = killed.root / path.relative_to(calm.root)
            pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(again))
    books = [CaseBook(place.cases) for place in (calm, killed)]
    assert books[0].cases == books[1].cases
    active = [case.asset for case in books[1].active()]
    assert len(active) == len(set(active))


def test_no_temporary_file_is_left(workspaces: tuple[Path, Path, list[int]]) -> None:
    assert sorted((workspaces[1] / "maintenance").rglob("*.tmp")) == []


def test_no_tracking_run_is_left_open(workspaces: tuple[Path, Path, list[int]]) -> None:
    tracker = Tracker(f"sqlite:///{workspaces[1] / 'mlflow.db'}")
    tracker.close_orphans()
    experiment = tracker.client.get_experiment_by_name("vigil")
    assert experiment is not None
    states = [run.info.status for run in tracker.client.search_runs([experiment.experiment_id])]
    assert sorted(states) == ["FINISHED", *(["KILLED"] * len(TRAIN))]
    assert tracker.version_of("maintenance", "champion") is not None
