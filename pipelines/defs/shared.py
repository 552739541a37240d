"""What the definitions of the solutions have in common: gates, and the end of tracking runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import dagster as dg

from core.promotion import Verdict
from pipelines.resources import VarResource


def gate_result(verdict: Verdict) -> dg.AssetCheckResult:
    """A gate's verdict as a check, with its reasons."""
    metadata: dict[str, Any] = {
        "reasons": "; ".join(verdict.reasons),
        "difference": verdict.difference,
        "lower_bound": verdict.low,
    }
    return dg.AssetCheckResult(passed=verdict.promote, metadata=metadata)


def update_gate_result(record: dict[str, Any]) -> dg.AssetCheckResult:
    """The record of an update as a check."""
    metadata = {name: record[name] for name in ("scope", "why", "before", "after", "forgetting")}
    return dg.AssetCheckResult(passed=record["kept"], metadata=metadata | {"reasons": "; ".join(record["reasons"])})


def close_sensors(prefix: str, jobs: Sequence[Any]) -> list[dg.SensorDefinition]:
    """One MLflow run per Dagster run: it ends with the Dagster run, not with the first step, be it well or not."""

    def sensor(status: dg.DagsterRunStatus, ends: Literal["FINISHED", "FAILED", "KILLED"], name: str) -> Any:
        @dg.run_status_sensor(run_status=status, name=name, monitored_jobs=list(jobs))
        def close(context: dg.RunStatusSensorContext) -> None:
            VarResource().tracker().close(context.dagster_run.run_id, ends)

        return close

    return [
        sensor(dg.DagsterRunStatus.SUCCESS, "FINISHED", f"{prefix}close_tracking_run"),
        sensor(dg.DagsterRunStatus.FAILURE, "FAILED", f"{prefix}close_failed_tracking_run"),
        sensor(dg.DagsterRunStatus.CANCELED, "KILLED", f"{prefix}close_canceled_tracking_run"),
    ]
