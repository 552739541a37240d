"""Where the time of a payment goes inside the scorer, in batches of 1 and of 64; some seconds.

    python -m benchmarks.fraud_profile [MODEL_DIR]

CPU-microseconds per payment of every step from the bytes that were read to the bytes that are sent. What Kafka's clients
take beside it is in `fraud_stream.json`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, model_to_time
from core.results import Results, measured
from solutions.fraud.engine import Events, encode_payment
from solutions.fraud.messages import Payment, encode_score, parse_payment
from solutions.fraud.messages import encode_payment as to_bytes
from solutions.fraud.model import FraudModel
from solutions.fraud.scorer import Scorer

PAYMENTS, WARM_UP = 6_400, 640
STEPS = ("parse", "hash_ids", "observe", "network_and_trees", "decide_and_reasons", "encode")


def some_payments(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [
        to_bytes(
            Payment(
                f"p{i}", 1.6e9 + i, f"c{rng.integers(5_000)}", f"m{rng.integers(10_000)}", float(rng.gamma(2.0, 25.0))
            )
        )
        for i in range(count)
    ]


def profile(model: FraudModel, batch: int) -> dict[str, float]:
    """Microseconds of CPU per payment by step."""
    scorer, spent = Scorer(model, model_version="bench"), dict.fromkeys(STEPS, 0.0)
    raw, before = some_payments(PAYMENTS), 0

    def lap(step: str) -> None:
        nonlocal before
        now = time.process_time_ns()
        spent[step] += (now - before) / 1e3
        before = now

    for begin in range(0, PAYMENTS, batch):
        if begin == WARM_UP:
            spent = dict.fromkeys(STEPS, 0.0)
        before = time.process_time_ns()
        payments = [parse_payment(value) for value in raw[begin : begin + batch]]
        lap("parse")
        keys = np.array([encode_payment(p, model.engine) for p in payments], np.uint64)
        times, amounts = np.array([p.event_time for p in payments]), np.array([p.amount for p in payments])
        lap("hash_ids")
        observed = scorer.engine.observe(Events(keys, times, amounts))
        lap("observe")
        chances = model.probability(observed)
        lap("network_and_trees")
        scores = [
            scorer._decide(p.transaction_id, p.event_time, p.amount, float(q), observed, i)
            for i, (p, q) in enumerate(zip(payments, chances, strict=True))
        ]
        lap("decide_and_reasons")
        for score in scores:
            encode_score(score, 0, begin)
        lap("encode")
    return {step: total / (PAYMENTS - WARM_UP) for step, total in spent.items()}


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    model = FraudModel.load(directory)
    profile(model, 64)  # compiled code is loaded
    with measured() as cost:
        found = {batch: profile(model, batch) for batch in (1, 64)}
    rows: list[dict[str, Any]] = []
    for batch, spent in found.items():
        whole = sum(spent.values())
        for step, value in spent.items():
            print(f"batch {batch:3d}  {step:20s} {value:8.1f} us  {value / whole:5.0%}")
        metrics = {f"{step}_us": {"mean": value} for step, value in spent.items()} | {"total_us": {"mean": whole}}
        rows.append({"model": f"batch_{batch}", "source": "measured", "metrics": metrics})
    data_of = {"name": "simulated payments", "sha256": "", "rows": PAYMENTS}
    Results("fraud", "profile", data_of, [0], "batch_1", cost, rows).write(RESULTS / "fraud_profile.json")


if __name__ == "__main__":
    main(model_to_time(sys.argv[1:]))
