"""The simulated stream: reproducible, canonical, with the signal where the docstring says and nowhere else."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solutions.fraud.data import InputError, load_payments
from solutions.fraud.population import befriend, draw_accounts, draw_merchants
from solutions.fraud.schemes import RING_MEMBERS, Scenario, Town, Units, circle, draw_units, fan_in, newcomers
from solutions.fraud.simulator import FRACTIONS, DriftKind, SimulatorSettings, simulate, write_simulation

SMALL = SimulatorSettings(days=20, payers=400, merchants=200, mule_crews=1, ring_crews=1, device_crews=1)


@pytest.fixture(scope="module")
def graph_fraud() -> pd.DataFrame:
    return simulate(SimulatorSettings.graph_fraud(), seed=0)


@pytest.fixture(scope="module")
def plain() -> pd.DataFrame:
    return simulate(SimulatorSettings(), seed=0)


def days(frame: pd.DataFrame, column: str = "event_time") -> pd.Series:
    return (frame[column] - pd.Timestamp("2024-01-01")).dt.total_seconds() / 86_400


def test_the_same_seed_gives_the_same_frame_and_another_seed_another() -> None:
    first = simulate(SMALL, seed=3)
    pd.testing.assert_frame_equal(first, simulate(SMALL, seed=3))
    assert first["amount"].head(50).tolist() != simulate(SMALL, seed=4)["amount"].head(50).tolist()


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10),
    st.fixed_dictionaries({name: st.sampled_from([0.0, 0.3, 1.0]) for name in FRACTIONS}),
    st.sampled_from(["none", "spend", "behaviour", "new_fraud"]),
    st.sampled_from(["fixed", "lognormal"]),
    st.integers(0, 2),
    st.integers(1, 9),
)
def test_every_choice_of_settings_gives_a_canonical_frame(
    seed: int, fractions: dict[str, float], drift: DriftKind, delay: str, crews: int, horizon: int
) -> None:
    chosen = replace(
        *(SMALL,), **fractions, days=horizon, payers=60, merchants=25, drift_kind=drift, drift_day=4, label_delay=delay,
        mule_crews=crews, ring_crews=crews, device_crews=crews,
    )  # fmt: skip
    frame = simulate(chosen, seed)
    assert {column: str(kind) for column, kind in frame.dtypes.items()} == {
        "transaction_id": "str",
        "event_time": "datetime64[us]",
        "payer": "str",
        "payee": "str",
        "amount": "float64",
        "device": "str",
        "is_fraud": "int8",
        "label_time": "datetime64[us]",
        "scenario": "int16",
    }
    assert frame["transaction_id"].is_unique
    assert frame["event_time"].is_monotonic_increasing
    assert days(frame).between(0, horizon, inclusive="left").all()
    assert (np.isfinite(frame["amount"]) & (frame["amount"] > 0)).all()
    assert frame[["payer", "payee"]].notna().all(axis=None)
    assert (frame["payer"] != frame["payee"]).all()
    assert frame["is_fraud"].eq(frame["scenario"] > 0).all()
    assert set(frame["scenario"]) <= set(map(int, Scenario))
    arrived = frame["label_time"].notna()
    assert (frame["label_time"] >= frame["event_time"])[arrived].all()
    assert arrived[frame["is_fraud"] == 0].all()
    assert frame.attrs == {"account_to_account": True}


@pytest.mark.parametrize("name", ["payments.parquet", "payments.csv"])
def test_a_written_simulation_loads_without_a_mapping_as_the_same_frame(tmp_path: Path, name: str) -> None:
    frame = write_simulation(SMALL, 1, tmp_path / "new" / name)
    loaded = load_payments(tmp_path / "new" / name, account_to_account=True)
    assert (len(loaded.rejected), loaded.rows) == (0, len(frame))
    pd.testing.assert_frame_equal(loaded.frame, frame, check_column_type=False)


def test_a_simulation_is_not_written_to_an_unknown_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.parquet or \.csv\. Received: `payments.xlsx`"):
        write_simulation(SMALL, 0, tmp_path / "payments.xlsx")


def test_the_presets_have_the_size_they_promise_and_are_quick(plain: pd.DataFrame) -> None:
    begin = time.process_time()
    demo = simulate(SimulatorSettings.demo(), seed=0)
    assert time.process_time() - begin < 10.0
    assert 110_000 < len(demo) < 150_000
    assert 330_000 < len(plain) < 450_000
    assert set(demo["scenario"]) == {0, 1, 2, 3, 4, 5}
    assert 0.01 < demo["is_fraud"].mean() < 0.03


def test_genuine_payers_have_habits_of_amount_hour_place_and_weekday(plain: pd.DataFrame) -> None:
    genuine = plain[plain["scenario"] == 0]
    log_amount = np.log(genuine["amount"])
    by_payer = genuine.assign(log=log_amount).groupby("payer")["log"].agg(["mean", "count"])
    assert by_payer.loc[by_payer["count"] > 30, "mean"].std() > 0.4  # levels differ between payers
    pairs = genuine.groupby("payer")["payee"].agg(lambda payees: payees.value_counts(normalize=True).iloc[:3].sum())
    assert pairs[by_payer["count"] > 30].median() > 0.35  # a few favourites take a good part
    hour = genuine["event_time"].dt.hour
    assert hour.between(8, 21).mean() > 0.8
    weekday = genuine["event_time"].dt.day_of_week
    assert (weekday == 5).mean() > 1.2 * (weekday == 6).mean()
    first_seen = days(genuine.drop_duplicates("payer"))
    assert 0.1 < (first_seen > 10).mean() < 0.6  # customers join all the time


def test_favourite_merchants_are_near() -> None:
    rng = np.random.default_rng(0)
    merchants = draw_merchants(rng, 400, 30.0, 0.1)
    accounts = draw_accounts(rng, 300, merchants, np.zeros(300), 1.0)
    favourite = merchants.home_M2[accounts.favourite_AF[:, 0]]
    stranger = merchants.home_M2[rng.permutation(400)[:300]]
    assert np.median(np.linalg.norm(favourite - accounts.home_A2, axis=1)) < 0.12
    assert np.median(np.linalg.norm(stranger - accounts.home_A2, axis=1)) > 0.25


def town_and_units() -> tuple[Town, Units]:
    rng = np.random.default_rng(0)
    merchants = draw_merchants(rng, 200, 30.0, 0.1)
    accounts = draw_accounts(rng, 4_000, merchants, np.zeros(4_000), 1.0)
    accounts = replace(accounts, friend_AF=befriend(rng, accounts.home_A2))
    units = draw_units(rng, 30, 2, 1.0, 4.0, 0.3)
    return Town(accounts, merchants, 500, 0.1), units


@pytest.mark.parametrize(("shape", "members"), [(fan_in, 1), (circle, RING_MEMBERS), (newcomers, 1)])
def test_fraud_and_its_honest_twins_are_drawn_alike(shape: object, members: int) -> None:
    town, units = town_and_units()
    accounts = 500 + np.arange(len(units) * members).reshape(-1, members)
    accounts = accounts if members > 1 else accounts[:, 0]
    assert callable(shape)
    as_is = shape(np.random.default_rng(1), town, units, accounts)
    swapped = shape(np.random.default_rng(1), town, replace(units, criminal_U=~units.criminal_U), accounts)
    for column in ("time_T", "payer_T", "payee_T", "amount_T", "device_T"):
        assert np.array_equal(getattr(as_is, column), getattr(swapped, column)), column
    assert (as_is.scenario_T > 0).any()
    assert not ((as_is.scenario_T > 0) & (swapped.scenario_T > 0)).any()


def test_there_are_about_as_many_twins_as_asked_for() -> None:
    units = draw_units(np.random.default_rng(0), 300, 4, 1.0, 4.0, 0.3)
    assert 3.2 < (~units.criminal_U).sum() / units.criminal_U.sum() < 4.8
    sizes = np.bincount(units.crew_U[~units.criminal_U])
    assert 0.2 < sizes[sizes > 1].sum() / sizes.sum() < 0.4


def known_frauds_before(frame: pd.DataFrame, key: str, fraud_key: str) -> np.ndarray:
    """For every payment: how many frauds with `fraud_key` equal to its `key` were labelled before it happened."""
    frauds = frame[(frame["is_fraud"] == 1) & frame["label_time"].notna() & frame[fraud_key].notna()]
    arrivals = {name: np.sort(group.to_numpy()) for name, group in frauds.groupby(fraud_key)["label_time"]}
    none = np.zeros(0, "datetime64[us]")
    pairs = zip(frame[key], frame["event_time"].to_numpy(), strict=True)
    return np.array([np.searchsorted(arrivals.get(name, none), then) for name, then in pairs])


def test_graph_fraud_is_shown_by_labels_around_it_and_not_by_its_own_endpoints(graph_fraud: pd.DataFrame) -> None:
    late = graph_fraud[days(graph_fraud) > 25]
    own = known_frauds_before(graph_fraud, "payer", "payer")
    to_account = graph_fraud["payee"].str.startswith("A")  # merchants have labels, but of everybody's frauds
    own += np.where(to_account, known_frauds_before(graph_fraud, "payee", "payee"), 0)
    on_device = known_frauds_before(graph_fraud, "device", "device")
    frauds = late["scenario"].isin([Scenario.MULE, Scenario.RING, Scenario.SHARED_DEVICE])
    assert (own[late.index][frauds] > 0).mean() < 0.15
    burnt = on_device[late.index] > 0
    new_account = late["scenario"] == Scenario.SHARED_DEVICE
    ring = late["scenario"] == Scenario.RING
    assert burnt[new_account].mean() > 0.5
    assert burnt[ring].mean() > 0.5
    assert burnt[late["scenario"] == 0].mean() < 0.25  # victims have been paying mules from their own devices
    # a mule is paid from honest devices: only what its own device has seen tells, one step further
    mule = (late["scenario"] == Scenario.MULE) & late["payee"].str.startswith("A")
    assert burnt[mule].mean() < 0.25
    paid_from = graph_fraud.dropna(subset=["device"]).drop_duplicates(["payer", "device"])
    receivers = graph_fraud[graph_fraud["scenario"] == Scenario.MULE]["payee"].unique()
    devices = paid_from[paid_from["payer"].isin(receivers)].groupby("device")["payer"].nunique()
    assert (devices > 1).mean() > 0.5


def test_honest_accounts_share_devices_too_and_some_of_these_carry_labels(graph_fraud: pd.DataFrame) -> None:
    genuine = graph_fraud[graph_fraud["scenario"] == 0]
    users = genuine.groupby("device")["payer"].nunique()
    frauds = set(graph_fraud.loc[graph_fraud["is_fraud"] == 1, "device"].dropna())
    shared = users[users >= 2].index
    assert len(shared) > 500
    assert 0.01 < shared.isin(frauds).mean() < 0.5


def test_graph_fraud_is_ordinary_in_amount_and_hour(graph_fraud: pd.DataFrame) -> None:
    from sklearn.metrics import roc_auc_score

    fraud = graph_fraud["scenario"].isin([3, 4, 5])
    keep = fraud | (graph_fraud["scenario"] == 0)
    for values in (graph_fraud["amount"], graph_fraud["event_time"].dt.hour):
        assert abs(roc_auc_score(fraud[keep], values[keep]) - 0.5) < 0.2
    newcomer = graph_fraud.groupby("payer").cumcount().lt(5) & (days(graph_fraud) > 10)
    amount = graph_fraud["amount"]
    against_new = roc_auc_score(fraud[keep & newcomer], amount[keep & newcomer])
    assert abs(against_new - 0.5) < 0.12


def test_stolen_cards_burst_in_amount_and_terminals_cluster_in_time(plain: pd.DataFrame) -> None:
    usual = plain[plain["scenario"] == 0].groupby("payer")["amount"].median()
    stolen = plain[plain["scenario"] == Scenario.STOLEN_CARD]
    assert (stolen["amount"] / stolen["payer"].map(usual)).median() > 3.0
    terminal = plain[plain["scenario"] == Scenario.COMPROMISED_TERMINAL]
    span = terminal.groupby("payee")["event_time"].agg(lambda times: (times.max() - times.min()).days)
    assert (span <= 28).mean() > 0.8  # a few are compromised twice
    ratio = terminal["amount"] / terminal["payer"].map(usual)
    assert 0.5 < ratio.median() < 1.5


def test_labels_arrive_with_the_delay_asked_for_or_never() -> None:
    fixed = simulate(replace(SMALL, label_delay="fixed", label_delay_days=3.0, unreported_fraction=0.0), seed=0)
    fraud = fixed["is_fraud"] == 1
    delay = days(fixed, "label_time") - days(fixed)
    assert np.allclose(delay[fraud], 3.0, atol=1e-6)
    assert np.allclose(delay[~fraud], 7.0, atol=1e-6)
    slow = replace(
        SMALL, label_minimum_days=2.0, label_delay_days=4.0, unreported_fraction=0.3, stolen_cards_per_day=30
    )
    frame = simulate(slow, seed=0)
    fraud = frame["is_fraud"] == 1
    delay = (days(frame, "label_time") - days(frame))[fraud]
    assert delay.min() >= 2.0
    assert delay.median() == pytest.approx(6.0, rel=0.1)
    assert delay.isna().mean() == pytest.approx(0.3, abs=0.05)
    assert days(fixed).equals(days(simulate(replace(SMALL, label_delay="fixed"), seed=0)))  # payments do not change


@pytest.mark.parametrize("kind", ["spend", "behaviour", "new_fraud"])
def test_drift_changes_nothing_before_its_day_and_something_after_it(kind: DriftKind) -> None:
    still = simulate(replace(SMALL, drift_day=10), seed=0)
    moved = simulate(replace(SMALL, drift_day=10, drift_kind=kind), seed=0)
    before = days(still) < 10
    pd.testing.assert_frame_equal(still[before], moved[days(moved) < 10])
    after_still, after = still[~before], moved[days(moved) >= 10]
    if kind == "spend":
        assert after["amount"].sum() == pytest.approx(1.5 * after_still["amount"].sum(), rel=1e-3)
    elif kind == "new_fraud":
        tested = after["scenario"] == Scenario.CARD_TESTING
        assert tested.sum() > 100
        assert after.loc[tested, "amount"].max() <= 4.0
    else:
        stolen = moved[moved["scenario"] == Scenario.STOLEN_CARD]
        early = days(stolen) < 10
        late = days(stolen) > 12  # bursts that began before run for two days
        assert stolen.loc[late, "amount"].median() < 0.5 * stolen.loc[early, "amount"].median()


def test_identifiers_tell_neither_the_age_of_an_account_nor_fraud(plain: pd.DataFrame) -> None:
    from scipy.stats import spearmanr

    accounts = plain[plain["payer"].str.startswith("A")].drop_duplicates("payer")
    number = accounts["payer"].str[1:].astype(int)
    assert abs(spearmanr(number, days(accounts)).statistic) < 0.05
    device = plain.dropna(subset=["device"]).drop_duplicates("device")
    assert abs(spearmanr(device["device"].str[1:].astype(int), device["is_fraud"]).statistic) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": 0}, r"`days` must be finite and >= 1\. Received: days=0"),
        ({"days": 1.5}, r"`days` must be a whole number\. Received: days=1.5"),
        ({"payers": 3}, r"`payers` must be finite and >= 10\. Received: payers=3"),
        ({"transfers": 1.5}, r"`transfers` must be in \[0, 1\]\. Received: transfers=1.5"),
        ({"twins": float("nan")}, r"`twins` must be finite and >= 0\. Received: twins=nan"),
        ({"stolen_cards_per_day": float("inf")}, "`stolen_cards_per_day` must be finite"),
        ({"drift_kind": "sudden"}, "`drift_kind` must be one of none, spend, behaviour, new_fraud.*drift_kind=sudden"),
        ({"label_delay": "slow"}, "`label_delay` must be one of fixed, lognormal"),
        ({"start": "1 May"}, "`start` must be an ISO 8601 date.*start=1 May"),
        ({"terminal_days": (9.0, 3.0)}, r"`terminal_days` must be \(shortest, longest\)"),
    ],
)
def test_settings_refuse_nonsense(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatorSettings(**change)  # type: ignore[arg-type]
