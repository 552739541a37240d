"""Fraud that only the neighbourhood gives away: our own simulator's rings, mules and shared devices.

    python -m benchmarks.fraud_simulator [SEEDS]

Simulated, because no public stream has such fraud with its truth. Every seed draws another town. The fair baseline also
sees what is known of the device itself; the strong one sees payer and payee only, like the published features.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.common import RESULTS, Clock
from core.results import Results, measured, summarise
from solutions.fraud.engine import EngineSettings
from solutions.fraud.features import AGGREGATES, STRONG
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_UNKNOWN
from solutions.fraud.metrics import figures
from solutions.fraud.simulator import SimulatorSettings, simulate
from solutions.fraud.train import Stream, TrainSettings, fit_parts, prepare

DIRECT_DEVICE = ("device_missing", "device_age", "device_payers", "device_frauds", "device_fraud_age")


def one_town(seed: int, progress: Clock) -> dict[str, dict[str, float]]:
    from lightgbm import LGBMClassifier

    from solutions.fraud.evaluate import score_parts

    frame = simulate(SimulatorSettings.graph_fraud(), seed)
    settings = TrainSettings(
        engine=EngineSettings(account_to_account=True), warm_up_days=10.0, slice_days=4.0, keep_genuine=0.3, threads=1
    )
    stream = Stream.encode(frame, settings.engine)
    day_T = (stream.events.time_T - stream.events.time_T[0]) / DAY
    test_T = day_T >= 45
    known_by = float(stream.events.time_T[test_T][0])
    prepared = prepare(stream, (day_T >= 10) & ~test_T, known_by, settings, also_tokens_T=test_T)
    progress(f"town {seed}: {len(frame):,} payments, {int(stream.fraud_T.sum()):,} frauds")
    probability = score_parts(fit_parts(prepared, settings, seed=seed), prepared, test_T)
    x = prepared.observed.x_TF
    known_T = (day_T >= 10) & ~test_T & (prepared.verdict_T != LABEL_UNKNOWN)
    for name, columns in {"lightgbm_strong": STRONG, "lightgbm_strong_and_device": STRONG + DIRECT_DEVICE}.items():
        chosen = [AGGREGATES.index(column) for column in columns]
        model = LGBMClassifier(n_estimators=700, num_leaves=15, learning_rate=0.02, n_jobs=1, verbose=-1)
        model.fit(x[known_T][:, chosen], prepared.verdict_T[known_T] == LABEL_FRAUD)
        probability[name] = model.predict_proba(x[test_T][:, chosen])[:, 1]
    assert stream.scenario_T is not None
    arguments = (stream.payer_T[test_T], stream.events.time_T[test_T], stream.scenario_T[test_T])
    return {name: figures(stream.fraud_T[test_T], p, *arguments) for name, p in probability.items()}


def main(seeds: int) -> None:
    torch.set_num_threads(1)
    progress = Clock()
    with measured() as cost:
        towns = [one_town(seed, progress) for seed in range(seeds)]
    rows = []
    for name in ("lightgbm_strong", "lightgbm_strong_and_device", "lightgbm", "network", "fused"):
        keys = set.intersection(*(set(town[name]) for town in towns))
        metrics = {key: summarise([town[name][key] for town in towns]) for key in sorted(keys)}
        rows.append({"model": name, "source": "measured", "metrics": metrics})
    gains = [town["fused"]["ap"] - town["lightgbm_strong"]["ap"] for town in towns]
    rows.append({"model": "fused_minus_lightgbm_strong", "source": "measured", "metrics": {"ap": summarise(gains)}})
    results = Results(
        task="fraud",
        protocol="simulated graph fraud, train days 10-44, test days 45-59",
        data={"name": "vigil simulator, graph_fraud", "sha256": "", "rows": 0},
        seeds=list(range(seeds)),
        champion="fused",
        cost=cost,
        rows=rows,
    )
    results.print(("ap", "auc", "recall_fpr_0.003", "ece", "ap_scenario_3", "ap_scenario_4", "ap_scenario_5"))
    results.write(RESULTS / "fraud_simulator.json")
    assert np.isfinite(gains).all()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
