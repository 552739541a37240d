"""Why a payment was stopped, as codes that an analyst can act on.

Evidence is grouped: each group of aggregates is moved to what an ordinary payment has, the boosting part is asked again,
and the groups are ranked by how far its log odds fall. The network reads the same state; its attention is not shown as
a reason, because nothing has proven it to be one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.features import ABSENT, AGGREGATES

if TYPE_CHECKING:
    from solutions.fraud.engine import Observed
    from solutions.fraud.model import FraudModel

LEAST_EFFECT = 0.25  # log odds; below it a group is no reason
MOST_REASONS = 3


@dataclass(frozen=True)
class Group:
    """One kind of evidence: its code, and the aggregates that carry it."""

    code: str
    columns: tuple[str, ...]


GROUPS = (
    Group(
        "AMOUNT_UNUSUAL_FOR_PAYER",
        ("amount", "amount_over_mean", "amount_over_max", "amount_deviation", "amount_ratio", "high_amount"),
    ),
    Group(
        "PAYER_COMPROMISED",
        (
            *("payer_episode", "payer_fraud", "payer_frauds_21d", "payer_frauds_35d", "payer_fraud_age"),
            *("high_3d", "high_7d", "high_14d", "largest_ratio_14d", "second_ratio_14d", "payer_recent_ratio"),
        ),
    ),
    Group(
        "PAYEE_COMPROMISED",
        (
            *("payee_episode", "payee_fraud", "payee_rate_1d", "payee_rate_7d", "payee_rate_30d", "payee_frauds_35d"),
            *("payee_frauds_ever", "payee_fraud_age", "payee_rate_last_10", "run_age", "run_length"),
        ),
    ),
    Group(
        "DEVICE_LINKED_TO_FRAUD",
        (
            *("device_episode", "device_fraud", "device_frauds", "device_linked_frauds", "device_fraud_age"),
            *(
                "payee_device_frauds",
                "payee_device_linked_frauds",
                "payee_device_fraud_age",
                "same_device",
                "device_payers",
            ),
        ),
    ),
    Group(
        "NEIGHBOURS_LINKED_TO_FRAUD",
        (
            *("visitor_risk", "payees_risk", "senders_risk", "co_payers_risk", "co_payers_device_risk"),
            *("payer_as_payee_frauds", "payee_as_payer_frauds"),
        ),
    ),
    Group("MONEY_GOES_ROUND", ("reciprocal", "cycle_of_3", "payer_received_age", "payer_received_share")),
    Group("NEW_ACCOUNT", ("payer_age", "payee_age", "payer_events", "payee_events", "device_age")),
    Group("UNUSUAL_PACE", ("payer_count_1d", "payer_count_7d", "seconds_since_last", "payee_payers_7d")),
    Group("UNUSUAL_TIME", ("weekend", "night")),
)
ORDINARY = {
    **dict.fromkeys(("payee_fraud_age", "payer_fraud_age", "run_age", "device_fraud_age"), ABSENT),
    **{"payee_device_fraud_age": ABSENT, "payer_received_age": ABSENT, "seconds_since_last": 43_200.0},
    **{"amount_over_mean": 1.0, "amount_over_max": 0.4, "amount_ratio": 1.0, "payer_recent_ratio": 1.0},
    **{"largest_ratio_14d": 1.6, "second_ratio_14d": 1.4, "payer_count_1d": 2.0, "payer_count_7d": 10.0},
    **{f"{role}_{kind}": -7.0 for role in ("payer", "payee", "device") for kind in ("episode", "fraud")},
    **dict.fromkeys(("payer_age", "payee_age", "device_age"), 90 * 86400.0),
    **{"payer_events": 100.0, "payee_events": 60.0},
}


def _without(x_F: NDArray[np.float32], group: Group) -> NDArray[np.float32]:
    """The aggregates with a group's evidence taken out: each column at its ordinary value (0 when none is listed)."""
    ordinary = x_F.copy()
    for name in group.columns:
        column = AGGREGATES.index(name)
        if name == "amount":  # the payer's habit
            ordinary[column] = x_F[AGGREGATES.index("usual_amount")]
        else:
            ordinary[column] = ORDINARY.get(name, 0.0)
    any_fraud = AGGREGATES.index("any_fraud")
    parts = [ordinary[AGGREGATES.index(f"{role}_fraud")] for role in ("payer", "payee", "device")]
    survives = np.prod([1.0 / (1.0 + np.exp(p)) for p in parts])
    ordinary[any_fraud] = np.log(max(1.0 - survives, 1e-7) / max(survives, 1e-7))
    return ordinary


def effects(model: FraudModel, x_F: NDArray[np.float32]) -> dict[str, float]:
    """By how much the boosting part's log odds fall without each group of evidence."""
    rows = np.stack([x_F, *(_without(x_F, group) for group in GROUPS)])
    logit = model.fast.boosting(rows)
    return {group.code: float(logit[0] - z) for group, z in zip(GROUPS, logit[1:], strict=True)}


def explain(model: FraudModel, observed: Observed, i: int) -> tuple[str, ...]:
    """At most three reason codes of event `i`, the strongest first; never empty: a stop without a reason is no service."""
    by_effect = sorted(effects(model, observed.x_TF[i]).items(), key=lambda item: -item[1])
    strong = tuple(code for code, effect in by_effect if effect >= LEAST_EFFECT)[:MOST_REASONS]
    return strong or (by_effect[0][0],)
