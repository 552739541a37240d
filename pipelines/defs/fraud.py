"""Dagster definitions of the fraud solution: payments -> stream -> challenger -> gate -> champion, and what watches them."""

import logging
import os
from typing import Any, Literal

import dagster as dg
import pandas as pd

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
    metadata: dict[str, Any] = {
        "reasons": "; ".join(verdict.reasons),
        "difference": verdict.difference,
        "lower_bound": verdict.low,
    }
    return dg.AssetCheckResult(passed=verdict.promote, metadata=metadata)


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


train_job = dg.define_asset_job(
    "fraud_train", selection=[fraud_stream, fraud_challenger, fraud_champion], executor_def=dg.in_process_executor
)
ingest_job = dg.define_asset_job("fraud_ingest", selection=[fraud_payments], partitions_def=DAYS)
daily = dg.build_schedule_from_partitioned_job(ingest_job, name="fraud_daily", hour_of_day=2)
weekly = dg.ScheduleDefinition(name="fraud_weekly_training", job=train_job, cron_schedule="0 4 * * 1")


@dg.sensor(name="fraud_drift", job=train_job, minimum_interval_seconds=3600)
def drift_sensor(context: dg.SensorEvaluationContext, var: VarResource) -> dg.SkipReason | dg.RunRequest:
    """Compare the newest days with the champion's held-out window; ask for a training run when the errors have shifted."""
    from solutions.fraud.watch import plan_update

    plan = plan_update(var.fraud())
    if plan is None or plan.scope == "none":
        return dg.SkipReason(plan.why if plan else "there is no champion, or no payment after its training")
    return dg.RunRequest(run_key=plan.why, tags={"vigil.update": plan.scope})


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


def _close(context: dg.RunStatusSensorContext, status: Literal["FINISHED", "FAILED"]) -> None:
    tracker = VarResource().tracker()
    tracker.close(context.dagster_run.run_id, status)


@dg.run_status_sensor(run_status=dg.DagsterRunStatus.SUCCESS, name="close_tracking_run", monitored_jobs=[train_job])
def close_finished(context: dg.RunStatusSensorContext) -> None:
    """One MLflow run per Dagster run: it ends with the Dagster run, not with the first step."""
    _close(context, "FINISHED")


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE, name="close_failed_tracking_run", monitored_jobs=[train_job]
)
def close_failed(context: dg.RunStatusSensorContext) -> None:
    """The same for a run that failed."""
    _close(context, "FAILED")


defs = dg.Definitions(
    assets=[fraud_payments, fraud_stream, fraud_challenger, fraud_champion],
    asset_checks=[fraud_gate, fraud_scorer_lag],
    jobs=[train_job, ingest_job],
    schedules=[daily, weekly],
    sensors=[drift_sensor, close_finished, close_failed],
    resources={"payments": payments_from_environment()},
)
