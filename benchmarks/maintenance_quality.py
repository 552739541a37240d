"""Remaining life on C-MAPSS and failures within days on Azure PdM, with the bar and the arms in the same table.

python -m benchmarks.maintenance_quality FD001|FD002|FD003|FD004|azure [SEEDS]
"""

from __future__ import annotations

import sys

import torch

from benchmarks.common import RESULTS, Clock, data
from solutions.maintenance.evaluate import evaluate_azure, evaluate_cmapss

LIVES = ("rmse_clipped", "rmse", "nasa_score", "nasa_score_cautious", "coverage_90", "width_90")
EVENTS = (
    "ap_24",
    "ap_72",
    "ap_24_72",
    "ece",
    "brier",
    "recall",
    "lead_hours",
    "recall_warnings",
    "lead_hours_warnings",
)


def main(name: str, seeds: int) -> None:
    torch.set_num_threads(1)
    if name == "azure":
        results = evaluate_azure(data("maintenance/azure_pdm"), seeds=seeds, progress=Clock())
        results.print(EVENTS)
    else:
        results = evaluate_cmapss(data("maintenance/cmapss"), name, seeds=seeds, progress=Clock())
        results.print(LIVES)
    results.write(RESULTS / f"maintenance_{name.lower()}.json")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "FD001", int(sys.argv[2]) if len(sys.argv) > 2 else 5)
