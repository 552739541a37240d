"""The maintenance pipeline in this process, and its commands as a stranger meets them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import torch

from pipelines.cli import main
from pipelines.definitions import defs
from pipelines.defs import maintenance
from pipelines.resources import VarResource
from solutions.maintenance import operate
from solutions.maintenance.cases import CaseBook
from solutions.maintenance.data import History, load_history
from solutions.maintenance.monitor import Monitor
from solutions.maintenance.simulator import FLEET_COLUMNS, FleetSettings, simulate
from solutions.maintenance.task import Task
from tests.solutions.maintenance.fleets import tiny_task, write


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def vigil(capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    """The command in this process: every new one would import torch again."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["vigil", *words])
        with pytest.raises(SystemExit) as left:
            main()
    return Done(int(left.value.code or 0), *capsys.readouterr())


TRAIN = operate.train_challenger
ASSETS = [maintenance.maintenance_challenger, maintenance.maintenance_champion, maintenance.maintenance_gate]
EVERYTHING = [*ASSETS, maintenance.maintenance_scores, maintenance.maintenance_cases, maintenance.maintenance_coverage]


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    torch.set_num_threads(1)
    task = tiny_task()
    small = replace(task, boosting=replace(task.boosting, trees=5), network=replace(task.network, rows=256))
    monkeypatch.setattr(maintenance, "train_task", lambda _: small)
    monkeypatch.delenv("VIGIL_VAR", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = write(simulate(FleetSettings(assets=6, days=30, onset=(48, 96), stuck=0), 1), tmp_path / "fleet")
    fleet = maintenance.FleetResource(folder=str(folder), columns=FLEET_COLUMNS, holdout_days=10.0)
    return {"var": VarResource(path=str(tmp_path / "var")), "fleet": fleet}


def test_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)


def operate_train(history: History, task: Task) -> tuple[Monitor, pd.DataFrame]:
    return TRAIN(history, task, holdout_days=10.0, seed=0)


def test_gate_champion_asset_day_and_cases(resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = {"first": True}
    real = operate.judge

    def judge(window: pd.DataFrame, champion: Any) -> Any:
        """The first challenger is let through; the second, the same model again, meets the real gate."""
        if verdicts.pop("first", False):
            return replace(real(window, None, least_units=2), promote=True)
        return real(window, champion, least_units=2)

    monkeypatch.setattr(operate, "judge", judge)
    train = lru_cache(maxsize=1)(
        lambda *_: operate_train(resources["fleet"].source().load(), maintenance.train_task(resources["fleet"]))
    )
    monkeypatch.setattr(operate, "train_challenger", lambda *_, **__: train())
    tracker, workspace = resources["var"].tracker(), maintenance.workspace_of(resources["var"])
    with dg.DagsterInstance.ephemeral() as instance:
        first = dg.materialize(ASSETS, resources=resources, instance=instance, raise_on_error=False)
        assert first.success
        assert tracker.version_of("maintenance", "champion") == 1
        second = dg.materialize(ASSETS, resources=resources, instance=instance, raise_on_error=False)
        assert not second.success  # an equal model is no better: the check blocks what comes after it
        assert tracker.version_of("maintenance", "champion") == 1
        instance.add_dynamic_partitions("maintenance_assets", ["P-001", "P-002"])
        key = dg.MultiPartitionKey({"asset": "P-002", "day": "2025-01-25"})
        done = dg.materialize(
            EVERYTHING,
            selection=[maintenance.maintenance_scores],
            resources=resources,
            instance=instance,
            partition_key=key,
        )
        assert done.success
        assert [p.parent.name for p in (workspace.root / "scores").glob("*/*.parquet")] == ["P-002"]
        selection = dg.AssetSelection.assets(maintenance.maintenance_cases)
        cases = dg.materialize(EVERYTHING, selection=selection, resources=resources, instance=instance)
        assert cases.success
        assert workspace.cases.exists()


def test_the_sensor_asks_for_the_newest_day_of_every_asset(resources: dict[str, Any]) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance=instance, resources={"fleet": resources["fleet"]})
        result = maintenance.asset_days(context)
    assert isinstance(result, dg.SensorResult)
    keys = [request.partition_key for request in result.run_requests or []]
    assert len(keys) == 6
    newest = operate.newest_days(resources["fleet"].source().load())
    assert newest[0][:2] == ("P-001", "2025-01-30")


def test_commands_on_a_folder_of_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from solutions.maintenance.monitor import fit_monitor

    monkeypatch.setenv("VIGIL_VAR", str(tmp_path / "var"))
    folder = write(simulate(FleetSettings(assets=4, days=25, onset=(48, 72), stuck=0), 2), tmp_path / "fleet")
    history = load_history(folder, FLEET_COLUMNS)
    monitor = fit_monitor(history, replace(tiny_task(), boosting=replace(tiny_task().boosting, trees=5)), seed=0)[0]
    replace(monitor, alarm=replace(monitor.alarm, threshold=1e-4)).save(tmp_path / "model")
    common = ("--path", str(folder), "--model", str(tmp_path / "model"), "--columns", FLEET_COLUMNS)
    scored = vigil(capsys, "maintenance", "score", *common)
    assert scored.returncode == 0, scored.stderr
    assert "4 assets scored" in scored.stderr
    assert "p_72" in scored.stdout
    book = CaseBook(tmp_path / "var" / "maintenance" / "cases.json")
    name = book.active()[0].name
    closed = vigil(capsys, "maintenance", "cases", "--close", name, "--finding", "seal")
    assert closed.returncode == 0, closed.stderr
    assert CaseBook(book.path).labels()["code"].tolist() == ["seal"]
    order = vigil(capsys, "maintenance", "report", "P-002", *common)
    assert order.returncode == 0, order.stderr
    assert "# Work order draft: P-002" in order.stdout
    wrong = vigil(capsys, "maintenance", "report", "P-02", *common)
    assert (wrong.returncode, "Did you mean" in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False)
    nobody = vigil(capsys, "maintenance", "score", "--path", str(tmp_path), "--model", str(tmp_path / "model"))
    assert nobody.returncode == 2
    assert "no file `sensors.parquet`" in nobody.stderr
    unknown = vigil(capsys, "maintenance", "evaluate", "--dataset", "nasa", "--path", str(tmp_path))
    assert unknown.returncode == 2
    assert "`--dataset` must be one of cmapss, azure. Received: nasa." in unknown.stderr
