"""Allow, step up or block: the action with the least expected cost, within the reviews that a day has room for.

With probability p of fraud and amount a, fee, friction and so on from the policy (Bayes minimum risk with costs that
depend on the example: Elkan, IJCAI 2001; Correa Bahnsen et al., ICMLA 2013):

    allow     p (a + fee)
    step_up   friction + friction_fraction a (1 - p) + p (1 - success) (a + fee)
    block     (1 - p) (insult + insult_fraction a)
    and review_cost on top of every action that a reviewer looks at

A review is spent where it gains most. Its price starts the day at the gain of yesterday's last affordable one and falls
linearly to zero at midnight (UTC), so that a morning's small gains do not use up the room for the evening's large ones
and nothing is left over. When there is no room the best action that needs no reviewer is taken.

Blocked payments never yield a label. So a small share of would-be blocks, told by a hash of the transaction id and
hence the same after a restart, is let through as `explore_as`, without using up reviews.

N payments.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Decision = Literal["allow", "step_up", "block"]
ACTIONS: tuple[Decision, ...] = ("allow", "step_up", "block")
ALLOW, STEP_UP, BLOCK = 0, 1, 2
SECONDS_PER_DAY = 86_400.0
FRACTIONS = ("friction_fraction", "insult_fraction", "step_up_success", "exploration_fraction")

F64 = NDArray[np.float64]
Value = TypeVar("Value", float, F64)


@dataclass(frozen=True, kw_only=True)
class DecisionPolicy:
    """Costs in the currency of the amounts. All defaults are examples that the operator must replace by own figures.

    Args:
        chargeback_fee: per fraud that goes through, on top of its amount; processors list 15 to 100, Stripe 15 USD.
        friction, friction_fraction: per challenge, and of the amount, for customers who give up (genuine ones only).
        step_up_success: P(the challenge stops a fraudster).
        insult, insult_fraction: per genuine payment that is blocked, and of its amount (margin and goodwill).
        review_cost: a reviewer's time for one decision. reviewed: the actions that need one.
        review_capacity_per_day: None is without limit.
        exploration_fraction: of would-be blocks that become `explore_as`. exploration_salt: another one, another slice.
    """

    chargeback_fee: float = 15.0
    friction: float = 1.0
    friction_fraction: float = 0.02
    step_up_success: float = 0.85
    insult: float = 10.0
    insult_fraction: float = 0.2
    review_cost: float = 3.0
    reviewed: tuple[Decision, ...] = ("block",)
    review_capacity_per_day: int | None = 200
    exploration_fraction: float = 0.02
    explore_as: Decision = "step_up"
    exploration_salt: str = "exploration"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)):
                continue
            highest = 1.0 if field.name in FRACTIONS else math.inf
            if not 0 <= value <= highest or math.isinf(value):
                expected = "in [0, 1]" if field.name in FRACTIONS else "finite and >= 0"
                raise ValueError(f"`{field.name}` must be {expected}. Received: {field.name}={value}.")
        if self.explore_as not in ("allow", "step_up"):
            raise ValueError(f"`explore_as` must be allow or step_up. Received: explore_as={self.explore_as}.")
        if not set(self.reviewed) <= {"step_up", "block"}:
            raise ValueError(f"`reviewed` may hold step_up and block. Received: reviewed={self.reviewed}.")

    def expected_costs(self, probability: Value, amount: Value) -> tuple[Value, Value, Value]:
        """Of allow, step_up and block, for one payment or for arrays. The one place that knows the formula."""
        loss = amount + self.chargeback_fee
        step_up = self.friction + self.friction_fraction * amount * (1.0 - probability)
        step_up = step_up + probability * (1.0 - self.step_up_success) * loss
        block = (1.0 - probability) * (self.insult + self.insult_fraction * amount)
        reviews = [self.review_cost if action in self.reviewed else 0.0 for action in ACTIONS]
        return probability * loss, step_up + reviews[STEP_UP], block + reviews[BLOCK]

    def explores(self, transaction_id: str) -> bool:
        """Is this payment in the exploration slice? Depends on nothing but its id and the salt."""
        text = f"{self.exploration_salt}\x1f{transaction_id}".encode()
        draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2.0**64
        return draw < self.exploration_fraction

    @property
    def unreviewed(self) -> list[int]:
        return [i for i, action in enumerate(ACTIONS) if action not in self.reviewed]


class Decider:
    """Decides one payment at a time; the state is today's reviews. A late payment is charged to the newest day seen."""

    def __init__(self, policy: DecisionPolicy) -> None:
        self.policy = policy
        self._clock = -math.inf
        self._day = -math.inf
        self._used = 0
        self._price = 0.0  # at the start of the day
        self._gains: list[float] = []  # heap of today's largest gains, at most one per review

    def decide(self, probability: float, amount: float, *, event_time: float, transaction_id: str) -> Decision:
        """Args: event_time in Unix seconds. Raises ValueError for a probability outside [0, 1] or a bad amount."""
        if not 0.0 <= probability <= 1.0 or not 0.0 <= amount < math.inf or not math.isfinite(event_time):
            raise ValueError(
                "a decision needs a probability in [0, 1], a finite amount >= 0 and a finite event time. "
                f"Received: probability={probability}, amount={amount}, event_time={event_time}."
            )
        policy = self.policy
        self._tick(event_time)
        costs = policy.expected_costs(probability, amount)
        best = min(range(3), key=costs.__getitem__)
        if best == BLOCK and policy.explores(transaction_id):
            return policy.explore_as
        if ACTIONS[best] not in policy.reviewed or policy.review_capacity_per_day is None:
            return ACTIONS[best]
        fallback = min(policy.unreviewed, key=costs.__getitem__)
        return ACTIONS[best if self._review(costs[fallback] - costs[best]) else fallback]

    def snapshot(self) -> dict[str, Any]:
        """Plain values that `restore` takes; survives JSON."""
        started = self._clock > -math.inf
        return {
            "clock": self._clock if started else None,
            "used": self._used,
            "price": self._price,
            "gains": sorted(self._gains),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._clock = -math.inf if state["clock"] is None else float(state["clock"])
        self._day = self._clock // SECONDS_PER_DAY if state["clock"] is not None else -math.inf
        self._used, self._price = int(state["used"]), float(state["price"])
        self._gains = [float(gain) for gain in state["gains"]]  # sorted is a heap

    def _tick(self, event_time: float) -> None:
        self._clock = max(self._clock, event_time)
        day = self._clock // SECONDS_PER_DAY
        if day > self._day:
            capacity = self.policy.review_capacity_per_day
            self._price = self._gains[0] if capacity and len(self._gains) == capacity else 0.0
            self._day, self._used, self._gains = day, 0, []

    def _review(self, gain: float) -> bool:
        """Take a review for this gain if there is room and it is worth today's price."""
        capacity = self.policy.review_capacity_per_day or 0
        if len(self._gains) < capacity:
            heapq.heappush(self._gains, gain)
        elif capacity:
            heapq.heappushpop(self._gains, gain)
        left = 1.0 - (self._clock - self._day * SECONDS_PER_DAY) / SECONDS_PER_DAY
        if self._used >= capacity or gain < self._price * left:
            return False
        self._used += 1
        return True


def decide(
    probability_N: F64,
    amount_N: F64,
    *,
    policy: DecisionPolicy,
    event_time_N: F64 | None = None,
    transaction_id_N: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """The same decisions for a whole file: (N,) of allow, step_up, block.

    Without event times (Unix seconds, in order of arrival) reviews are unlimited, without ids nothing is explored.
    """
    _check(probability_N, amount_N)
    costs_3N = np.stack(policy.expected_costs(np.asarray(probability_N, float), np.asarray(amount_N, float)))
    best_N = costs_3N.argmin(axis=0)
    explored_N = np.zeros(len(best_N), bool)
    if transaction_id_N is not None:
        for i in np.flatnonzero(best_N == BLOCK):
            explored_N[i] = policy.explores(transaction_id_N[int(i)])
    decided_N = np.where(explored_N, ACTIONS.index(policy.explore_as), best_N)
    if event_time_N is not None and policy.review_capacity_per_day is not None:
        reviewed = [ACTIONS.index(action) for action in policy.reviewed]
        asks_N = np.isin(best_N, reviewed) & ~explored_N
        rows = np.asarray(policy.unreviewed)
        fallback_N = rows[costs_3N[rows].argmin(axis=0)]
        every = np.arange(len(best_N))
        gain_N = costs_3N[fallback_N, every] - costs_3N[best_N, every]
        granted_N = _granted(np.asarray(event_time_N, float), asks_N, gain_N, policy.review_capacity_per_day)
        decided_N = np.where(asks_N & ~granted_N, fallback_N, decided_N)
    return np.array(ACTIONS)[decided_N]


def realised_costs(
    decisions_N: NDArray[np.str_], amount_N: F64, is_fraud_N: NDArray[np.int8], *, policy: DecisionPolicy
) -> F64:
    """(N,) what each decision cost, given the truth: the expected costs at p = 0 or 1.

    A challenge counts by its success rate. A payment of unknown truth (-1) costs nothing.
    """
    fraud_N = np.asarray(is_fraud_N)
    costs_3N = np.stack(policy.expected_costs((fraud_N == 1).astype(float), np.asarray(amount_N, float)))
    chosen_N = np.select([np.asarray(decisions_N) == action for action in ACTIONS], range(3), -1)
    if (chosen_N < 0).any():
        raise ValueError(f"`decisions_N` may hold {', '.join(ACTIONS)}. Received: {decisions_N[chosen_N.argmin()]}.")
    return np.where(fraud_N < 0, 0.0, costs_3N[chosen_N, np.arange(len(fraud_N))])


def money_saved(
    decisions_N: NDArray[np.str_], amount_N: F64, is_fraud_N: NDArray[np.int8], *, policy: DecisionPolicy
) -> float:
    """Cost of allowing everything minus the cost of the decisions, both as realised; negative when they do harm."""
    allowed_N = np.full(len(amount_N), "allow")
    before = realised_costs(allowed_N, amount_N, is_fraud_N, policy=policy).sum()
    return float(before - realised_costs(decisions_N, amount_N, is_fraud_N, policy=policy).sum())


def _granted(event_time_N: F64, asks_N: NDArray[np.bool_], gain_N: F64, capacity: int) -> NDArray[np.bool_]:
    """Which of those who ask get a review; see Decider for the rule."""
    clock_N = np.maximum.accumulate(event_time_N)
    day_N = clock_N // SECONDS_PER_DAY
    left_N = 1.0 - (clock_N - day_N * SECONDS_PER_DAY) / SECONDS_PER_DAY
    granted_N = np.zeros(len(asks_N), bool)
    price = 0.0
    for day in np.unique(day_N):
        asking = np.flatnonzero(asks_N & (day_N == day))
        worth_it = asking[gain_N[asking] >= price * left_N[asking]]
        granted_N[worth_it[:capacity]] = True
        full = 0 < capacity <= len(asking)
        price = float(np.sort(gain_N[asking])[-capacity]) if full else 0.0
    return granted_N


def _check(probability_N: F64, amount_N: F64) -> None:
    if np.shape(probability_N) != np.shape(amount_N):
        raise ValueError(
            "`probability_N` and `amount_N` must have the same shape. "
            f"Received: {np.shape(probability_N)} and {np.shape(amount_N)}."
        )
    bad = ~((np.asarray(probability_N) >= 0) & (np.asarray(probability_N) <= 1))
    bad |= ~((np.asarray(amount_N) >= 0) & np.isfinite(amount_N))
    if bad.any():
        raise ValueError(
            "decisions need probabilities in [0, 1] and finite amounts >= 0. "
            f"Received: {int(bad.sum())} others, first at {int(bad.argmax())}."
        )
