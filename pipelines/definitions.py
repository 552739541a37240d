"""What `dagster dev` and `make ui` load."""

from __future__ import annotations

import dagster as dg

from pipelines.defs import fraud
from pipelines.resources import VarResource, payments_from_environment

defs = dg.Definitions(
    assets=fraud.ASSETS,
    asset_checks=fraud.CHECKS,
    jobs=[fraud.train_job, fraud.ingest_job],
    schedules=[fraud.daily, fraud.weekly],
    sensors=[fraud.drift_sensor, fraud.close_finished, fraud.close_failed],
    resources={"var": VarResource(), "payments": payments_from_environment()},
)
