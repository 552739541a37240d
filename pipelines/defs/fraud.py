"""Dagster definitions of the fraud solution: payments -> stream -> challenger -> gate -> champion, and what watches them."""

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pandas as pd

from pipelines.defs.shared import close_sensors, gate_result, update_gate_result
from pipelines.resources import PaymentsResource, VarResource, payments_from_environment

GROUP = "fraud"
PROGRESS = logging.getLogger("vigil.progress")
FIRST_DAY = os.environ.get("VIGIL_FRAUD_FIRST_DAY", "2024-01-01")
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_DAY)
RETRY = dg.RetryPolicy(max_retries=1, delay=1)


@dg.asset(group_name=GROUP, partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run(), retry_policy=RETRY)
def fraud_payments(context: dg.AssetExecutionContext, var: VarResource, payments: PaymentsResource) -> None:
    """Payments that passed validation, one file per day; refused rows beside them with their causes."""
    from solutions.fraud.operate import ingest

    counts = ingest(payments.source(), list(context.partition_keys), var.fraud())
    context.add_output_metadata(dict(counts))


@dg.asset(group_name=GROUP, deps=[dg.AssetDep(fraud_payments, partition_mapping=dg.AllPartitionMapping())])
def fraud_stream(context: dg.AssetExecutionContext, var: VarResource) -> pd.DataFrame:
    """All ingested payments in the order of time."""
    from solutions.fraud.operate import training_stream

    frame = training_stream(var.fraud())
    context.add_output_metadata({"payments": len(frame), "frauds": int((frame["is_fraud"] == 1).sum())})
    return frame


@dg.asset(group_name=GROUP)
def fraud_challenger(
    context: dg.AssetExecutionContext, fraud_stream: pd.DataFrame, var: VarResource, payments: PaymentsResource
) -> str:
    """A model trained on what was known before the held-out days, and its scores on them. Value: the run's name."""
    from solutions.fraud.operate import save_challenger, train_challenger

    settings = train_settings(payments)
    model, window = train_challenger(
        fraud_stream, settings, holdout_days=payments.holdout_days, seed=payments.seed, progress=PROGRESS.info
    )
    metrics = save_challenger(model, window, var.fraud(), context.run_id)
    tracker = var.tracker()
    params = {"seed": payments.seed, "payments": len(fraud_stream), "trees": settings.trees}
    tracker.log(tracker.run_for(context.run_id), params=params, metrics=metrics)
    context.add_output_metadata({name: value for name, value in metrics.items() if name.endswith("_ap")})
    return str(context.run_id)


@dg.asset_check(asset=fraud_challenger, blocking=True, description="Paired bootstrap over payers, lower bound above 0.")
def fraud_gate(fraud_challenger: str, var: VarResource) -> dg.AssetCheckResult:
    """The challenger must beat the champion, or the strong baseline while there is no champion."""
    from solutions.fraud.operate import champion_scores, judge, training_stream

    window = pd.read_parquet(var.fraud().evaluation(fraud_challenger))
    verdict = judge(window, champion_scores(var.tracker(), training_stream(var.fraud()), window))
    return gate_result(verdict)


@dg.asset(group_name=GROUP)
def fraud_champion(context: dg.AssetExecutionContext, fraud_challenger: str, var: VarResource) -> None:
    """The challenger, registered and made champion. Runs only when the gate passed."""
    from solutions.fraud.operate import register_champion

    tracker = var.tracker()
    version = register_champion(tracker, tracker.run_for(context.run_id), var.fraud(), fraud_challenger)
    context.add_output_metadata({"version": version})


def train_settings(payments: PaymentsResource) -> Any:
    """Training settings of the resource."""
    from solutions.fraud.engine import EngineSettings
    from solutions.fraud.train import TrainSettings

    engine = EngineSettings(maturity_days=payments.label_delay_days, account_to_account=payments.account_to_account)
    return TrainSettings(engine=engine, warm_up_days=payments.warm_up_days, slice_days=payments.slice_days)


@dg.asset(group_name=GROUP, output_required=False)
def fraud_updated_challenger(
    context: dg.AssetExecutionContext, fraud_stream: pd.DataFrame, var: VarResource, payments: PaymentsResource
) -> Iterator[dg.Output[dict[str, Any]]]:
    """A challenger made from the champion with the newest labels; nothing when none is due. Value: run and version."""
    from solutions.fraud.operate import register_challenger
    from solutions.fraud.update import update_when_due

    run, tracker = context.run_id, var.tracker()
    due = update_when_due(
        var.fraud(), fraud_stream, run, update_settings(), seed=payments.seed, warm_up_days=payments.warm_up_days
    )
    if isinstance(due, str):
        context.log.info(due)
        return
    run_id = tracker.run_for(run)
    tracker.log(run_id, params={"scope": due.plan.scope, "why": due.plan.why}, metrics=due.metrics())
    version = register_challenger(tracker, run_id, var.fraud(), run)
    yield dg.Output({"run": run, "version": version}, metadata={"version": version, **due.metrics()})


@dg.asset_check(
    asset=fraud_updated_challenger, blocking=True, description="Better on the newest labels, no worse on older ones."
)
def fraud_update_gate(fraud_updated_challenger: dict[str, Any], var: VarResource) -> dg.AssetCheckResult:
    """The updated model must beat the champion on the newest labelled payments and forget at most .02 of AP."""
    return update_gate_result(json.loads(var.fraud().update(fraud_updated_challenger["run"]).read_text()))


@dg.asset(group_name=GROUP)
def fraud_updated_champion(
    context: dg.AssetExecutionContext, fraud_updated_challenger: dict[str, Any], var: VarResource
) -> None:
    """The updated challenger, made champion. Runs only when the gate passed."""
    from solutions.fraud.operate import promote_challenger

    promote_challenger(var.tracker(), fraud_updated_challenger["version"], var.fraud(), fraud_updated_challenger["run"])
    context.add_output_metadata({"version": fraud_updated_challenger["version"]})


def update_settings() -> Any:
    """How updates are trained."""
    from solutions.fraud.update import FraudUpdateSettings

    return FraudUpdateSettings()


train_job = dg.define_asset_job(
    "fraud_train", selection=[fraud_stream, fraud_challenger, fraud_champion], executor_def=dg.in_process_executor
)
update_job = dg.define_asset_job(
    "fraud_update",
    selection=[fraud_stream, fraud_updated_challenger, fraud_updated_champion],
    executor_def=dg.in_process_executor,
)
ingest_job = dg.define_asset_job("fraud_ingest", selection=[fraud_payments], partitions_def=DAYS)
daily = dg.build_schedule_from_partitioned_job(ingest_job, name="fraud_daily", hour_of_day=2)
weekly = dg.ScheduleDefinition(name="fraud_weekly_training", job=train_job, cron_schedule="0 4 * * 1")


@dg.sensor(name="fraud_drift", job=update_job, minimum_interval_seconds=3600)
def drift_sensor(
    context: dg.SensorEvaluationContext, var: VarResource, payments: PaymentsResource
) -> dg.SkipReason | dg.RunRequest:
    """Compare matured labels since the champion's held-out window with that window; ask for an update when errors rose.

    A refused update is asked for again when there are twice as many days of labels: see `Outlook.attempt`.
    """
    from solutions.fraud.watch import champion_run, plan_update

    outlook = plan_update(var.fraud(), warm_up_days=payments.warm_up_days)
    if outlook is None or outlook.plan.scope == "none":
        return dg.SkipReason(outlook.plan.why if outlook else "no champion, or no payment after its held-out window")
    key = f"{champion_run(var.fraud())}-{outlook.attempt}"
    return dg.RunRequest(run_key=key, tags={"vigil.update": outlook.plan.scope})


@dg.asset_check(asset=fraud_champion, description="Records that wait to be scored.")
def fraud_scorer_lag() -> dg.AssetCheckResult:
    """Whether the scorer keeps up (KAFKA_BOOTSTRAP_SERVERS names the broker)."""
    from solutions.fraud.stream import StreamSettings, lag

    servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if not servers:
        return dg.AssetCheckResult(
            passed=True, metadata={"note": "KAFKA_BOOTSTRAP_SERVERS is not set: no scorer to check"}
        )
    waiting = lag(StreamSettings(bootstrap_servers=servers))
    return dg.AssetCheckResult(
        passed=waiting < 10_000, metadata={"waiting": waiting}, severity=dg.AssetCheckSeverity.WARN
    )


defs = dg.Definitions(
    assets=[
        fraud_payments,
        fraud_stream,
        fraud_challenger,
        fraud_champion,
        fraud_updated_challenger,
        fraud_updated_champion,
    ],
    asset_checks=[fraud_gate, fraud_update_gate, fraud_scorer_lag],
    jobs=[train_job, update_job, ingest_job],
    schedules=[daily, weekly],
    sensors=[drift_sensor, *close_sensors("", [train_job, update_job])],
    resources={"payments": payments_from_environment()},
)
