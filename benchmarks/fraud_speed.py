"""How fast the scorer is: replay of the published stream, and the cost of one payment at 10 thousand and 1 million nodes.

    python -m benchmarks.fraud_speed [MODEL_DIR]

The baseline in the same run is LightGBM alone on the same engine and aggregates: what the network adds in cost is the ratio.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, Clock, fill, handbook, model_to_time
from core.results import Results, measured
from solutions.fraud.engine import Engine, EngineSettings, Events, encode_labels, encode_payments
from solutions.fraud.graph_state import StateSettings, state_bytes_per_node
from solutions.fraud.messages import Payment
from solutions.fraud.model import FraudModel
from solutions.fraud.packing import unpack
from solutions.fraud.scorer import Scorer, replay_chunks
from solutions.fraud.snapshots import read_snapshot, write_snapshot

REPLAYED = 300_000
SINGLES = 3_000
SOAK_SECONDS = float(os.environ.get("VIGIL_SOAK_SECONDS", "60"))


def replay_rate(model: FraudModel, events: Events, labels: object) -> tuple[float, float]:
    """Events per second with everything, and with LightGBM alone."""
    start = time.perf_counter()
    for _ in replay_chunks(model, events, labels):  # type: ignore[arg-type]
        pass
    whole = len(events) / (time.perf_counter() - start)
    engine = model.new_engine()
    start = time.perf_counter()
    for begin in range(0, len(events), 4096):
        part = slice(begin, begin + 4096)
        piece = Events(events.key_TE[part], events.time_T[part], events.amount_T[part])
        observed = engine.observe(piece, tokens_for=np.zeros(len(piece), bool))
        model.boosting.logit(observed.x_TF, 2)
    return whole, len(events) / (time.perf_counter() - start)


def latency(model: FraudModel, nodes: int) -> dict[str, float]:
    """Milliseconds of score + decision + reasons, one payment at a time, with `nodes` endpoints in the state."""
    rng = np.random.default_rng(1)
    state = StateSettings(nodes=max(1 << 15, 1 << int(np.ceil(np.log2(2 * nodes)))), mailbox=128, pending=1 << 21)
    settings = EngineSettings(state=state, maturity_days=model.engine.maturity_days)
    scorer = Scorer(model, model_version="bench")
    scorer.engine = Engine(settings, high_amount=model.high_amount, episodes=model.episodes)
    last = fill(scorer.engine, nodes)
    seconds = []
    for i in range(SINGLES):
        payment = Payment(f"p{i}", last + i, f"c{rng.integers(nodes // 3)}", f"m{rng.integers(nodes)}", 25.0)
        start = time.perf_counter()
        scorer.score([payment])
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.quantile(np.array(seconds[200:]) * 1000.0, [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)} | snapshot_seconds(scorer)


def snapshot_seconds(scorer: Scorer) -> dict[str, float]:
    """How long the state takes to write (by a child, beside the scoring) and to read back (at a restart)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "snapshot"
        start = time.perf_counter()
        write_snapshot(path, scorer.contents())
        written = time.perf_counter()
        arrays, _ = read_snapshot(path)
        unpack(arrays, scorer.engine.settings.state)
        read = time.perf_counter()
        size = path.stat().st_size / 1e6
    return {"snapshot_write_s": written - start, "snapshot_read_s": read - written, "snapshot_mb": size}


def lightgbm_loop(model: FraudModel) -> dict[str, float]:
    """The plain way, one payment at a time: the same aggregates, LightGBM's own prediction, no decision, no reasons."""
    engine, rng, seconds = model.new_engine(), np.random.default_rng(0), []
    for i in range(SINGLES):
        keys = np.array([[i + 1, rng.integers(1, 3000), rng.integers(3001, 9000), 0]], np.uint64)
        start = time.perf_counter()
        observed = engine.observe(Events(keys, np.array([1.6e9 + i]), np.array([25.0])), tokens_for=np.zeros(1, bool))
        model.boosting.logit(observed.x_TF)
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.quantile(np.array(seconds[200:]) * 1000.0, [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def soak(model: FraudModel) -> float:
    """Growth of the resident memory over a soak, as a share, after the state has filled."""
    scorer, rng = Scorer(model, model_version="soak"), np.random.default_rng(0)
    payments = [
        Payment(f"p{i}", 1.6e9 + i, f"c{rng.integers(2000)}", f"m{rng.integers(4000)}", 25.0) for i in range(200_000)
    ]
    own = Path("/proc/self/statm")
    begin, settled, i = time.monotonic(), 0, 0
    while (now := time.monotonic() - begin) < SOAK_SECONDS or not settled:
        scorer.score([payments[i % len(payments)]])
        i += 1
        if not settled and now > 0.3 * SOAK_SECONDS:
            settled = int(own.read_text().split()[1])
    return int(own.read_text().split()[1]) / settled - 1.0


def help_seconds() -> float:
    """Best of five starts of `vigil --help`."""
    program = Path(sys.executable).parent / "vigil"
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([program, "--help"], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start)
    return best


def main(directory: Path) -> None:
    torch.set_num_threads(2)
    progress = Clock()
    loaded = handbook(7.0)
    with measured() as cost:
        frame = loaded.frame.head(REPLAYED)
        model = FraudModel.load(directory)
        events = encode_payments(frame, model.engine)
        progress("replay")
        whole, trees = replay_rate(model, events, encode_labels(frame, events.key_TE[:, 0]))
        torch.set_num_threads(1)
        sizes = {}
        for nodes in (10_000, 1_000_000):
            progress(f"one at a time, {nodes:,} nodes")
            sizes[nodes] = latency(model, nodes)
        progress("the plain way")
        plain = lightgbm_loop(model)
        progress("soak")
        growth = soak(model)
    small, large = sizes[10_000], sizes[1_000_000]
    metrics = {
        "replay_events_per_second": whole,
        "replay_events_per_second_lightgbm_only": trees,
        "cost_ratio_to_lightgbm_only": trees / whole,
        "p50_ms_10k_nodes": small["p50_ms"],
        "p99_ms_10k_nodes": small["p99_ms"],
        "p50_ms_1m_nodes": large["p50_ms"],
        "p99_ms_1m_nodes": large["p99_ms"],
        "cost_ratio_1m_to_10k": large["p50_ms"] / small["p50_ms"],
        "p50_ms_lightgbm_alone": plain["p50_ms"],
        "p99_ms_lightgbm_alone": plain["p99_ms"],
        "snapshot_write_seconds_1m_nodes": large["snapshot_write_s"],
        "snapshot_read_seconds_1m_nodes": large["snapshot_read_s"],
        "snapshot_mb_1m_nodes": large["snapshot_mb"],
        "soak_rss_growth": growth,
        "bytes_per_node": state_bytes_per_node(model.engine.state),
        "help_seconds": help_seconds(),
    }
    row = {"model": "fused", "source": "measured", "metrics": {k: {"mean": float(v)} for k, v in metrics.items()}}
    data = {"name": loaded.name, "sha256": loaded.sha256, "rows": REPLAYED}
    results = Results("fraud", "speed", data, [0], "fused", cost, [row])
    for name, value in metrics.items():
        print(f"{name:42s} {value:12,.3f}")
    results.write(RESULTS / "fraud_speed.json")


if __name__ == "__main__":
    main(model_to_time(sys.argv[1:]))
