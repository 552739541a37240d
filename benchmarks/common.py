"""Where benchmarks find real data and leave their results."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CACHE = Path(os.environ.get("VIGIL_VAR", Path(__file__).parents[1] / "var")) / "cache"
HANDBOOK = "fraud/handbook_transactions.parquet"
HANDBOOK_COLUMNS = (
    "event_time=TX_DATETIME,payer=CUSTOMER_ID,payee=TERMINAL_ID,amount=TX_AMOUNT,label=TX_FRAUD,"
    "transaction_id=TRANSACTION_ID,scenario=TX_FRAUD_SCENARIO"
)
ALPHA = "fraud/bitcoin_alpha.parquet"
ALPHA_COLUMNS = "event_time=time,payer=source,payee=target,label=rating<0"


def data(name: str) -> Path:
    """A file of the data folder: VIGIL_DATA, else ../shared/data beside the checkout. Ends the script when it is not there."""
    root = Path(os.environ.get("VIGIL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = root / name
    if not path.exists():
        print(f"skipped: {name} is not in the data folder (set VIGIL_DATA to it).")
        sys.exit(0)
    return path


def handbook(delay_days: float):  # type: ignore[no-untyped-def]
    from solutions.fraud.data import ColumnMapping, load_payments

    columns = ColumnMapping.parse(HANDBOOK_COLUMNS)
    return load_payments(data(HANDBOOK), columns, label_delay=timedelta(days=delay_days))


class Clock:
    """Progress lines with the seconds since the start."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def __call__(self, text: str) -> None:
        print(f"{time.perf_counter() - self.start:6.0f} s  {text}", file=sys.stderr, flush=True)


def model_to_time(given: list[str]) -> Path:
    """The model directory named on the command line, else a quickly trained one: its quality does not matter here."""
    if given:
        return Path(given[0])
    from solutions.fraud.network import NetworkSettings
    from solutions.fraud.train import TrainSettings, train_model

    frame = handbook(7.0).frame.head(300_000)
    settings = TrainSettings(warm_up_days=8.0, slice_days=3.0, network=NetworkSettings(epochs=1, least_steps=1))
    print("training a model to time", file=sys.stderr, flush=True)
    directory = Path(tempfile.mkdtemp()) / "model"
    train_model(frame, settings, seed=0).save(directory)
    return directory
