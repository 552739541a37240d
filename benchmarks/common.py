"""Where benchmarks find real data and leave their results."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from solutions.fraud.engine import Engine
    from solutions.fraud.wire import StreamSettings

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


def fill(engine: Engine, nodes: int) -> float:
    """Let three payments per node change an empty state, over 40 days; returns the time of the last."""
    import numpy as np

    from solutions.fraud.engine import Events

    rng, count = np.random.default_rng(0), 3 * nodes
    payer_T = rng.integers(1, nodes // 3, count).astype(np.uint64) * np.uint64(7_919)
    payee_T = rng.integers(1, 2 * nodes // 3, count).astype(np.uint64) * np.uint64(104_729) + np.uint64(13)
    key_TE = np.stack([np.arange(1, count + 1).astype(np.uint64), payer_T, payee_T, np.zeros(count, np.uint64)], axis=1)
    time_T = 1.6e9 + np.sort(rng.uniform(0, 40 * 86_400, count))
    for begin in range(0, count, 100_000):
        part = slice(begin, begin + 100_000)
        piece = Events(key_TE[part], time_T[part], rng.gamma(2.0, 25.0, len(key_TE[part])))
        engine.observe(piece, tokens_for=np.zeros(len(piece), bool))
    return float(time_T[-1])


def own_topics(address: str, *, partitions: int = 1, **changes: Any) -> StreamSettings:
    """Topics and a group of one's own on a broker."""
    from solutions.fraud.broker import create_topics
    from solutions.fraud.wire import StreamSettings

    name = f"bench-{uuid.uuid4().hex[:8]}"
    topics: dict[str, Any] = {t: f"{name}.{t}" for t in ("transactions", "labels", "scores", "dead_letters")}
    settings = StreamSettings(bootstrap_servers=address, group=name, **topics, **changes)
    create_topics(address, settings.topics()[:2], partitions=partitions)
    create_topics(address, settings.topics()[2:])
    return settings


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
