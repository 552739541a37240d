"""Small canonical frames for tests, and a tiny trained model."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from solutions.fraud.engine import EngineSettings
from solutions.fraud.graph_state import StateSettings
from solutions.fraud.model import FraudModel
from solutions.fraud.network import NetworkSettings
from solutions.fraud.train import TrainSettings, train_model

ENGINE = EngineSettings(state=StateSettings(nodes=4096, pending=1 << 16, mailbox=64), maturity_days=4.0)


def random_stream(n: int = 3000, days: int = 30, seed: int = 0, devices: bool = True) -> pd.DataFrame:
    """Payers and payees at random; a fifth of the payees is bad for part of the time, labels come 2 to 4 days later."""
    rng = np.random.default_rng(seed)
    start = pd.Timestamp("2024-03-01")
    event_time = start + pd.to_timedelta(np.sort(rng.uniform(0, days * 86_400, n)), unit="s")
    payer, payee = rng.integers(0, 80, n), rng.integers(0, 40, n)
    day = (event_time - start).days.to_numpy()
    bad = (payee % 5 == 0) & ((day // 8 + payee) % 3 == 0)
    fraud = (bad & (rng.random(n) < 0.8)) | (rng.random(n) < 0.002)
    frame = pd.DataFrame(
        {
            "transaction_id": [f"t{i}" for i in range(n)],
            "event_time": event_time.astype("datetime64[us]"),
            "payer": [f"c{i}" for i in payer],
            "payee": [f"m{i}" for i in payee],
            "amount": np.round(rng.gamma(2.0, 25.0, n), 2),
            "is_fraud": fraud.astype(np.int8),
            "label_time": (event_time + pd.to_timedelta(rng.uniform(2, 4, n), unit="D")).astype("datetime64[us]"),
        }
    )
    if devices:
        frame["device"] = [None if d == 0 else f"d{d}" for d in (payer + rng.integers(0, 2, n)) % 50]
    return frame


@cache
def tiny_model() -> FraudModel:
    settings = TrainSettings(
        engine=ENGINE,
        network=NetworkSettings(epochs=1, batch_size=128),
        warm_up_days=5.0,
        slice_days=5.0,
        keep_genuine=0.5,
        trees=30,
        threads=1,
    )
    return train_model(random_stream(), settings, seed=0)
