"""Dagster definitions of the imaging solution: inbox -> gate -> review, one partition per study."""

import dagster as dg

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
    from solutions.medical_imaging.operate import review_study

    context.add_output_metadata(review_study(workspace(var), context.partition_key))


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


defs = dg.Definitions(
    assets=[imaging_verdict, imaging_review],
    asset_checks=[imaging_accepted],
    jobs=[review_job],
    sensors=[inbox_sensor],
)
