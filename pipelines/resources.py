"""What assets are given: where files lie, where runs are tracked, and where payments come from."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from core.tracking import Tracker
from solutions.fraud.operate import Source, Workspace

ROOT = Path(__file__).parents[1]  # holds dagster.yaml


def dagster_instance() -> dg.DagsterInstance:
    """The instance that dagster.yaml describes (DAGSTER_HOME, else this checkout): runs made here show in `make ui`."""
    os.environ.setdefault("DAGSTER_HOME", str(ROOT))
    return dg.DagsterInstance.get()


class VarResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The folder of all run-time state."""

    path: str = "var"

    def root(self) -> Path:
        return Path(os.environ.get("VIGIL_VAR", self.path)).resolve()

    def fraud(self) -> Workspace:
        return Workspace(self.root() / "fraud")

    def tracker(self) -> Tracker:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root() / 'mlflow.db'}"
        return Tracker(uri)


class PaymentsResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The file that payments are ingested from, and the training options of the solution.

    Settings come from VIGIL_TRANSACTIONS, VIGIL_COLUMNS, VIGIL_LABEL_DELAY_DAYS and VIGIL_ACCOUNT_TO_ACCOUNT.
    """

    transactions: str = ""
    columns: str = ""
    label_delay_days: float = 7.0
    account_to_account: bool = False
    warm_up_days: float = 37.0
    slice_days: float = 7.0
    holdout_days: float = 7.0
    seed: int = 0

    def source(self) -> Source:
        return Source(Path(self.transactions), self.columns, self.label_delay_days, self.account_to_account)


def payments_from_environment() -> PaymentsResource:
    return PaymentsResource(
        transactions=os.environ.get("VIGIL_TRANSACTIONS", ""),
        columns=os.environ.get("VIGIL_COLUMNS", ""),
        label_delay_days=float(os.environ.get("VIGIL_LABEL_DELAY_DAYS", "7")),
        account_to_account=os.environ.get("VIGIL_ACCOUNT_TO_ACCOUNT", "") == "1",
    )
