"""Detection quality on the Fraud Detection Handbook's published stream: four folds, and the long split at two delays.

python -m benchmarks.fraud_quality handbook|long|long_1_day [SEEDS]
"""

from __future__ import annotations

import sys

import torch

from benchmarks.common import RESULTS, Clock, handbook
from solutions.fraud.engine import EngineSettings
from solutions.fraud.evaluate import evaluate
from solutions.fraud.train import TrainSettings

RUNS = {"handbook": ("handbook", 7.0), "long": ("long", 7.0), "long_1_day": ("long", 1.0)}
SHOWN = ("ap", "auc", "cp100", "recall_fpr_0.003", "recall_fpr_0.01", "ece", "brier", "money_saved")


def main(name: str, seeds: int) -> None:
    torch.set_num_threads(1)
    protocol, delay = RUNS[name]
    results = evaluate(
        handbook(delay),
        protocol,
        seeds=seeds,
        settings=TrainSettings(engine=EngineSettings(maturity_days=delay), threads=1),
        label_delay_days=delay,
        progress=Clock(),
        workers=2,
    )
    results.print(SHOWN)
    results.write(RESULTS / f"fraud_{name}.json")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "handbook", int(sys.argv[2]) if len(sys.argv) > 2 else 5)
