"""What a mixture of experts brings on a real stream: beside a dense control of equal active width, and without balancing.

    python -m benchmarks.core_moe [SEEDS]         one test fold of the handbook   -> results/core_moe.json
    python -m benchmarks.core_moe rates [SEEDS]   one validation fold, by rate    -> results/core_moe_rates.json

The network alone: its state and tokens are made once and shared by all variants. Rows are written after every seed.
Utilisation is mean / max load over the experts, counted on held-out payments. Times are processor seconds of one thread.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import RESULTS, Clock, handbook
from core.moe import load_report
from core.results import Cost, Results, bootstrap_interval, measured, summarise, weighted_average_precision
from solutions.fraud.graph_state import LABEL_FRAUD
from solutions.fraud.network import NetworkSettings, TemporalGraphNetwork, train_network
from solutions.fraud.prior import Prior
from solutions.fraud.protocols import TEST_STARTS, VALIDATION_STARTS, handbook_folds
from solutions.fraud.train import Prepared, Stream, TrainSettings, prepare

F64 = NDArray[np.float64]
DEFAULT = NetworkSettings()
VARIANTS = {
    "dense": replace(DEFAULT, moe=False),
    "moe_unbalanced": replace(DEFAULT, bias_update_rate=0.0),
    "moe": DEFAULT,
}
RATES = (0.0, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
SINGLES = 300


@dataclass(frozen=True)
class Task:
    """A fold, replayed once: what all variants are trained and tested on."""

    prepared: Prepared
    settings: TrainSettings
    sample: NDArray[np.int64]  # payments that the network is trained on
    test: NDArray[np.int64]
    fraud_T: NDArray[np.bool_]
    payer_T: NDArray[np.uint64]
    prior: Prior

    def inputs(self, chosen: NDArray[np.int64]) -> tuple[Any, Any]:
        slot_T = np.cumsum(self.prepared.token_T) - 1
        return self.prepared.observed.x_TF[chosen], self.prepared.observed.modalities(slot_T[chosen])


def make_task(start: str, progress: Clock) -> tuple[Task, dict[str, Any]]:
    settings = TrainSettings(threads=1)
    loaded = handbook(settings.engine.maturity_days)
    stream = Stream.encode(loaded.frame, settings.engine)
    fold = handbook_folds(stream.events.time_T, stream.fraud_T, stream.payer_T, starts=(start,))[0]
    end = int(np.flatnonzero(fold.test_T)[-1]) + 1
    part, test_T = stream.head(end), fold.test_T[:end]
    progress(f"fold {start}: replaying {end:,} payments")
    prepared = prepare(part, fold.train_T[:end], fold.known_by, settings, also_tokens_T=test_T)
    sample = np.flatnonzero(prepared.token_T & prepared.fit_T)
    prior = Prior.fit(prepared.observed.x_TF[prepared.fit_T], prepared.verdict_T[prepared.fit_T] == LABEL_FRAUD)
    task = Task(prepared, settings, sample, np.flatnonzero(test_T), part.fraud_T, part.payer_T, prior)
    return task, {"name": loaded.name, "sha256": loaded.sha256, "rows": loaded.rows}


def held_out_load(network: TemporalGraphNetwork, inputs: tuple[Any, Any]) -> tuple[F64, Tensor | None]:
    """Logits, and assignments per expert summed over the payments."""
    counts: list[Tensor] = []
    hook = network.backbone.register_forward_hook(
        lambda _module, _inputs, output: counts.append(torch.stack(output.loads).sum(0)) if output.loads else None
    )
    try:
        logit_T = network.logit(*inputs)
    finally:
        hook.remove()
    return logit_T, torch.stack(counts).sum(0) if counts else None


def single_milliseconds(network: TemporalGraphNetwork, inputs: tuple[Any, Any]) -> float:
    """Median of one payment at a time."""
    x_TF, mailboxes = inputs
    seconds = []
    for i in range(SINGLES):
        one = slice(i, i + 1)
        start = time.process_time()
        network.logit(x_TF[one], {role: (token[one], mask[one]) for role, (token, mask) in mailboxes.items()})
        seconds.append(time.process_time() - start)
    return float(np.median(seconds)) * 1000.0


def one_run(task: Task, settings: NetworkSettings, seed: int) -> tuple[dict[str, float], F64]:
    """Train, then measure on the held-out window; also returns the network's logits there."""
    x_TF, mailboxes = task.inputs(task.sample)
    known_T = task.prepared.verdict_T == LABEL_FRAUD
    start = time.process_time()
    network = train_network(
        x_TF,
        mailboxes,
        known_T[task.sample],
        task.prior,
        keep_genuine=task.settings.keep_genuine,
        settings=settings,
        seed=seed,
        progress=lambda _: None,
    )
    trained = time.process_time() - start
    test, target_T = task.inputs(task.test), task.fraud_T[task.test]
    start = time.process_time()
    logit_T, load_E = held_out_load(network, test)
    scored = time.process_time() - start
    values = {
        "ap": weighted_average_precision(target_T, logit_T),
        "train_seconds": trained,
        "batch_us_per_payment": scored / len(task.test) * 1e6,
        "single_ms": single_milliseconds(network, test),
        "parameters": float(sum(p.numel() for p in network.parameters())),
    }
    if load_E is not None:
        report = load_report(load_E)
        values |= {"utilisation": report.utilisation, "load_entropy": report.entropy}
    return values, logit_T


def compare(start: str, variants: dict[str, NetworkSettings], seeds: int, name: str, protocol: str) -> None:
    torch.set_num_threads(1)
    progress = Clock()
    with measured() as total:
        task, data = make_task(start, progress)
    values: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    logits: dict[str, list[F64]] = {variant: [] for variant in variants}
    for seed in range(seeds):
        with measured() as cost:
            for variant, settings in variants.items():  # side by side, so that a busy machine slows all alike
                found, logit_T = one_run(task, settings, seed)
                values[variant].append(found)
                logits[variant].append(logit_T)
                progress(f"seed {seed}, {variant}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
        total = Cost(total.seconds + cost.seconds, total.cpu_seconds + cost.cpu_seconds, cost.peak_rss_mb)
        rows = rows_of(values) + gains(task, logits)
        champion = max(values, key=lambda v: float(np.mean([run["ap"] for run in values[v]])))
        results = Results("core", protocol, data, list(range(seed + 1)), champion, total, rows)
        results.print(("ap", "utilisation", "train_seconds", "batch_us_per_payment", "single_ms"))
        results.write(RESULTS / f"{name}.json")


def rows_of(values: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    return [
        {
            "model": variant,
            "source": "measured",
            "metrics": {key: summarise([run[key] for run in runs]) for key in runs[0]},
        }
        for variant, runs in values.items()
    ]


def gains(task: Task, logits: dict[str, list[F64]]) -> list[dict[str, Any]]:
    """Paired differences of average precision over cards, between the seed means of the mixture and of its controls."""
    mean = {variant: np.mean(found, axis=0) for variant, found in logits.items()}
    target_T, payer_T = task.fraud_T[task.test], task.payer_T[task.test]
    rows = []
    for rival in ("dense", "moe_unbalanced"):
        if rival in mean:
            gain = bootstrap_interval("ap", target_T, mean["moe"], payer_T, against_N=mean[rival])
            metrics = {"ap": {"mean": gain.mean, "low": gain.low, "high": gain.high}}
            rows.append({"model": f"moe_minus_{rival}", "source": "measured", "metrics": metrics})
    return rows


def main(arguments: list[str]) -> None:
    rates = arguments[:1] == ["rates"]
    seeds = int(arguments[-1]) if arguments and arguments[-1].isdigit() else 3
    if rates:
        variants = {f"rate_{rate:g}": replace(DEFAULT, bias_update_rate=rate) for rate in RATES}
        compare(
            VALIDATION_STARTS[0], variants, seeds, "core_moe_rates", f"handbook, validation fold {VALIDATION_STARTS[0]}"
        )
    else:
        compare(TEST_STARTS[0], VARIANTS, seeds, "core_moe", f"handbook, test fold {TEST_STARTS[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
