"""Decisions: least expected cost, reviews within the day's room, exploration, and the twin for whole files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solutions.fraud.decisions import ACTIONS, Decider, DecisionPolicy, decide, money_saved, realised_costs

DAY = 86_400.0
PLAIN = DecisionPolicy(review_capacity_per_day=None, exploration_fraction=0.0)
ROUND = DecisionPolicy(
    chargeback_fee=10.0,
    friction=1.0,
    friction_fraction=0.0,
    step_up_success=0.5,
    insult=20.0,
    insult_fraction=0.1,
    review_cost=2.0,
    exploration_fraction=0.0,
)


def stream(seed: int, n: int, days: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.3, 2.0, n)
    return probability, rng.lognormal(3.5, 1.2, n), np.sort(rng.uniform(0, days * DAY, n)), [f"t{i}" for i in range(n)]


def one_at_a_time(policy: DecisionPolicy, p: Any, amount: Any, when: Any, names: Any) -> list[str]:
    decider = Decider(policy)
    rows = zip(p, amount, when, names, strict=True)
    return [decider.decide(float(q), float(a), event_time=float(t), transaction_id=str(i)) for q, a, t, i in rows]


def test_the_expected_costs_are_those_of_the_formula() -> None:
    allow, step_up, block = ROUND.expected_costs(0.25, 90.0)
    assert allow == pytest.approx(0.25 * 100)
    assert step_up == pytest.approx(1 + 0.25 * 0.5 * 100)
    assert block == pytest.approx(0.75 * (20 + 9) + 2)
    reviewed = replace(ROUND, reviewed=("step_up",), friction_fraction=0.02).expected_costs(0.25, 90.0)
    assert reviewed[1] == pytest.approx(1 + 0.02 * 90 * 0.75 + 0.25 * 0.5 * 100 + 2)
    assert reviewed[2] == pytest.approx(0.75 * (20 + 9))


@given(st.floats(0, 1), st.floats(0, 1e6))
def test_the_action_chosen_is_never_dearer_than_another(p: float, amount: float) -> None:
    chosen = decide(np.array([p]), np.array([amount]), policy=PLAIN)[0]
    costs = dict(zip(ACTIONS, PLAIN.expected_costs(p, amount), strict=True))
    assert costs[chosen] == min(costs.values())


def test_certainty_and_amount_move_the_decision_as_they_should() -> None:
    p = np.array([0.0, 0.001, 0.05, 0.3, 0.99, 1.0])
    assert decide(p, np.full(6, 50.0), policy=PLAIN).tolist() == [
        "allow",
        "allow",
        "step_up",
        "step_up",
        "block",
        "block",
    ]
    amounts = np.array([0.0, 10.0, 1_000.0])
    assert decide(np.full(3, 0.03), amounts, policy=PLAIN).tolist() == ["allow", "allow", "step_up"]


POLICIES = st.builds(
    DecisionPolicy,
    reviewed=st.sampled_from([("block",), ("step_up", "block"), ("step_up",), ()]),
    review_capacity_per_day=st.sampled_from([None, 0, 1, 3, 20]),
    exploration_fraction=st.sampled_from([0.0, 0.3, 1.0]),
    explore_as=st.sampled_from(["allow", "step_up"]),
    friction=st.sampled_from([0.0, 1.0, 5.0]),
)


@given(POLICIES, st.integers(0, 1000), st.integers(0, 80), st.booleans())
def test_a_whole_file_is_decided_as_one_payment_at_a_time(
    policy: DecisionPolicy, seed: int, n: int, late: bool
) -> None:
    p, amount, when, names = stream(seed, n)
    if late:  # out of order by up to a day and a half
        when = when + np.random.default_rng(seed).uniform(0, 1.5 * DAY, n)
    fast = decide(p, amount, policy=policy, event_time_N=when, transaction_id_N=names)
    assert fast.tolist() == one_at_a_time(policy, p, amount, when, names)


@given(POLICIES, st.integers(0, 1000), st.integers(0, 60))
def test_a_restart_from_a_snapshot_changes_no_decision(policy: DecisionPolicy, seed: int, cut: int) -> None:
    p, amount, when, names = stream(seed, 60)
    first, second = Decider(policy), Decider(policy)
    rows = list(zip(p.tolist(), amount.tolist(), when.tolist(), names, strict=True))
    made = [first.decide(q, a, event_time=t, transaction_id=i) for q, a, t, i in rows[:cut]]
    second.restore(json.loads(json.dumps(first.snapshot())))
    made += [second.decide(q, a, event_time=t, transaction_id=i) for q, a, t, i in rows[cut:]]
    assert made == one_at_a_time(policy, p, amount, when, names)


@given(POLICIES, st.integers(0, 1000))
def test_no_day_has_more_reviews_than_room(policy: DecisionPolicy, seed: int) -> None:
    policy = replace(policy, exploration_fraction=0.0)
    p, amount, when, names = stream(seed, 200)
    made = decide(p, amount, policy=policy, event_time_N=when, transaction_id_N=names)
    reviews = np.bincount((when[np.isin(made, policy.reviewed)] // DAY).astype(int), minlength=1)
    assert policy.review_capacity_per_day is None or reviews.max() <= policy.review_capacity_per_day


def test_when_no_review_is_left_the_best_unreviewed_action_is_taken() -> None:
    policy = replace(PLAIN, review_capacity_per_day=1)
    decider = Decider(policy)
    made = [decider.decide(1.0, 50.0, event_time=100.0 + i, transaction_id=f"t{i}") for i in range(3)]
    assert made == ["block", "step_up", "step_up"]
    assert decider.decide(1.0, 50.0, event_time=DAY + 80_000, transaction_id="next day") == "block"
    everything = Decider(replace(policy, reviewed=("step_up", "block"), review_capacity_per_day=0))
    assert everything.decide(1.0, 50.0, event_time=0.0, transaction_id="t") == "allow"


def test_small_gains_in_the_morning_leave_room_for_large_ones_in_the_evening() -> None:
    policy = replace(PLAIN, review_capacity_per_day=2)
    decider = Decider(policy)
    for i in range(4):  # yesterday: gains for much more than there is room
        decider.decide(1.0, 1_000.0, event_time=float(i), transaction_id=f"y{i}")
    morning = [decider.decide(1.0, 30.0, event_time=DAY + i, transaction_id=f"m{i}") for i in range(4)]
    evening = [decider.decide(1.0, 5_000.0, event_time=DAY + 70_000 + i, transaction_id=f"e{i}") for i in range(3)]
    assert morning == ["step_up"] * 4
    assert evening == ["block", "block", "step_up"]
    quiet = Decider(policy)
    assert quiet.decide(1.0, 30.0, event_time=DAY, transaction_id="m") == "block"  # nothing was short yesterday


def test_pricing_reviews_saves_more_than_first_come_first_served() -> None:
    rng = np.random.default_rng(0)
    p, amount, when, names = stream(1, 20_000, days=20)
    p = np.sqrt(p)  # hundreds of would-be blocks a day
    fraud = (rng.random(len(p)) < p).astype(np.int8)
    policy = replace(PLAIN, review_capacity_per_day=20)
    priced = decide(p, amount, policy=policy, event_time_N=when, transaction_id_N=names)
    unlimited = decide(p, amount, policy=policy)
    wishes = np.flatnonzero(unlimited == "block")
    by_day = np.split(wishes, np.flatnonzero(np.diff(when[wishes] // DAY)) + 1)
    first = unlimited.copy()
    for day in by_day:
        first[day[20:]] = "step_up"
    saved = [money_saved(made, amount, fraud, policy=policy) for made in (first, priced, unlimited)]
    assert saved[0] < saved[1] < saved[2]


def test_exploration_is_a_fixed_share_of_would_be_blocks_and_of_nothing_else() -> None:
    policy = replace(PLAIN, exploration_fraction=0.1)
    n = 5_000
    names = [f"t{i}" for i in range(n)]
    blocked = decide(np.ones(n), np.full(n, 100.0), policy=policy, transaction_id_N=names)
    assert 0.08 < (blocked == "step_up").mean() < 0.12
    assert set(blocked) == {"step_up", "block"}
    allowed = decide(np.zeros(n), np.full(n, 100.0), policy=policy, transaction_id_N=names)
    assert set(allowed) == {"allow"}
    let_through = decide(
        np.ones(n), np.full(n, 100.0), policy=replace(policy, explore_as="allow"), transaction_id_N=names
    )
    assert ((let_through == "allow") == (blocked == "step_up")).all()
    other = decide(np.ones(n), np.full(n, 100.0), policy=replace(policy, exploration_salt="b"), transaction_id_N=names)
    assert ((other == "step_up") & (blocked == "step_up")).mean() < 0.03


def test_money_saved_adds_up_by_hand() -> None:
    decisions = np.array(["allow", "allow", "step_up", "step_up", "block", "block", "block"])
    fraud = np.array([1, 0, 1, 0, 1, 0, -1], np.int8)
    amount = np.full(7, 90.0)
    costs = realised_costs(decisions, amount, fraud, policy=ROUND)
    assert costs.tolist() == pytest.approx([100, 0, 1 + 50, 1, 2, 29 + 2, 0])
    assert money_saved(decisions, amount, fraud, policy=ROUND) == pytest.approx(300 - 185)
    assert money_saved(np.full(7, "allow"), amount, fraud, policy=ROUND) == 0.0


def test_a_perfect_score_saves_money_and_a_useless_one_does_not_lose_any() -> None:
    rng = np.random.default_rng(0)
    fraud = (rng.random(20_000) < 0.01).astype(np.int8)
    amount = rng.lognormal(3.5, 1.0, 20_000)
    perfect = money_saved(decide(fraud.astype(float), amount, policy=PLAIN), amount, fraud, policy=PLAIN)
    useless = money_saved(decide(np.full(20_000, 0.01), amount, policy=PLAIN), amount, fraud, policy=PLAIN)
    at_stake = (amount + PLAIN.chargeback_fee)[fraud == 1].sum()
    assert 0.9 * at_stake < perfect <= at_stake
    assert -0.1 * at_stake < useless < 0.3 * at_stake


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chargeback_fee": -1.0}, r"`chargeback_fee` must be finite and >= 0\. Received: chargeback_fee=-1.0"),
        ({"insult": float("nan")}, "`insult` must be finite and >= 0.*insult=nan"),
        ({"step_up_success": 1.2}, r"`step_up_success` must be in \[0, 1\].*step_up_success=1.2"),
        ({"review_capacity_per_day": -1}, "review_capacity_per_day=-1"),
        ({"explore_as": "block"}, "`explore_as` must be allow or step_up.*explore_as=block"),
        ({"reviewed": ("allow",)}, "`reviewed` may hold step_up and block"),
    ],
)
def test_a_policy_refuses_nonsense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionPolicy(**change)


def test_impossible_probabilities_and_amounts_are_refused() -> None:
    for p, amount, when in ((1.5, 1.0, 0.0), (float("nan"), 1.0, 0.0), (0.5, -1.0, 0.0), (0.5, 1.0, float("nan"))):
        with pytest.raises(ValueError, match=f"probability={p}, amount={amount}, event_time={when}"):
            Decider(PLAIN).decide(p, amount, event_time=when, transaction_id="t")
    with pytest.raises(ValueError, match="1 others, first at 1"):
        decide(np.array([0.5, np.nan]), np.ones(2), policy=PLAIN)
    with pytest.raises(ValueError, match="same shape"):
        decide(np.ones(2), np.ones(3), policy=PLAIN)
    with pytest.raises(ValueError, match="Received: maybe"):
        realised_costs(np.array(["maybe"]), np.ones(1), np.ones(1, np.int8), policy=PLAIN)
