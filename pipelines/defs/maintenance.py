"""Dagster definitions of the maintenance solution: asset-days are scored, cases opened, challengers trained and judged."""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from pipelines.defs.shared import close_sensors, gate_result, update_gate_result
from pipelines.resources import VarResource
from solutions.maintenance.operate import Source, Workspace

GROUP = "maintenance"
PROGRESS = logging.getLogger("vigil.progress")
FIRST_DAY = os.environ.get("VIGIL_MAINTENANCE_FIRST_DAY", "2024-01-01")
ASSETS = dg.DynamicPartitionsDefinition(name="maintenance_assets")
ASSET_DAYS = dg.MultiPartitionsDefinition({"asset": ASSETS, "day": dg.DailyPartitionsDefinition(start_date=FIRST_DAY)})
RETRY = dg.RetryPolicy(max_retries=1, delay=1)


class FleetResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folder of tables, and the training options. Settings come from VIGIL_FLEET and VIGIL_FLEET_COLUMNS."""

    folder: str = ""
    columns: str = ""
    holdout_days: float = 28.0
    quick: bool = False  # fewer folds, trees and epochs: a demonstration
    seed: int = 0

    def source(self) -> Source:
        return Source(Path(self.folder), self.columns)


def fleet_from_environment() -> FleetResource:
    return FleetResource(folder=os.environ.get("VIGIL_FLEET", ""), columns=os.environ.get("VIGIL_FLEET_COLUMNS", ""))


def workspace_of(var: VarResource) -> Workspace:
    return Workspace(var.root() / "maintenance")


def train_task(fleet: FleetResource) -> Any:
    """The task that is trained for."""
    from dataclasses import replace

    from solutions.maintenance.task import recurring_task

    task = recurring_task()
    if not fleet.quick:
        return task
    return replace(
        task,
        folds=2,
        origins=(0.6,),
        network=replace(task.network, epochs=3, rows=5_000),
        boosting=replace(task.boosting, trees=80, most_rows=4_000),
    )


@dg.asset(group_name=GROUP)
def maintenance_challenger(context: dg.AssetExecutionContext, var: VarResource, fleet: FleetResource) -> str:
    """A monitor trained on all but the held-out days, findings of closed cases included. Value: the run's name."""
    from solutions.maintenance.cases import CaseBook
    from solutions.maintenance.operate import save_challenger, train_challenger

    workspace, tracker = workspace_of(var), var.tracker()
    tracker.close_orphans()
    run_id = tracker.run_for(context.run_id)
    monitor, window = train_challenger(
        fleet.source().load(),
        train_task(fleet),
        holdout_days=fleet.holdout_days,
        seed=fleet.seed,
        book=CaseBook(workspace.cases),
        progress=PROGRESS.info,
    )
    metrics = save_challenger(monitor, window, workspace, context.run_id)
    params = {"seed": fleet.seed, "rows": len(window), "threshold": monitor.alarm.threshold}
    tracker.log(run_id, params=params, metrics=metrics)
    context.add_output_metadata(dict(metrics))
    return str(context.run_id)


@dg.asset_check(asset=maintenance_challenger, blocking=True, description="Paired bootstrap over machines.")
def maintenance_gate(maintenance_challenger: str, var: VarResource, fleet: FleetResource) -> dg.AssetCheckResult:
    """The challenger must beat the champion, or, while there is none, the base rate, and not lose to boosting alone."""
    import pandas as pd

    from solutions.maintenance.operate import champion_scores, judge

    window = pd.read_parquet(workspace_of(var).evaluation(maintenance_challenger))
    verdict = judge(window, champion_scores(var.tracker(), fleet.source().load(), window))
    return gate_result(verdict)


@dg.asset(group_name=GROUP)
def maintenance_champion(context: dg.AssetExecutionContext, maintenance_challenger: str, var: VarResource) -> None:
    """The challenger, registered and made champion. Runs only when the gate passed."""
    from solutions.maintenance.operate import register_champion

    tracker = var.tracker()
    version = register_champion(tracker, tracker.run_for(context.run_id), workspace_of(var), maintenance_challenger)
    context.add_output_metadata({"version": version})


@dg.asset(group_name=GROUP, output_required=False)
def maintenance_updated_challenger(
    context: dg.AssetExecutionContext, var: VarResource, fleet: FleetResource
) -> Iterator[dg.Output[dict[str, Any]]]:
    """A challenger made from the champion with what came after it; nothing when none is due. Value: run and version."""
    from solutions.maintenance.cases import CaseBook, with_findings
    from solutions.maintenance.operate import register_challenger
    from solutions.maintenance.watch import update_when_due

    run, tracker, workspace = context.run_id, var.tracker(), workspace_of(var)
    tracker.close_orphans()
    history = with_findings(fleet.source().load(), CaseBook(workspace.cases))
    due = update_when_due(workspace, history, run, update_settings(), seed=fleet.seed, progress=PROGRESS.info)
    if isinstance(due, str):
        context.log.info(due)
        return
    run_id = tracker.run_for(run)
    tracker.log(run_id, params={"scope": due.plan.scope, "why": due.plan.why}, metrics=due.metrics())
    version = register_challenger(tracker, run_id, workspace, run)
    yield dg.Output({"run": run, "version": version}, metadata={"version": version, **due.metrics()})


@dg.asset_check(
    asset=maintenance_updated_challenger,
    blocking=True,
    description="Better on what is new, no worse on what was before.",
)
def maintenance_update_gate(maintenance_updated_challenger: dict[str, Any], var: VarResource) -> dg.AssetCheckResult:
    """The updated monitor must beat the champion on the new rows and forget at most .02 of average precision."""
    return update_gate_result(json.loads(workspace_of(var).update(maintenance_updated_challenger["run"]).read_text()))


@dg.asset(group_name=GROUP)
def maintenance_updated_champion(
    context: dg.AssetExecutionContext, maintenance_updated_challenger: dict[str, Any], var: VarResource
) -> None:
    """The updated challenger, made champion. Runs only when the gate passed."""
    from solutions.maintenance.operate import promote_challenger

    made = maintenance_updated_challenger
    promote_challenger(var.tracker(), made["version"], workspace_of(var), made["run"])
    context.add_output_metadata({"version": made["version"]})


def update_settings() -> Any:
    """How updates are trained."""
    from solutions.maintenance.update import UpdateSettings

    return UpdateSettings()


@dg.asset(group_name=GROUP, partitions_def=ASSET_DAYS, deps=[maintenance_champion], retry_policy=RETRY)
def maintenance_scores(context: dg.AssetExecutionContext, var: VarResource, fleet: FleetResource) -> None:
    """The hours of one asset-day, scored by the champion; late readings of a day touch that asset-day only."""
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import score_day

    directory, version = var.tracker().resolve("maintenance@champion")
    keys = context.partition_key.keys_by_dimension
    hours = score_day(Monitor.load(directory), fleet.source().load(), keys["asset"], keys["day"], workspace_of(var))
    context.add_output_metadata({"hours": hours, "model": version})


@dg.asset(group_name=GROUP, deps=[dg.AssetDep(maintenance_scores, partition_mapping=dg.AllPartitionMapping())])
def maintenance_cases(context: dg.AssetExecutionContext, var: VarResource, fleet: FleetResource) -> None:
    """Alarms of all scored hours as cases, at most one open per asset; failures, repairs and time close them."""
    from solutions.maintenance.cases import CaseBook
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import open_cases, read_scores

    workspace = workspace_of(var)
    directory, _ = var.tracker().resolve("maintenance@champion")
    book = CaseBook(workspace.cases)
    new = open_cases(Monitor.load(directory), read_scores(workspace), book, fleet.source().load())
    book.save()
    context.add_output_metadata({"new": len(new), "active": len(book.active())})


@dg.asset_check(asset=maintenance_cases, description="Do 90 % intervals of the remaining life cover 90 %?")
def maintenance_coverage(var: VarResource, fleet: FleetResource) -> dg.AssetCheckResult:
    """Warns when so few of the intervals held that chance is no excuse."""
    from solutions.maintenance.monitor import Monitor
    from solutions.maintenance.operate import observed_coverage, read_scores

    directory, _ = var.tracker().resolve("maintenance@champion")
    watched = observed_coverage(Monitor.load(directory), read_scores(workspace_of(var)), fleet.source().load())
    metadata = {"intervals": len(watched.held), "inside": sum(watched.held)}
    return dg.AssetCheckResult(passed=not watched.broken(), metadata=metadata, severity=dg.AssetCheckSeverity.WARN)


train_job = dg.define_asset_job(
    "maintenance_train", selection=[maintenance_challenger, maintenance_champion], executor_def=dg.in_process_executor
)
update_job = dg.define_asset_job(
    "maintenance_update",
    selection=[maintenance_updated_challenger, maintenance_updated_champion],
    executor_def=dg.in_process_executor,
)
score_job = dg.define_asset_job("maintenance_score", selection=[maintenance_scores], partitions_def=ASSET_DAYS)
cases_job = dg.define_asset_job("maintenance_open_cases", selection=[maintenance_cases])
weekly = dg.ScheduleDefinition(name="maintenance_weekly_training", job=train_job, cron_schedule="0 5 * * 1")
hourly_cases = dg.ScheduleDefinition(name="maintenance_hourly_cases", job=cases_job, cron_schedule="20 * * * *")


@dg.sensor(name="maintenance_asset_days", job=score_job, minimum_interval_seconds=3600)
def asset_days(context: dg.SensorEvaluationContext, fleet: FleetResource) -> dg.SensorResult | dg.SkipReason:
    """Each hour: score the newest day of every asset; new assets become partitions."""
    from solutions.maintenance.operate import newest_days

    source = fleet.source()
    if not fleet.folder:
        return dg.SkipReason("VIGIL_FLEET names no folder of tables")
    newest = newest_days(source.load())
    requests = [
        dg.RunRequest(run_key=f"{asset}/{hour}", partition_key=dg.MultiPartitionKey({"asset": asset, "day": day}))
        for asset, day, hour in newest
    ]
    names = [asset for asset, _, _ in newest]
    return dg.SensorResult(run_requests=requests, dynamic_partitions_requests=[ASSETS.build_add_request(names)])


@dg.sensor(name="maintenance_drift", job=update_job, minimum_interval_seconds=3600)
def drift_sensor(
    context: dg.SensorEvaluationContext, var: VarResource, fleet: FleetResource
) -> dg.SkipReason | dg.RunRequest:
    """Ask for an update when the champion's errors rose or when a finding that it never saw has examples enough.

    A refused update is asked for again when there is twice as much to learn from: see `Outlook.attempt`.
    """
    from solutions.maintenance.cases import CaseBook, with_findings
    from solutions.maintenance.operate import champion_run
    from solutions.maintenance.watch import plan_update

    workspace = workspace_of(var)
    run = champion_run(workspace)
    if run is None:
        return dg.SkipReason("there is no champion")
    outlook = plan_update(workspace, with_findings(fleet.source().load(), CaseBook(workspace.cases)))
    if outlook is None or outlook.plan.scope == "none":
        return dg.SkipReason(outlook.plan.why if outlook else "no reading after the champion's held-out days")
    return dg.RunRequest(run_key=f"{run}-{outlook.attempt}", tags={"vigil.update": outlook.plan.scope})


defs = dg.Definitions(
    assets=[
        maintenance_challenger,
        maintenance_champion,
        maintenance_updated_challenger,
        maintenance_updated_champion,
        maintenance_scores,
        maintenance_cases,
    ],
    asset_checks=[maintenance_gate, maintenance_update_gate, maintenance_coverage],
    jobs=[train_job, update_job, score_job, cases_job],
    schedules=[weekly, hourly_cases],
    sensors=[asset_days, drift_sensor, *close_sensors("maintenance_", [train_job, update_job])],
    resources={"fleet": fleet_from_environment()},
)
