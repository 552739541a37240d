"""What `dagster dev` and `make ui` load."""

from __future__ import annotations

import dagster as dg

from pipelines.defs import fraud, maintenance, medical_imaging
from pipelines.resources import VarResource

defs = dg.Definitions.merge(
    fraud.defs, maintenance.defs, medical_imaging.defs, dg.Definitions(resources={"var": VarResource()})
)
