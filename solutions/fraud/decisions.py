"""From a probability and an amount to allow, step up or block: the cheapest action, within the capacity to review.

Expected cost of each action, in the currency of the amount, with p the calibrated probability:

    allow    p * (amount + chargeback_fee)
    step_up  friction + p * (1 - step_up_success) * (amount + chargeback_fee)
    block    review_cost + (1 - p) * insult_fraction * amount

Blocked payments never yield a label, so a fixed share of them, chosen by a hash of the transaction id, is only stepped up.
The default costs are examples: an operator sets their own.

N payments.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Decision = Literal["allow", "step_up", "block"]
ACTIONS: tuple[Decision, ...] = ("allow", "step_up", "block")
DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class DecisionPolicy:
    """Costs in the currency of the amount. reviews_per_day caps step-ups and blocks together (None: no cap)."""

    chargeback_fee: float = 15.0
    friction: float = 2.0
    step_up_success: float = 0.85  # share of frauds that a challenge stops
    review_cost: float = 4.0
    insult_fraction: float = 0.3  # of a wrongly blocked amount: margin and goodwill
    reviews_per_day: int | None = None
    exploration: float = 0.02

    def __post_init__(self) -> None:
        if min(self.chargeback_fee, self.friction, self.review_cost, self.insult_fraction) < 0.0:
            raise ValueError(f"costs must be >= 0. Received: {self}.")
        if not 0.0 <= self.step_up_success <= 1.0 or not 0.0 <= self.exploration <= 1.0:
            raise ValueError(f"`step_up_success` and `exploration` must be in [0, 1]. Received: {self}.")
        if self.reviews_per_day is not None and self.reviews_per_day < 1:
            raise ValueError(f"`reviews_per_day` must be >= 1 or None. Received: {self.reviews_per_day}.")


def expected_costs(probability_N: F64, amount_N: F64, policy: DecisionPolicy) -> F64:
    """(N, 3) expected cost of ACTIONS."""
    loss_N = amount_N + policy.chargeback_fee
    allow = probability_N * loss_N
    step_up = policy.friction + probability_N * (1.0 - policy.step_up_success) * loss_N
    block = policy.review_cost + (1.0 - probability_N) * policy.insult_fraction * amount_N
    return np.stack([allow, step_up, block], axis=1)


def decide(probability_N: F64, amount_N: F64, *, policy: DecisionPolicy) -> NDArray[np.int64]:
    """Index into ACTIONS of the cheapest action of each payment, without cap or exploration."""
    return np.asarray(expected_costs(probability_N, amount_N, policy).argmin(axis=1))


def money_saved(
    action_N: NDArray[np.int64], amount_N: F64, fraud_N: NDArray[np.bool_], *, policy: DecisionPolicy
) -> float:
    """Realised saving against allowing everything, in the currency of the amount: frauds stopped less what stopping cost."""
    loss_N = amount_N + policy.chargeback_fee
    cost = np.where(
        action_N == 0,
        fraud_N * loss_N,
        np.where(
            action_N == 1,
            policy.friction + fraud_N * (1.0 - policy.step_up_success) * loss_N,
            policy.review_cost + ~fraud_N * policy.insult_fraction * amount_N,
        ),
    )
    return float((fraud_N * loss_N).sum() - cost.sum())


@dataclass
class Decider:
    """Decisions one at a time, with the cap and the exploration slice. Its state is the reviews of the current day."""

    policy: DecisionPolicy
    day: int = field(default=-1)
    reviews: int = field(default=0)

    def decide(self, probability: float, amount: float, *, event_time: float, transaction_id: str) -> Decision:
        """`event_time` in Unix seconds. A late payment counts on the day that is open."""
        today = int(event_time // DAY)
        if today > self.day:
            self.day, self.reviews = today, 0
        loss = amount + self.policy.chargeback_fee
        allow = probability * loss
        step_up = self.policy.friction + probability * (1.0 - self.policy.step_up_success) * loss
        block = self.policy.review_cost + (1.0 - probability) * self.policy.insult_fraction * amount
        cap = self.policy.reviews_per_day
        if allow <= min(step_up, block) or (cap is not None and self.reviews >= cap):
            return "allow"
        self.reviews += 1
        if block < step_up and not self._explores(transaction_id):
            return "block"
        return "step_up"

    def _explores(self, transaction_id: str) -> bool:
        digest = hashlib.blake2b(transaction_id.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") < self.policy.exploration * 2**32
