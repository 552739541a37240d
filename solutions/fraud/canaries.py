"""Leakage canaries: changes to a stream that must, or must not, change what a payment's score is made of.

own label     flipping a payment's own label leaves its aggregates and tokens as they were
future        shuffling everything after a moment leaves everything before it as it was
late labels   labels that arrive later make the champion worse, not better (a leak would not notice)
random labels a model trained on shuffled labels ranks no better than chance
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from solutions.fraud.boosting import Boosting
from solutions.fraud.engine import Engine, Observed, encode_labels, encode_payments
from solutions.fraud.graph_state import LABEL_FRAUD
from solutions.fraud.prior import Prior
from solutions.fraud.train import Prepared, TrainSettings

LATER = pd.Timedelta(days=14)
CHANCE = 3.0  # a shuffled model may reach this many times the share of frauds


@dataclass(frozen=True)
class Canary:
    """`ok`: alive, nothing leaks. `figure`: what was measured, said in `meaning`."""

    name: str
    ok: bool
    figure: float
    meaning: str


def _observe(frame: pd.DataFrame, settings: TrainSettings, prepared: Prepared) -> Observed:
    engine = Engine(settings.engine, high_amount=prepared.high_amount, episodes=prepared.episodes)
    events = encode_payments(frame, settings.engine)
    tokens_for = np.zeros(len(frame), bool)
    tokens_for[-2000:] = True
    return engine.observe(events, encode_labels(frame, events.key_TE[:, 0]), tokens_for=tokens_for)


def _difference(a: Observed, b: Observed, rows: slice) -> float:
    return float(np.abs(a.x_TF[rows] - b.x_TF[rows]).max(initial=0.0))


def run_canaries(
    frame: pd.DataFrame,
    settings: TrainSettings,
    prepared: Prepared,
    score: Callable[[Observed, np.ndarray], float],
) -> list[Canary]:
    """Run all canaries on the last part of a stream.

    Args:
        frame: canonical, the stream that `prepared` was made from. score: average precision of a trained model on
            aggregates of the rows whose mask is given.
    """
    rng = np.random.default_rng(0)
    n = len(frame)
    whole = _observe(frame, settings, prepared)

    flipped = frame.copy()
    target = n - 1 - int(rng.integers(500))
    column = flipped.columns.get_loc("is_fraud")
    flipped.iloc[target, column] = 1 - int(flipped.iloc[target, column] == 1)
    flipped.iloc[target, flipped.columns.get_loc("label_time")] = frame["event_time"].iat[target]
    own = _difference(whole, _observe(flipped, settings, prepared), slice(target, target + 1))

    cut = int(0.9 * n)
    later = frame.copy()
    order = np.append(np.arange(cut), cut + rng.permutation(n - cut))
    for name in ("payer", "payee", "amount", "is_fraud"):
        later[name] = frame[name].to_numpy()[order]
    # labels of payments before the cut are not the future of the state, those after it are
    future = _difference(whole, _observe(later, settings, prepared), slice(0, cut))

    test_T = np.zeros(n, bool)
    test_T[cut:] = True
    delayed = frame.assign(label_time=frame["label_time"] + LATER)
    slow = replace(settings, engine=replace(settings.engine, maturity_days=settings.engine.maturity_days + LATER.days))
    now, then = score(whole, test_T), score(_observe(delayed, slow, prepared), test_T)

    fraud_T = prepared.verdict_T == LABEL_FRAUD
    shuffled = rng.permutation(fraud_T[prepared.fit_T])
    x = prepared.observed.x_TF[prepared.fit_T]
    random = Boosting.train(x, shuffled, Prior.fit(x, shuffled), seed=0, trees=50)
    from sklearn.metrics import average_precision_score

    truth = frame["is_fraud"].to_numpy()[test_T] == 1
    chance = float(average_precision_score(truth, random.logit(whole.x_TF[test_T]))) / max(float(truth.mean()), 1e-9)
    return [
        Canary("own label flipped", own == 0.0, own, "largest change of the payment's own aggregates"),
        Canary("future shuffled", future == 0.0, future, "largest change of any earlier aggregate"),
        Canary("labels 14 days later", then < now, then - now, "change of the average precision"),
        Canary("random labels", chance < CHANCE, chance, "average precision over the share of frauds"),
    ]
