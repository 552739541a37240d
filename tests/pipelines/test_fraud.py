"""The fraud pipeline in this process: ingestion by day, the gate that blocks, the champion and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from pipelines.definitions import defs
from pipelines.defs import fraud
from pipelines.resources import PaymentsResource, VarResource
from solutions.fraud import operate
from solutions.fraud.network import NetworkSettings
from solutions.fraud.train import TrainSettings
from tests.solutions.fraud.streams import ENGINE, random_stream

DAYS = [f"2024-03-{day:02d}" for day in range(1, 31)]


@pytest.fixture
def resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    network = NetworkSettings(epochs=1, batch_size=128, least_steps=1)
    tiny = TrainSettings(
        engine=ENGINE, network=network, warm_up_days=3.0, slice_days=5.0, keep_genuine=0.5, trees=30, threads=1
    )
    monkeypatch.setattr(fraud, "train_settings", lambda _: tiny)
    monkeypatch.delenv("VIGIL_VAR", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / "payments.csv"
    frame = random_stream(4000)
    frame["amount"] = frame["amount"].astype(str)
    frame.loc[7, "amount"] = "-3"
    frame.to_csv(path, index=False)
    payments = PaymentsResource(transactions=str(path), label_delay_days=4.0, holdout_days=8.0)
    return {"var": VarResource(path=str(tmp_path / "var")), "payments": payments}


def materialize(resources: dict[str, Any], instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    ranged = {"dagster/asset_partition_range_start": DAYS[0], "dagster/asset_partition_range_end": DAYS[-1]}
    dg.materialize([fraud.fraud_payments], resources=resources, instance=instance, tags=ranged)
    assets = [fraud.fraud_stream, fraud.fraud_challenger, fraud.fraud_champion, fraud.fraud_gate]
    return dg.materialize(assets, resources=resources, instance=instance, raise_on_error=False)


def test_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)


def test_gate_registers_the_better_and_refuses_the_equal(
    resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = {"first": True}
    real = operate.judge

    def judge(window: pd.DataFrame, champion: Any) -> Any:
        """The first challenger meets a baseline that knows nothing; the second, an equal champion, meets the real gate."""
        if verdicts.pop("first", False):
            return real(window.assign(lightgbm_strong=0.5), None)
        return real(window, champion)

    monkeypatch.setattr(operate, "judge", judge)
    with dg.DagsterInstance.ephemeral() as instance:
        first = materialize(resources, instance)
        workspace = resources["var"].fraud()
        rejected = pd.concat([pd.read_parquet(f) for f in workspace.rejected.glob("*.parquet")])
        assert len(rejected) == 1
        assert first.success
        tracker = resources["var"].tracker()
        assert tracker.version_of("fraud", "champion") == 1
        second = materialize(resources, instance)
        assert not second.success  # the same model again is no better: the check blocks what comes after it
        assert tracker.version_of("fraud", "champion") == 1
    directory, version = tracker.resolve("fraud@champion")
    assert version == "fraud/1"
    assert (directory / "model.json").exists()


def test_nothing_ingested_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Materialise `fraud_payments` first"):
        operate.training_stream(operate.Workspace(tmp_path))
