"""Two workers share four partitions on Apache Kafka: they join, leave and are killed in the middle of rebalances.

    python -m benchmarks.fraud_sharing [MODEL_DIR]

Counts what is lost, repeated or stuck. Then, on the published stream, what sharing costs in quality: average precision of
one owner, of two workers that follow each other (a second, or a minute, behind), and of two that know only what they own.
The model is trained on the first part of the stream; the rows compared come after it, all of them scored by all three.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from benchmarks.common import RESULTS, Clock, handbook, model_to_time, own_topics
from benchmarks.fraud_faults import read_all
from core.results import Results, measured
from solutions.fraud.engine import Events, Labels, encode_labels, encode_payments
from solutions.fraud.messages import Payment, encode_payment
from solutions.fraud.model import FraudModel
from solutions.fraud.stream import Service, StreamSettings, lag
from tests.kafka import some_kafka

PARTITIONS = 4
CHANGES = 20
RATE = 200
SETTLE_SECONDS = (1.0, 4.0)
DAYS = (40, 70)  # of the published stream, for quality; the quick model's labels end before
WARM_UP_DAYS = 30
CHUNK = 4096
POISON_EVERY = 100


def work(settings: StreamSettings, directory: Path, ready: Any) -> None:
    from solutions.fraud.scorer import Scorer

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    service = Service(settings, Scorer(FraudModel.load(directory), model_version="bench"))
    ready.set()
    service.run(lambda: bool(stopping))


def send_steadily(settings: StreamSettings, stop: threading.Event, sent: Counter[str]) -> None:
    """Payments keyed by payer, RATE a second, each with the time when it was due in its name; 1 % that nobody can read."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all", linger_ms=2)
    rng, start, n = np.random.default_rng(0), time.time(), 0
    while not stop.is_set():
        due = start + n / RATE
        time.sleep(max(due - time.time(), 0.0))
        payer = int(rng.integers(2_000))
        value = Payment(
            f"{due:.6f}-{n}", due, f"c{payer}", f"m{rng.integers(500)}", round(float(rng.gamma(2.0, 25.0)), 2)
        )
        producer.send(settings.transactions, value=encode_payment(value), partition=payer % PARTITIONS)
        sent["payments"] += 1
        if n % POISON_EVERY == 7:
            producer.send(settings.transactions, value=f"poison {n}".encode(), partition=payer % PARTITIONS)
            sent["poison"] += 1
        n += 1
    producer.flush()
    producer.close()


class Workers:
    """Processes by name."""

    def __init__(self, settings: StreamSettings, directory: Path) -> None:
        self.settings, self.directory = settings, directory
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["solutions.fraud.scorer", "solutions.fraud.stream", "lightgbm", "kafka"])
        self.running: dict[str, Any] = {}

    def join(self, name: str) -> None:
        ready = self.context.Event()
        process = self.context.Process(
            target=work, args=(replace(self.settings, worker=name), self.directory, ready), daemon=True
        )
        process.start()
        assert ready.wait(240), "the worker did not start"
        self.running[name] = process

    def end(self, name: str, number: int) -> None:
        process = self.running.pop(name)
        os.kill(process.pid, number)
        process.join(60)
        assert not process.is_alive(), "the worker did not stop"


def joins_and_leaves(address: str, directory: Path, data: Path, progress: Clock) -> dict[str, float]:
    settings = own_topics(address, partitions=PARTITIONS, snapshots=data / "state", snapshot_seconds=5.0)
    chance, workers, sent, stop = random.Random(0), Workers(settings, directory), Counter[str](), threading.Event()
    for first in ("a", "b"):
        workers.join(first)
    sender = threading.Thread(target=send_steadily, args=(settings, stop, sent))
    sender.start()
    done = Counter[str]()
    while done["joins"] + done["leaves"] < CHANGES:
        time.sleep(chance.uniform(*SETTLE_SECONDS))
        name_of = chance.choice("ab")
        number = chance.choice((signal.SIGTERM, signal.SIGKILL))
        workers.end(name_of, number)
        done["leaves"] += 1
        done["kills"] += number == signal.SIGKILL
        # at once, or when the others have taken over; and sometimes killed again while the group is changing
        time.sleep(chance.choice((0.0, 0.5, 8.0)))
        workers.join(name_of)
        done["joins"] += 1
        if chance.random() < 0.4:
            time.sleep(chance.uniform(0.0, 0.3))
            workers.end(name_of, signal.SIGKILL)
            done["kills_in_rebalance"] += 1
            workers.join(name_of)
        progress(f"{done['joins'] + done['leaves']} joins and leaves")
    stop.set()
    sender.join()
    deadline = time.monotonic() + 60
    while (waiting := lag(settings)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in list(workers.running):
        workers.end(process, signal.SIGTERM)
    records = read_all(settings, settings.scores)
    scores = Counter(json.loads(r.value)["transaction_id"] for r in records)
    waits = np.array([r.timestamp / 1e3 - float(json.loads(r.value)["transaction_id"].split("-")[0]) for r in records])
    dead = Counter(r.value for r in read_all(settings, settings.dead_letters))
    return {
        "changes": done["joins"] + done["leaves"],
        "joins": done["joins"],
        "leaves": done["leaves"],
        "leaves_by_kill": done["kills"],
        "kills_in_rebalance": done["kills_in_rebalance"],
        "payments": sent["payments"],
        "lost": sent["payments"] - len(scores),
        "duplicated": sum(scores.values()) - len(scores),
        "stuck": waiting,
        "dead_letters_lost": sent["poison"] - len(dead),
        "dead_letters_duplicated": sum(dead.values()) - len(dead),
        "wait_seconds_p50": float(np.quantile(waits, 0.5)),
        "wait_seconds_max": float(waits.max()),
    }


def shared_scores(model: FraudModel, frame: Any, behind: float | None) -> np.ndarray:
    """(T,) probabilities when payers are shared by two workers, each `behind` seconds late with what the other answers.

    None: it never learns it. A worker applies the labels of the payments that it knows.
    """
    events = encode_payments(frame, model.engine)
    labels = encode_labels(frame, events.key_TE[:, 0])
    owner_T = (events.key_TE[:, 1] % np.uint64(PARTITIONS)) >= PARTITIONS // 2
    probability_T = np.full(len(events), np.nan)
    for worker in (False, True):
        mine_T = owner_T == worker
        known = np.flatnonzero(mine_T) if behind is None else np.arange(len(events))
        seen_T = events.time_T + np.where(mine_T, 0.0, behind or 0.0)
        order = known[np.argsort(seen_T[known], kind="stable")]
        engine, applied = model.new_engine(), 0
        for begin in range(0, len(order), CHUNK):
            part = order[begin : begin + CHUNK]
            piece = Events(events.key_TE[part], events.time_T[part], events.amount_T[part])
            arrived = int(np.searchsorted(labels.time_T, seen_T[part[-1]], side="left"))
            due = slice(applied, max(arrived, applied))
            applied = due.stop
            tokens = mine_T[part]
            observed = engine.observe(
                piece, Labels(labels.key_T[due], labels.time_T[due], labels.fraud_T[due]), tokens_for=tokens
            )
            mine = replace(observed, x_TF=observed.x_TF[tokens])
            probability_T[part[tokens]] = model.probability(mine)
    return probability_T


def quality(directory: Path, progress: Clock) -> tuple[dict[str, float], dict[str, Any]]:
    """Average precision by way of sharing, and what it was measured on."""
    loaded = handbook(7.0)
    day_T = (loaded.frame["event_time"] - loaded.frame["event_time"].iat[0]).dt.days.to_numpy()
    frame = loaded.frame[(day_T >= DAYS[0] - WARM_UP_DAYS) & (day_T < DAYS[1])].reset_index(drop=True)
    rated_T = day_T[(day_T >= DAYS[0] - WARM_UP_DAYS) & (day_T < DAYS[1])] >= DAYS[0]
    model, found = FraudModel.load(directory), {}
    fraud_T = frame["is_fraud"].to_numpy() == 1
    for name, behind in (("one_owner", 0.0), ("followed_1s", 1.0), ("followed_60s", 60.0), ("split", None)):
        progress(f"quality: {name}")
        p_T = shared_scores(model, frame, behind)
        found[name] = float(average_precision_score(fraud_T[rated_T], p_T[rated_T]))
    return found, {"name": loaded.name, "sha256": loaded.sha256, "rows": int(rated_T.sum())}


def main(directory: Path) -> None:
    progress = Clock()
    with measured() as cost, tempfile.TemporaryDirectory() as data, some_kafka(Path(data)) as address:
        counts = joins_and_leaves(address, directory, Path(data), progress)
        found, data_of = quality(directory, progress)
    rows: list[dict[str, Any]] = []
    for name, ap in found.items():
        figures = {"ap": ap} | (
            counts if name == "followed_1s" else {}
        )  # the counts are of real workers on a real broker
        rows.append(
            {"model": name, "source": "measured", "metrics": {k: {"mean": float(v)} for k, v in figures.items()}}
        )
        for key, value in figures.items():
            print(f"{name:14s} {key:24s} {value:12,.3f}")
    Results("fraud", "sharing", data_of, [0], "followed_1s", cost, rows).write(RESULTS / "fraud_sharing.json")


if __name__ == "__main__":
    main(model_to_time(sys.argv[1:]))
