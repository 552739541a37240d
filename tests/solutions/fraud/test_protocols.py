"""Folds and figures: the published protocol, cut exactly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from solutions.fraud.graph_state import DAY
from solutions.fraud.metrics import card_precision, recall_at_fpr
from solutions.fraud.protocols import chronological_fold, handbook_folds, long_fold

START = pd.Timestamp("2018-04-01").timestamp()


def stream(days: int = 157, per_day: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    time_T = np.sort(START + rng.uniform(0, days * DAY, days * per_day))
    time_T[0] = START
    return time_T, rng.random(len(time_T)) < 0.02, rng.integers(1, 400, len(time_T)).astype(np.uint64)


def test_handbook_folds_train_test_and_known_cards() -> None:
    time_T, fraud_T, payer_T = stream()
    folds = handbook_folds(time_T, fraud_T, payer_T)
    assert [f.name for f in folds] == ["2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25"]
    day_T = ((time_T - START) // DAY).astype(int)
    for fold in folds:
        s = (pd.Timestamp(fold.name) - pd.Timestamp("2018-04-01")).days
        assert set(day_T[fold.week_T]) == set(range(s, s + 7))
        assert day_T[fold.train_T].max() == s + 6
        assert set(day_T[fold.test_T]) <= set(range(s + 14, s + 21))
        assert fold.known_by == START + (s + 14) * DAY
        for i in range(7):
            known = set(payer_T[fold.week_T & fraud_T])
            known |= set(payer_T[(day_T >= s + 6) & (day_T <= s + 7 + i - 1) & fraud_T])
            assert not known & set(payer_T[fold.test_T & (day_T == s + 14 + i)])


def test_a_short_stream_is_refused_with_advice() -> None:
    time_T, fraud_T, payer_T = stream(days=60)
    with pytest.raises(ValueError, match="Received: 60 days.*--protocol chronological"):
        handbook_folds(time_T, fraud_T, payer_T)
    with pytest.raises(ValueError, match="day 129"):
        long_fold(time_T)


def test_training_ends_before_the_test_begins() -> None:
    time_T, _, _ = stream()
    for fold in (*long_fold(time_T), *chronological_fold(time_T)):
        assert time_T[fold.train_T].max() < time_T[fold.test_T].min()
        assert fold.known_by <= time_T[fold.test_T].min()


def test_recall_at_false_positive_rate() -> None:
    score = np.concatenate([np.linspace(0, 1, 1000), [0.9995, 0.5]])
    fraud = np.concatenate([np.zeros(1000, bool), [True, True]])
    assert recall_at_fpr(fraud, score, 0.003) == 0.5
    assert recall_at_fpr(fraud, score, 0.6) == 1.0


def test_a_caught_card_leaves_the_following_days() -> None:
    time_T = np.array([0.1, 0.2, 0.3, 1.1, 1.2, 1.3]) * DAY
    payer_T = np.array([1, 2, 3, 1, 2, 3], dtype=np.uint64)
    fraud_T = np.array([True, False, False, True, True, False])
    score_T = np.array([0.9, 0.5, 0.1, 0.99, 0.4, 0.3])
    # day 0: card 1 is caught; on day 1 it is gone, and card 2 comes first
    assert card_precision(fraud_T, score_T, payer_T, time_T, k=1) == 1.0
