"""Figures of a scored window: ranking, recall at a false-positive rate, card precision, calibration.

T scored payments, in order of time.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solutions.fraud.graph_state import DAY

F64 = NDArray[np.float64]


def recall_at_fpr(fraud_T: NDArray[np.bool_], score_T: F64, rate: float) -> float:
    """Share of frauds caught when at most `rate` of the genuine payments are stopped."""
    genuine = np.sort(score_T[~fraud_T])[::-1]
    threshold = genuine[min(int(rate * len(genuine)), len(genuine) - 1)]
    return float((score_T[fraud_T] > threshold).mean())


def card_precision(
    fraud_T: NDArray[np.bool_], score_T: F64, payer_T: NDArray[np.uint64], time_T: F64, k: int = 100
) -> float:
    """Mean over the days of the share of compromised cards among the k with the highest score; caught cards leave.

    Handbook, section 4.5 ("card precision top-k"): a card's score is the highest of its payments of the day.
    """
    day_T = np.floor(time_T / DAY)
    frame = pd.DataFrame({"day": day_T, "payer": payer_T, "score": score_T, "fraud": fraud_T})
    caught: set[int] = set()
    precisions = []
    for _, today in frame.groupby("day"):
        cards = today[~today["payer"].isin(caught)].groupby("payer")[["score", "fraud"]].max()
        top = cards.sort_values("score", ascending=False, kind="stable").head(k)
        hits = top.index[top["fraud"]]
        precisions.append(len(hits) / k)
        caught |= set(hits)
    return float(np.mean(precisions))


def figures(
    fraud_T: NDArray[np.bool_],
    probability_T: F64,
    payer_T: NDArray[np.uint64],
    time_T: F64,
    scenario_T: NDArray[np.int64] | None = None,
) -> dict[str, float]:
    """All metrics of the results contract that need no costs, and the average precision per scenario when known."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from core.calibration import expected_calibration_error

    values = {
        "ap": float(average_precision_score(fraud_T, probability_T)),
        "auc": float(roc_auc_score(fraud_T, probability_T)),
        "cp100": card_precision(fraud_T, probability_T, payer_T, time_T),
        "recall_fpr_0.003": recall_at_fpr(fraud_T, probability_T, 0.003),
        "recall_fpr_0.01": recall_at_fpr(fraud_T, probability_T, 0.01),
        "ece": float(expected_calibration_error(probability_T, fraud_T.astype(float))),
        "brier": float(np.mean((probability_T - fraud_T) ** 2)),
    }
    for scenario in np.unique(scenario_T[fraud_T]) if scenario_T is not None else ():
        chosen = ~fraud_T | (scenario_T == scenario)
        values[f"ap_scenario_{scenario}"] = float(average_precision_score(fraud_T[chosen], probability_T[chosen]))
    return values
