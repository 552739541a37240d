"""Which payments a model is trained on, which it is tested on, and when each label is known.

"handbook": the Fraud Detection Handbook's prequential protocol (train 7 days, delay 7, test 7; Le Borgne et al. 2022,
chapters 3 and 5), with the cards that are already known to be compromised left out of the test.
"long": train labels of days 40-121, test from day 129 to the end.
"chronological": 70/15/15 by time, for any stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.fraud.data import InputError
from solutions.fraud.graph_state import DAY

TEST_STARTS = ("2018-08-15", "2018-08-08", "2018-08-01", "2018-07-25")
VALIDATION_STARTS = ("2018-07-11", "2018-07-04", "2018-06-27", "2018-06-20")
WEEK = 7
WARM_UP_DAYS = 37  # 30 days of the longest window and 7 of delay: before, the aggregates are not themselves yet
PROTOCOLS = ("handbook", "long", "chronological")


@dataclass(frozen=True)
class Fold:
    """Masks over the stream's payments (T). `known_by`: Unix seconds; later labels do not exist for training."""

    name: str
    train_T: NDArray[np.bool_]
    week_T: NDArray[np.bool_]  # the book's own one-week training window
    test_T: NDArray[np.bool_]
    known_by: float


def _days(time_T: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    first = np.floor(time_T.min() / DAY)
    return (np.floor(time_T / DAY) - first).astype(np.int64), first * DAY


def handbook_folds(
    time_T: NDArray[np.float64],
    fraud_T: NDArray[np.bool_],
    payer_T: NDArray[np.uint64],
    *,
    starts: tuple[str, ...] = TEST_STARTS,
    delay: int = WEEK,
) -> list[Fold]:
    """Four weekly folds; training uses every label from day 37 to the end of the book's training week."""
    day_T, origin = _days(time_T)
    folds = []
    for start in starts:
        s = round((pd.Timestamp(start).timestamp() - origin) / DAY)
        first_test = s + WEEK + delay
        if s < WARM_UP_DAYS or first_test + WEEK - 1 > day_T.max():
            raise InputError(
                f"the handbook protocol needs payments from 37 days before {start} to {WEEK + delay + WEEK} days after it. "
                f"Received: {len(np.unique(day_T))} days from {pd.Timestamp(origin, unit='s'):%Y-%m-%d}. "
                "Use `--protocol chronological` for another stream."
            )
        week_T = (day_T >= s) & (day_T < s + WEEK)
        known = set(payer_T[week_T & fraud_T].tolist())
        test_T = np.zeros(len(day_T), bool)
        for i in range(WEEK):
            known |= set(payer_T[(day_T == s + WEEK + i - 1) & fraud_T].tolist())
            today = np.flatnonzero(day_T == first_test + i)
            test_T[today[~np.isin(payer_T[today], np.fromiter(known, np.uint64, len(known)))]] = True
        train_T = (day_T >= WARM_UP_DAYS) & (day_T < s + WEEK)
        folds.append(Fold(start, train_T, week_T, test_T, origin + first_test * DAY))
    return folds


def long_fold(time_T: NDArray[np.float64], *, delay_days: float = 7.0) -> list[Fold]:
    """Train on the labels of days 40-121, test from day 129."""
    day_T, origin = _days(time_T)
    if day_T.max() < 129:
        raise InputError(f"the long protocol tests from day 129. Received: {day_T.max() + 1} days; use chronological.")
    train_T = (day_T >= 40) & (day_T <= 121)
    week_T = (day_T > 121 - WEEK) & (day_T <= 121)
    return [Fold("day 129", train_T, week_T, day_T >= 129, origin + 129 * DAY)]


def chronological_fold(time_T: NDArray[np.float64]) -> list[Fold]:
    """70/15/15 by time: the middle part is for choosing and calibrating, so training ends at 85 % with what is known then."""
    n = len(time_T)
    train_T, test_T = np.zeros(n, bool), np.zeros(n, bool)
    train_T[: int(0.85 * n)] = True
    test_T[int(0.85 * n) :] = True
    week_T = train_T & (time_T >= time_T[int(0.85 * n)] - WEEK * DAY)
    return [Fold("last 15 %", train_T, week_T, test_T, float(time_T[int(0.85 * n)]))]
