"""One owner of the graph state: payments and labels in, scores out. The same engine serves Kafka, files and tests.

Within a call, payments are observed strictly one after another and scored together; how they are grouped changes no score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.fraud.data import ColumnMapping, InputError, load_payments
from solutions.fraud.decisions import Decider, DecisionPolicy
from solutions.fraud.engine import Events, Labels, Observed, encode_labels, encode_payment, encode_payments
from solutions.fraud.graph_state import LABEL_OUTCOMES, State, hash_id
from solutions.fraud.messages import Label, Payment, Score
from solutions.fraud.model import FraudModel
from solutions.fraud.packing import pack, unpack
from solutions.fraud.reasons import explain
from solutions.fraud.snapshots import Arrays, Contents

REPLAY_CHUNK = 4096
STATE_FORMAT = 1  # of what the arrays of a snapshot mean


class Scorer:
    """Scores payments one by one or in small batches; not thread-safe (one owner per state)."""

    def __init__(self, model: FraudModel, *, model_version: str, policy: DecisionPolicy | None = None) -> None:
        import torch

        torch.set_num_threads(1)  # with two on busy cores p99 went from 1.7 to 260 ms
        self.model = model
        self.model_version = model_version
        self.decider = Decider(policy or DecisionPolicy())
        self.engine = model.new_engine()
        self.shadow: Scorer | None = None  # a challenger that gets the same payments and labels and decides nothing
        self.shadow_scored = self.shadow_differs = 0

    def change_model(self, model: FraudModel, model_version: str) -> None:
        """Go on with another model on the same state; also the way back.

        Raises:
            InputError: its state has other sizes, so it must be rebuilt by a service of its own group.
        """
        _same_state(self.model, model)
        model.fast  # noqa: B018  folded now and not at the first payment
        self.model, self.model_version = model, model_version
        self.engine.high_amount, self.engine.episodes = model.high_amount, model.episodes

    def watch(self, challenger: FraudModel | None) -> None:
        """Let a challenger score in the shadow from now on, on a copy of the state (an empty one if its sizes differ)."""
        self.shadow_scored = self.shadow_differs = 0
        self.shadow = None
        if challenger is not None:
            self.shadow = Scorer(challenger, model_version="shadow", policy=self.decider.policy)
            self._copy_to_shadow()

    def _copy_to_shadow(self) -> None:
        if self.shadow is not None and self.shadow.model.engine == self.model.engine:
            self.shadow.engine.state = State._make(array.copy() for array in self.engine.state)
            self.shadow.decider.restore(self.decider.snapshot())

    def warm_up(self, frame: pd.DataFrame) -> None:
        """Let the payments and the labels of a canonical frame change the state, without scoring them."""
        events = encode_payments(frame, self.model.engine)
        labels = encode_labels(frame, events.key_TE[:, 0])
        self.engine.observe(events, labels, tokens_for=np.zeros(len(events), bool))

    def score(self, payments: Sequence[Payment]) -> list[Score]:
        """Score in order, and let each payment change the state."""
        if not payments:
            return []
        keys = np.array([encode_payment(p, self.model.engine) for p in payments], dtype=np.uint64)
        times, amounts = np.array([p.event_time for p in payments]), np.array([p.amount for p in payments])
        observed = self.engine.observe(Events(keys, times, amounts))
        probability = self.model.probability(observed)
        scores = [
            self._decide(p.transaction_id, p.event_time, p.amount, float(q), observed, i)
            for i, (p, q) in enumerate(zip(payments, probability, strict=True))
        ]
        if self.shadow is not None:
            others = self.shadow.score(payments)
            self.shadow_scored += len(scores)
            self.shadow_differs += sum(o.decision != s.decision for o, s in zip(others, scores, strict=True))
        return scores

    def observe(self, payments: Sequence[Payment], scores: Sequence[Score]) -> None:
        """Let payments that were answered before, or by another worker, change the state as their scoring did."""
        keys = np.array([encode_payment(p, self.model.engine) for p in payments], dtype=np.uint64)
        times, amounts = np.array([p.event_time for p in payments]), np.array([p.amount for p in payments])
        self.engine.observe(Events(keys, times, amounts), tokens_for=np.zeros(len(payments), bool))
        for p, score in zip(payments, scores, strict=True):
            self.decider.decide(score.probability, p.amount, event_time=p.event_time, transaction_id=p.transaction_id)
        if self.shadow is not None:
            self.shadow.observe(payments, scores)

    def apply_labels(self, labels: Sequence[Label]) -> list[str]:
        """Apply labels now; one of applied, duplicate, unknown_payment for each."""
        keys = np.array([hash_id(label.transaction_id, "payment") for label in labels], dtype=np.uint64)
        if self.shadow is not None:
            self.shadow.apply_labels(labels)
        outcomes = self.engine.apply_labels(keys, np.array([label.is_fraud for label in labels], dtype=bool))
        return [LABEL_OUTCOMES[o] for o in outcomes]

    @property
    def kind(self) -> str:
        """Which snapshots fit: those of a state with the same settings, whatever the model."""
        return json.dumps({"state": STATE_FORMAT, **asdict(self.model.engine)}, sort_keys=True)

    def contents(self) -> Contents:
        """The state for a snapshot."""
        return dict(pack(self.engine.state)), {"decider": self.decider.snapshot()}

    def restore(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Go on from `contents`."""
        self.engine.state = unpack(arrays, self.model.engine.state)
        self.decider.restore(values["decider"])
        self._copy_to_shadow()

    def _decide(self, name: str, time: float, amount: float, p: float, observed: Observed, i: int) -> Score:
        decision = self.decider.decide(p, amount, event_time=time, transaction_id=name)
        reasons = () if decision == "allow" else explain(self.model, observed, i)
        return Score(name, time, p, decision, reasons, self.model_version)


def _same_state(now: FraudModel, other: FraudModel) -> None:
    if now.engine != other.engine:
        raise InputError(
            "a model that takes over a running state must have the same engine settings. "
            f"Received: {other.engine}, running: {now.engine}."
        )


def replay_chunks(
    model: FraudModel, events: Events, labels: Labels
) -> Iterator[tuple[slice, Observed, NDArray[np.float64]]]:
    """Observe and score a whole stream, chunk by chunk, with labels arriving in between.

    The next chunk is observed while the last one is scored: no score feeds back into the state.
    """
    engine = model.new_engine()
    done = 0

    def observe(part: slice) -> Observed:
        nonlocal done
        piece = Events(events.key_TE[part], events.time_T[part], events.amount_T[part])
        arrived = int(np.searchsorted(labels.time_T, piece.time_T[-1], side="left"))
        due = slice(done, max(arrived, done))
        done = due.stop
        return engine.observe(piece, Labels(labels.key_T[due], labels.time_T[due], labels.fraud_T[due]))

    parts = [slice(i, min(i + REPLAY_CHUNK, len(events))) for i in range(0, len(events), REPLAY_CHUNK)]
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(observe, parts[0]) if parts else None
        for n, part in enumerate(parts):
            assert following is not None
            observed = following.result()
            following = ahead.submit(observe, parts[n + 1]) if n + 1 < len(parts) else None
            yield part, observed, model.probability(observed, threads=2)


def replay(
    model: FraudModel,
    frame: pd.DataFrame,
    *,
    model_version: str,
    policy: DecisionPolicy | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Scores of a canonical frame, one row per payment, with the fields of `Score`."""
    events = encode_payments(frame, model.engine)
    labels = encode_labels(frame, events.key_TE[:, 0])
    decider = Decider(policy or DecisionPolicy())
    names = frame["transaction_id"].tolist()
    probability_T = np.empty(len(events))
    decisions: list[str] = []
    reasons: list[tuple[str, ...]] = []
    for part, observed, p_T in replay_chunks(model, events, labels):
        probability_T[part] = p_T
        for i, p in enumerate(p_T.tolist()):
            t = part.start + i
            decision = decider.decide(
                p, float(events.amount_T[t]), event_time=float(events.time_T[t]), transaction_id=names[t]
            )
            decisions.append(decision)
            reasons.append(() if decision == "allow" else explain(model, observed, i))
        if progress:
            progress(part.stop, len(events))
    return pd.DataFrame(
        {
            "transaction_id": frame["transaction_id"],
            "event_time": frame["event_time"],
            "probability": probability_T,
            "decision": decisions,
            "reasons": [list(r) for r in reasons],
            "model_version": model_version,
        }
    )


def replay_file(
    transactions: Path,
    columns: str,
    model_dir: Path,
    out: Path,
    label_delay_days: float,
    account_to_account: bool,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Score a file with a saved model and write the scores as parquet or CSV (by suffix)."""
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"`--out` must end in .parquet or .csv. Received: {out.name}.")
    model = FraudModel.load(model_dir)
    if model.engine.account_to_account != account_to_account:
        raise InputError(
            f"the model was trained with account_to_account={model.engine.account_to_account}. "
            f"Received: account_to_account={account_to_account}."
        )
    loaded = load_payments(
        transactions,
        ColumnMapping.parse(columns),
        label_delay=timedelta(days=label_delay_days),
        account_to_account=account_to_account,
    )
    scores = replay(model, loaded.frame, model_version=model_dir.name, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        scores.to_csv(out, index=False)
    else:
        scores.to_parquet(out, index=False)
    return scores
