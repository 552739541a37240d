"""From the drift sensor's run request to an updated champion: asked for once a day, judged, promoted or blocked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from core.continual.updater import UpdatePlan
from pipelines.defs import fraud
from pipelines.resources import PaymentsResource, VarResource
from solutions.fraud import operate, update, watch
from solutions.fraud.watch import Outlook
from tests.solutions.fraud.streams import random_stream, tiny_model

DAY = 86_400.0


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("VIGIL_VAR", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    var = VarResource(path=str(tmp_path / "var"))
    frame = random_stream(600)
    var.fraud().payments.mkdir(parents=True)
    frame.to_parquet(var.fraud().payments / "2024-03-01.parquet", index=False)
    (var.fraud().root / "champion.json").write_text(json.dumps({"version": 1, "run": "first"}))
    return {"var": var, "payments": PaymentsResource()}


def due(workspace: operate.Workspace, frame: pd.DataFrame, run: str, *, kept: bool) -> Any:
    """What `update_when_due` leaves behind, without the training."""
    window = frame[["transaction_id", "event_time", "payer", "amount", "is_fraud"]]
    operate.save_challenger(tiny_model(), window.assign(fused=0.5), workspace, run)
    record = {"scope": "full", "why": "errors rose", "kept": kept, "reasons": ["because"], "since": 1.0}
    workspace.update(run).parent.mkdir(parents=True, exist_ok=True)
    workspace.update(run).write_text(json.dumps(record | {"before": 0.4, "after": 0.6, "forgetting": 0.0}))
    return SimpleNamespace(plan=UpdatePlan("full", "errors rose"), metrics=lambda: {"ap_after": 0.6})


def run_job(resources: dict[str, Any]) -> dg.ExecuteInProcessResult:
    assets = [fraud.fraud_stream, fraud.fraud_updated_challenger, fraud.fraud_updated_champion, fraud.fraud_update_gate]
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize(assets, resources=resources, instance=instance, raise_on_error=False)


@pytest.mark.parametrize("kept", [True, False])
def test_the_gate_lets_a_gain_serve_and_blocks_the_rest(
    resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    monkeypatch.setattr(
        update, "update_when_due", lambda workspace, frame, run, *_, **__: due(workspace, frame, run, kept=kept)
    )
    result = run_job(resources)
    tracker, workspace = resources["var"].tracker(), resources["var"].fraud()
    assert result.success is kept
    assert tracker.version_of("fraud", "champion") == (1 if kept else None)
    assert tracker.version_of("fraud", "challenger") == (None if kept else 1)
    serving = watch.champion_run(workspace)
    assert serving == (result.run_id if kept else "first")
    if kept:
        assert watch.last_update(workspace, str(serving)) == watch.LastUpdate("full", 1.0)


def test_when_no_update_is_due_nothing_is_registered_and_the_run_succeeds(
    resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update, "update_when_due", lambda *_, **__: "nothing drifted")
    result = run_job(resources)
    assert result.success
    assert not result.asset_materializations_for_node("fraud_updated_challenger")
    assert resources["var"].tracker().version_of("fraud", "challenger") is None


def test_the_sensor_asks_again_only_when_the_labels_have_doubled_or_the_champion_is_another(
    resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = UpdatePlan("full", "mean error rose by 60%")
    coming: list[Outlook | None] = [
        None,
        Outlook(UpdatePlan("none", "nothing drifted"), None, DAY),
        *(Outlook(plan, 1.5 * DAY, 0.0, days) for days in (0.4, 1.9, 2.0, 3.9, 4.0, 4.0)),
    ]
    monkeypatch.setattr(watch, "plan_update", lambda *_, **__: coming.pop(0))

    def ask() -> Any:
        return fraud.drift_sensor(dg.build_sensor_context(resources=resources))

    assert "no champion" in ask().skip_message
    assert ask().skip_message == "nothing drifted"
    asked = [ask() for _ in range(5)]
    assert [a.run_key for a in asked] == [f"first-1970-01-02-{n}" for n in (0, 0, 1, 1, 2)]
    assert asked[0].tags == {"vigil.update": "full"}
    (resources["var"].fraud().root / "champion.json").write_text(json.dumps({"version": 2, "run": "second"}))
    assert ask().run_key == "second-1970-01-02-2"
    assert fraud.drift_sensor.job_name == "fraud_update"
