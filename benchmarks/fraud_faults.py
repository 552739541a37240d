"""Kills the scorer with SIGKILL again and again, on Apache Kafka: what is lost, what is repeated, which scores change.

    python -m benchmarks.fraud_faults [MODEL_DIR] [KILLS]

A third of the kills falls between produce and commit, a third into a snapshot, a third anywhere. The real model scores; the
uninterrupted run that its scores are compared with follows the same order of records, read from the changelog. Then one
restart with a million nodes in the state and half a minute of payments after the newest snapshot. Kills in the middle of a
rebalance: `fraud_sharing`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, Clock, fill, model_to_time, own_topics
from core.results import Results, measured
from solutions.fraud.changelog import read_changelog
from solutions.fraud.graph_state import StateSettings
from solutions.fraud.messages import Label, Payment, encode_label, encode_payment, parse_label, parse_payment
from solutions.fraud.model import FraudModel
from solutions.fraud.stream import Service, StreamSettings
from tests.kafka import some_kafka

PARTITIONS = 3
PER_LIFE = 150  # payments between kills, about
NODES = 1_000_000
TAIL_RATE, TAIL = 1_500, 45_000  # payments a second, and in the half minute between snapshots
POINTS = ("produced", "snapshot", "anywhere")


def live(settings: StreamSettings, directory: Path, point: str, count: int, pipe: Any) -> None:
    """One life of the scorer, ended by itself at `point` the `count`th time it comes by, or by others."""
    from solutions.fraud.scorer import Scorer

    began = time.monotonic()
    scorer = Scorer(FraudModel.load(directory), model_version="bench")
    loaded = time.monotonic()
    service = Service(settings, scorer)
    pipe.send({"load": loaded - began, "recovery": time.monotonic() - loaded, "rebuilt": service.served.rebuilt})
    me, left = os.getpid(), [count]
    producer = service.transactions._writer._producer
    commit, contents = producer.commit_transaction, scorer.contents

    def dying_commit() -> None:
        if point == "produced":
            producer.flush()
            left[0] -= 1
            if left[0] == 0:
                os.kill(me, signal.SIGKILL)
        commit()

    def dying_contents() -> Any:
        os.kill(me, signal.SIGKILL)  # the child that writes lives on for a moment
        return contents()

    producer.commit_transaction = dying_commit
    if point == "snapshot":
        scorer.contents = dying_contents  # type: ignore[method-assign]
    service.run(until_idle=3.0 if point == "never" else None)


def send_all(settings: StreamSettings, count: int) -> int:
    """Payments over all partitions, labels of some of them, and 1 % that nobody can read; returns how many of the last."""
    from kafka import KafkaProducer

    rng, start = np.random.default_rng(3), 1_714_557_600.0
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers, linger_ms=20, acks="all")
    poison = 0
    for n in range(count):
        when = start + 60.0 * n
        payer, payee = f"c{rng.integers(300)}", f"m{rng.integers(150)}"
        value = encode_payment(Payment(f"t{n}", when, payer, payee, round(float(rng.gamma(2.0, 40.0)), 2)))
        producer.send(settings.transactions, value=value, partition=n % PARTITIONS)
        if n % 100 == 7:
            poison += 1
            producer.send(settings.transactions, value=f"poison {n}".encode(), partition=n % PARTITIONS)
        if n % 20 == 3:
            label = encode_label(Label(f"t{n}", True, when + 600.0, "chargeback"))
            producer.send(settings.labels, value=label, partition=0)
    producer.flush()
    producer.close()
    return poison


def read_all(settings: StreamSettings, topic: str) -> list[Any]:
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        group_id=None,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    records: list[Any] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        records += [r for part in consumer.poll(timeout_ms=300).values() for r in part]
        if all((consumer.position(tp) or 0) >= (consumer.highwater(tp) or 1 << 62) for tp in partitions):
            break
    consumer.close()
    return records


def uninterrupted(settings: StreamSettings, directory: Path) -> dict[str, float]:
    """Probability of every payment when one scorer takes the records in the order of the markers, without a break."""
    from solutions.fraud.scorer import Scorer

    raw = {
        (topic, r.partition, r.offset): r.value
        for topic in (settings.transactions, settings.labels)
        for r in read_all(settings, topic)
    }
    scorer = Scorer(FraudModel.load(directory), model_version="bench")
    scores: dict[str, float] = {}
    for marker in read_changelog(settings, 0):
        for place in marker.applied:
            if place[0] == settings.labels:
                scorer.apply_labels([parse_label(raw[place])])
            else:
                [score] = scorer.score([parse_payment(raw[place])])
                scores.setdefault(score.transaction_id, round(score.probability, 6))
    return scores


def recovery_of_a_large_state(address: str, directory: Path, data: Path) -> dict[str, float]:
    """Seconds from the start of a service until it serves again: load the snapshot, follow the markers after it."""
    from kafka import KafkaProducer

    from solutions.fraud.scorer import Scorer

    model = FraudModel.load(directory)
    state = StateSettings(nodes=1 << 21, mailbox=128, pending=1 << 21)
    model = replace(model, engine=replace(model.engine, state=state))
    settings = own_topics(address, snapshots=data / "large", snapshot_seconds=3_600.0)
    scorer = Scorer(model, model_version="bench")
    fill(scorer.engine, NODES)
    service = Service(settings, scorer)
    rng, now = np.random.default_rng(5), time.time()
    producer = KafkaProducer(bootstrap_servers=address, linger_ms=20, acks="all")

    def send(first: int, last: int) -> None:
        for n in range(first, last):
            payment = Payment(
                f"r{n}", now + n / TAIL_RATE - 3_600.0, f"c{rng.integers(10**6)}", f"m{rng.integers(10**6)}", 25.0
            )
            producer.send(settings.transactions, value=encode_payment(payment))
        producer.flush()

    send(0, 1_000)
    service.run(max_records=1_000)  # ends with a snapshot
    service = Service(settings, scorer)
    send(1_000, 1_000 + TAIL)
    while service.served.payments < TAIL:
        service.step()
    service.settle()
    service._failed = True  # as if killed: no snapshot at the end
    service.close()
    del scorer, service
    began = time.monotonic()
    service = Service(settings, Scorer(model, model_version="bench"))
    seconds = time.monotonic() - began
    rebuilt = service.served.rebuilt
    service.close()
    return {"recovery_1m_nodes_seconds": seconds, "recovery_1m_nodes_tail": rebuilt}


def main(directory: Path, kills: int) -> None:
    progress = Clock()
    random_of = random.Random(0)
    context = multiprocessing.get_context("forkserver")  # 200 lives would import for half an hour
    modules = ["solutions.fraud.scorer", "solutions.fraud.stream", "solutions.fraud.network", "lightgbm", "kafka"]
    context.set_forkserver_preload(modules)
    with measured() as cost, tempfile.TemporaryDirectory() as data, some_kafka(Path(data)) as address:
        settings = own_topics(
            address, partitions=PARTITIONS, snapshots=Path(data) / "snapshots", snapshot_seconds=0.3, max_records=32
        )
        count = kills * PER_LIFE
        poison = send_all(settings, count)
        recoveries, done = [], Counter[str]()
        for n in range(kills + 1):
            point = "never" if n == kills else POINTS[n % len(POINTS)]
            here, there = context.Pipe()
            process = context.Process(
                target=live, args=(settings, directory, point, random_of.randint(1, 6), there), daemon=True
            )
            process.start()
            there.close()
            assert here.poll(120), "the scorer did not start"
            recoveries.append(here.recv()["recovery"])
            if point == "anywhere":
                time.sleep(random_of.uniform(0.0, 0.4))
                process.kill()
            process.join(600 if point == "never" else 60)
            if process.is_alive():  # nothing was left to die for
                process.kill()
                process.join()
            done[point] += process.exitcode == -signal.SIGKILL
            if n % 10 == 9:
                progress(f"{n + 1} kills")
        progress("compare with the uninterrupted run")
        scores = [json.loads(r.value) for r in read_all(settings, settings.scores)]
        seen = Counter(score["transaction_id"] for score in scores)
        wanted = uninterrupted(settings, directory)
        dead = Counter(r.value for r in read_all(settings, settings.dead_letters))
        metrics = {
            "kills": sum(done.values()),
            **{f"kills_{point}": done[point] for point in POINTS},
            "payments": count,
            "lost": count - len(seen),
            "duplicated": sum(seen.values()) - len(seen),
            "scores_changed": sum(wanted.get(s["transaction_id"]) != s["probability"] for s in scores),
            "dead_letters_lost": poison - len(dead),
            "dead_letters_duplicated": sum(dead.values()) - len(dead),
            "recovery_seconds_median": float(np.median(recoveries)),
            "recovery_seconds_max": max(recoveries),
        }
        progress("restart with a million nodes")
        metrics |= recovery_of_a_large_state(address, directory, Path(data))
    for key, value in metrics.items():
        print(f"{key:28s} {value:12,.3f}")
    row = {"model": "fused", "source": "measured", "metrics": {k: {"mean": float(v)} for k, v in metrics.items()}}
    data_of = {"name": "simulated payments", "sha256": "", "rows": count}
    Results("fraud", "faults", data_of, [0], "fused", cost, [row]).write(RESULTS / "fraud_faults.json")


if __name__ == "__main__":
    numbers = [word for word in sys.argv[1:] if word.isdigit()]
    main(model_to_time([word for word in sys.argv[1:] if not word.isdigit()]), int(numbers[0]) if numbers else 200)
