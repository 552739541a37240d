"""What `dagster dev` and `make ui` load."""

from __future__ import annotations

import dagster as dg

from pipelines.defs import fraud, maintenance
from pipelines.resources import VarResource

defs = dg.Definitions.merge(fraud.defs, maintenance.defs, dg.Definitions(resources={"var": VarResource()}))
