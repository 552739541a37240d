"""Dagster definitions of the imaging solution: inbox -> gate -> review, one partition per study; monthly retraining."""

import json
from collections.abc import Iterator

import dagster as dg

from pipelines.defs.shared import close_sensors
from pipelines.resources import VarResource
from solutions.medical_imaging.operate import Workspace

GROUP = "imaging"
STUDIES = dg.DynamicPartitionsDefinition(name="imaging_studies")
RETRY = dg.RetryPolicy(max_retries=1, delay=1)


def workspace(var: VarResource) -> Workspace:
    return Workspace(var.root() / "imaging")


@dg.asset(group_name=GROUP, partitions_def=STUDIES, retry_policy=RETRY)
def imaging_verdict(context: dg.AssetExecutionContext, var: VarResource) -> None:
    """What the gate says about a study of the inbox."""
    from solutions.medical_imaging.operate import judge_series

    context.add_output_metadata(judge_series(workspace(var), context.partition_key))


@dg.asset_check(asset=imaging_verdict, partitions_def=STUDIES, description="The series was not refused.")
def imaging_accepted(context: dg.AssetCheckExecutionContext, var: VarResource) -> dg.AssetCheckResult:
    """Warns of a refusal; the review that follows writes refusal.json."""
    from solutions.medical_imaging.operate import verdict_of

    verdict = verdict_of(workspace(var), context.partition_key)
    return dg.AssetCheckResult(
        passed=verdict != "refuse", metadata={"verdict": verdict}, severity=dg.AssetCheckSeverity.WARN
    )


@dg.asset(group_name=GROUP, partitions_def=STUDIES, deps=[imaging_verdict], retry_policy=RETRY)
def imaging_review(context: dg.AssetExecutionContext, var: VarResource) -> None:
    """Segmentation, report, sheet and findings of a study, or its refusal."""
    from solutions.medical_imaging.operate import review_study, serving_weights

    weights, model = serving_weights(var.tracker())
    context.add_output_metadata(review_study(workspace(var), context.partition_key, weights) | {"model": model})


@dg.asset(group_name=GROUP, output_required=False, retry_policy=RETRY)
def imaging_challenger(context: dg.AssetExecutionContext, var: VarResource) -> Iterator[dg.Output[str]]:
    """The serving model, its probabilities corrected by what clinicians signed; nothing while too little is signed."""
    from solutions.medical_imaging.operate import retrain_from_signatures, serving_weights

    tracker = var.tracker()
    tracker.close_orphans()
    weights, model = serving_weights(tracker)
    made = retrain_from_signatures(workspace(var), weights, context.run_id)
    if isinstance(made, str):
        context.log.info(made)
        return
    run_id = tracker.run_for(context.run_id)
    tracker.log(run_id, params={"corrected": model}, metrics=made.metrics)
    tracker.log_artifact(run_id, workspace(var).model(context.run_id) / "card.json")
    yield dg.Output(context.run_id, metadata=made.metrics)


@dg.asset_check(
    asset=imaging_challenger, blocking=True, description="Paired bootstrap of the Brier score over studies."
)
def imaging_gate(imaging_challenger: str, var: VarResource) -> dg.AssetCheckResult:
    """The corrected probabilities must be better on the newest signed studies."""
    card = json.loads((workspace(var).model(imaging_challenger) / "card.json").read_text())
    return dg.AssetCheckResult(passed=card["promote"], metadata={"reasons": "; ".join(card["reasons"])})


@dg.asset(group_name=GROUP)
def imaging_champion(context: dg.AssetExecutionContext, imaging_challenger: str, var: VarResource) -> None:
    """The corrected model, registered and made champion. Runs only when the gate passed."""
    from core.results import sha256_file
    from solutions.medical_imaging.retraining import CARD, register_champion

    tracker, folder = var.tracker(), workspace(var).model(imaging_challenger)
    version = register_champion(tracker, tracker.run_for(context.run_id), folder, sha256_file(folder / CARD))
    context.add_output_metadata({"version": version})


review_job = dg.define_asset_job(
    "imaging_studies",
    selection=[imaging_verdict, imaging_review],
    partitions_def=STUDIES,
    executor_def=dg.in_process_executor,
)


@dg.sensor(name="imaging_inbox", job=review_job, minimum_interval_seconds=30)
def inbox_sensor(context: dg.SensorEvaluationContext, var: VarResource) -> dg.SensorResult | dg.SkipReason:
    """Ask for a review of every study that has arrived whole; the key makes a second request a repeat."""
    from solutions.medical_imaging.operate import entries, is_reviewed

    place = workspace(var)
    keys = [key for key in entries(place) if not is_reviewed(place, key)]
    if not keys:
        return dg.SkipReason("no new study in the inbox")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=key, partition_key=key) for key in keys],
        dynamic_partitions_requests=[STUDIES.build_add_request(keys)],
    )


retrain_job = dg.define_asset_job(
    "imaging_retrain", selection=[imaging_challenger, imaging_champion], executor_def=dg.in_process_executor
)
monthly = dg.ScheduleDefinition(name="imaging_monthly_retraining", job=retrain_job, cron_schedule="0 6 1 * *")

defs = dg.Definitions(
    assets=[imaging_verdict, imaging_review, imaging_challenger, imaging_champion],
    asset_checks=[imaging_accepted, imaging_gate],
    jobs=[review_job, retrain_job],
    schedules=[monthly],
    sensors=[inbox_sensor, *close_sensors("imaging_", [retrain_job])],
)
