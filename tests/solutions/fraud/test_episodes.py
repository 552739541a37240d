"""Compromise episodes: the filter against its slow twin, and what is learnt against what was planted."""

from __future__ import annotations

import numpy as np
import pytest

from solutions.fraud import episodes as ep
from solutions.fraud.engine import Engine, EngineSettings, Events, Labels
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_GENUINE, StateSettings


def some_episodes(rng: np.random.Generator) -> ep.Episodes:
    end_L = np.full(40, 0.01)
    end_L[27] = 0.9
    genuine_A = rng.dirichlet(np.ones(ep.AMOUNT_BINS))
    return ep.episodes(
        hazard=0.002,
        end_L=end_L,
        fraud_rate=0.5,
        fraud_A=rng.dirichlet(np.ones(ep.AMOUNT_BINS)),
        genuine_A=genuine_A,
        background_A=rng.uniform(0.0, 0.05, ep.AMOUNT_BINS),
        clean_A=genuine_A,
    )


def slow_filter(state, row: int, role: int, time: float, maturity: float, high: float, p: ep.Episodes) -> float:  # type: ignore[no-untyped-def]
    """One belief per age, moved day by day: what `in_episode` does without moving anything."""
    mailbox = state.mail_time_NM.shape[1]
    end_K = np.append(p.end_L, np.full(ep.AGES - len(p.end_L), p.end_L[-1]))
    belief = np.append(1.0, p.hazard * p.alive_K[::-1])
    day = None
    for position in range(max(0, state.count_N[row] - mailbox), state.count_N[row]):
        m = position % mailbox
        then = state.mail_time_NM[row, m]
        if state.mail_role_NM[row, m] != role or time // DAY - then // DAY > ep.WINDOW_DAYS:
            continue
        day = then // DAY if day is None else day
        while day < then // DAY:
            belief, day = next_day(belief, end_K, p.hazard), day + 1
        label = state.mail_label_NM[row, m] or (LABEL_GENUINE if time - then > maturity else 0)
        a = ep.amount_bin(state.mail_ratio_NM[row, m], state.mail_amount_NM[row, m], high)
        outside, inside = ep._likelihood(p, a, label)
        belief[0] *= outside
        belief[1:] *= inside
        belief /= belief.sum()
    while day is not None and day < time // DAY:
        belief, day = next_day(belief, end_K, p.hazard), day + 1
    return float(1.0 - belief[0] / belief.sum())


def next_day(belief: np.ndarray, end_K: np.ndarray, hazard: float) -> np.ndarray:
    new = np.zeros_like(belief)
    new[0] = belief[0] * (1.0 - hazard) + (belief[1:] * end_K).sum()
    new[1] = belief[0] * hazard
    new[2:] = (belief[1:] * (1.0 - end_K))[:-1]
    return new


@pytest.mark.parametrize("days", [20, 150])
def test_filter_agrees_with_its_slow_twin(days: int) -> None:
    rng = np.random.default_rng(0)
    n = 2500
    engine = Engine(EngineSettings(state=StateSettings(nodes=1024, pending=8192, mailbox=64)))
    keys = np.stack([np.arange(1, n + 1), rng.integers(1, 20, n), rng.integers(100, 120, n), np.zeros(n, int)], axis=1)
    time_T = np.sort(rng.uniform(1.5e9, 1.5e9 + days * DAY, n))
    events = Events(keys.astype(np.uint64), time_T, rng.exponential(50.0, n))
    fraud = np.flatnonzero(rng.random(n) < 0.1)
    labels = Labels(events.key_TE[fraud, 0], time_T[fraud] + 3 * DAY, np.ones(len(fraud), bool))
    engine.observe(events, labels)
    p, scratch = some_episodes(rng), np.empty(ep.SCRATCH)
    for row in np.flatnonzero(engine.state.key_N):
        for role in (0, 1):
            for time in (time_T[-1] + 1.0, time_T[-1] + 5 * DAY):
                fast = ep.in_episode(engine.state, row, role, time, 7 * DAY, 200.0, p, scratch)
                slow = slow_filter(engine.state, row, role, time, 7 * DAY, 200.0, p)
                assert fast == pytest.approx(slow, abs=1e-9)


def test_long_clean_history_stays_finite_and_clean() -> None:
    """A thousand genuine payments are worth 10^3000 to one: proportions are what must survive."""
    rng = np.random.default_rng(1)
    n = 1000
    engine = Engine(EngineSettings(state=StateSettings(nodes=64, pending=2048, mailbox=1024)))
    keys = np.stack([np.arange(1, n + 1), np.full(n, 7), np.full(n, 8), np.zeros(n, int)], axis=1).astype(np.uint64)
    engine.observe(Events(keys, 1.6e9 + np.linspace(0, 60 * DAY, n), np.full(n, 10.0)))
    p = some_episodes(rng)._replace(fraud_rate=0.999)
    row = int(np.flatnonzero(engine.state.key_N == 8)[0])
    value = ep.in_episode(engine.state, row, 1, 1.6e9 + 61 * DAY, DAY, 1e9, p, np.empty(ep.SCRATCH))
    assert value == pytest.approx(2 * p.hazard, rel=0.5)  # only the last two days are not vouched for


def test_planted_durations_are_learnt() -> None:
    """300 terminals, three payments a day; episodes of exactly 14 days in which everything is fraud."""
    rng = np.random.default_rng(2)
    nodes, days, per_day = 300, 120, 3
    node_T = np.repeat(np.arange(nodes), days * per_day)
    day_T = np.tile(np.repeat(np.arange(days), per_day), nodes)
    start = rng.integers(5, 100, nodes)
    fraud_T = (node_T % 2 == 0) & (day_T >= start[node_T]) & (day_T < start[node_T] + 14)
    label_T = np.where(fraud_T, LABEL_FRAUD, LABEL_GENUINE).astype(np.int8)
    bins = np.zeros(len(node_T), np.int64)
    learnt = ep.fit_episodes(node_T, day_T * DAY + 100.0, bins, label_T, ep.EpisodeSettings())
    lasting = np.cumprod(1.0 - learnt.end_L)
    assert lasting[12] > 0.9  # still in it on day 14
    assert lasting[13] < 0.1  # over after day 14
    assert learnt.fraud_rate > 0.99
    assert learnt.hazard == pytest.approx(150 / (nodes * days), rel=0.25)


def test_parameters_survive_json() -> None:
    p = some_episodes(np.random.default_rng(3))
    again = ep.Episodes.from_json(p.to_json())
    for a, b in zip(p, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_amounts_outside_episodes_are_learnt_apart() -> None:
    """High ratios occur in episodes only: outside, they must become rare, or every payment of an episode looks ordinary."""
    rng = np.random.default_rng(3)
    nodes, days, high = 300, 80, ep.AMOUNT_BINS // 2 - 1
    node_T, day_T, bin_T, label_T = [], [], [], []
    for node in range(nodes):
        begin = rng.integers(0, days) if node % 3 == 0 else days
        for day in range(days):
            for _ in range(rng.poisson(1.5)):
                fraud = begin <= day < begin + 14 and rng.random() < 0.4
                node_T.append(node)
                day_T.append(day)
                bin_T.append(high if fraud else rng.integers(0, 5))
                label_T.append(LABEL_FRAUD if fraud else LABEL_GENUINE)
    bins = np.array(bin_T)
    time_T = np.array(day_T) * DAY + rng.uniform(0, DAY, len(bins))
    fitted = ep.fit_episodes(
        np.array(node_T), time_T, bins, np.array(label_T, np.int8), ep.EpisodeSettings(start_fraud_rate=0.3)
    )
    assert (bins == high).mean() > 0.02
    assert fitted.clean_A[high] < 0.001
    assert fitted.clean_A.sum() == pytest.approx(1.0)
    assert ep.fraud_probability(fitted, 0.5, high) > 0.95
