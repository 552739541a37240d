"""Updates of the champion: only matured labels count, the champion is left alone, a gain is kept and the rest refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.continual.updater import UpdatePlan
from solutions.fraud.data import InputError
from solutions.fraud.graph_state import DAY
from solutions.fraud.history import History, Rows, RowSettings, choose_rows
from solutions.fraud.model import FraudModel
from solutions.fraud.network import NetworkSettings
from solutions.fraud.operate import Workspace, promote_challenger, save_challenger
from solutions.fraud.train import Stream, TrainSettings, train_model
from solutions.fraud.update import FraudUpdate, FraudUpdateSettings, carry_out, update_champion, update_when_due
from solutions.fraud.watch import LastUpdate, Outlook, last_update, look, plan_update
from tests.solutions.fraud.streams import ENGINE, random_stream

START = pd.Timestamp("2024-03-01")
CHANGE, NOW = 30.0, 46.0  # days
MATURITY = ENGINE.maturity_days * DAY
ROWS = RowSettings(capacity=3000, gate_share=0.45)
QUICK = FraudUpdateSettings(steps=30, batch_size=64, trees=50)
FULL, HEAD = UpdatePlan("full", "test"), UpdatePlan("head", "test")


def at(day: float) -> float:
    return START.timestamp() + day * DAY


@cache
def drifting(change: float = CHANGE) -> pd.DataFrame:
    """From a day on, an eighth of the payments are frauds of half a unit at any merchant."""
    frame = random_stream(7500, days=60, seed=1)
    new = (frame["event_time"] >= START + pd.Timedelta(days=change)) & (frame.index % 8 == 0)
    frame.loc[new, "amount"] = 0.5
    frame.loc[new, "is_fraud"] = 1
    return frame


def stream(frame: pd.DataFrame) -> Stream:
    return Stream.encode(frame, ENGINE)


@cache
def champion() -> FraudModel:
    settings = TrainSettings(
        engine=ENGINE,
        network=NetworkSettings(epochs=1, batch_size=128, least_steps=60),
        warm_up_days=4.0,
        slice_days=5.0,
        keep_genuine=0.5,
        trees=60,
        threads=1,
    )
    frame = drifting()
    return train_model(frame[frame["event_time"] < START + pd.Timedelta(days=22)], settings, seed=0)


def rows_at(frame: pd.DataFrame, known_day: float = NOW, change: float = CHANGE) -> Rows:
    return choose_rows(stream(frame), at(change), at(known_day), MATURITY, warm_up_days=4.0, settings=ROWS)


@cache
def history() -> History:
    s = stream(drifting())
    return History.replay(champion(), s, np.ones(len(s), bool))


@cache
def updated(scope: str) -> FraudUpdate:
    return carry_out(champion(), history(), rows_at(drifting()), FULL if scope == "full" else HEAD, QUICK, seed=0)


@cache
def probability() -> np.ndarray:
    return history().probability(champion(), np.arange(len(history().stream)))


def outlook_at(frame: pd.DataFrame, known_day: float, last: LastUpdate | None = None) -> Outlook:
    return look(
        *(stream(frame), probability(), at(22.0), at(28.0), at(known_day), MATURITY),
        warm_up_days=4.0,
        last=last,
        rows=ROWS,
    )


def later_labels_flipped(frame: pd.DataFrame, known_day: float) -> pd.DataFrame:
    """Labels that arrive after a day, and the truth of payments that have not matured by then, turned around."""
    changed = frame.copy()
    now = START + pd.Timedelta(days=known_day)
    unknown = (frame["label_time"] > now) | (frame["event_time"] + pd.Timedelta(days=4) > now)
    changed.loc[unknown, "is_fraud"] = 1 - changed.loc[unknown, "is_fraud"]
    return changed


# --- rows ---


def test_no_payment_serves_two_purposes_and_all_are_in_order_of_time() -> None:
    rows, time_T = rows_at(drifting()), stream(drifting()).events.time_T
    parts = (rows.past, rows.old, rows.recent, rows.blend, rows.gate)
    assert len(np.unique(rows.all)) == len(rows.all) == sum(map(len, parts))
    for earlier, later in pairwise(parts):
        assert time_T[earlier].max() < time_T[later].min()
    assert time_T[rows.recent].min() >= at(CHANGE) > time_T[rows.old].max() >= time_T[rows.old].min() >= at(CHANGE - 7)
    assert time_T[rows.gate].max() <= at(NOW) - MATURITY


def test_labels_that_are_not_known_yet_change_nothing() -> None:
    honest, flipped = (rows_at(f) for f in (drifting(), later_labels_flipped(drifting(), NOW)))
    np.testing.assert_array_equal(honest.all, flipped.all)
    np.testing.assert_array_equal(honest.fraud_T, flipped.fraud_T)
    first, second = (outlook_at(f, NOW) for f in (drifting(), later_labels_flipped(drifting(), NOW)))
    assert first == second


def test_a_full_reservoir_keeps_rare_frauds_and_says_how_many_genuine_payments_it_kept() -> None:
    small = choose_rows(
        stream(drifting()), at(CHANGE), at(NOW), MATURITY, warm_up_days=4.0, settings=replace(ROWS, capacity=600)
    )
    whole = rows_at(drifting())
    assert len(small.past) == 600
    assert small.fraud_T[small.past].sum() == whole.fraud_T[whole.past].sum()
    genuine = [(~r.fraud_T[r.past]).sum() for r in (small, whole)]
    assert whole.kept == 1.0
    assert small.kept == pytest.approx(genuine[0] / genuine[1])


def test_too_little_evidence_is_named() -> None:
    assert "known frauds to train on" in str(rows_at(drifting(), known_day=CHANGE + 4.5).lacking())
    assert rows_at(drifting()).lacking() is None
    assert "29 payers" in str(replace(rows_at(drifting()), gate_payers=29).lacking())
    with pytest.raises(InputError, match="too few labels for an update"):
        carry_out(champion(), history(), rows_at(drifting(), known_day=CHANGE + 4.5), FULL, QUICK)
    with pytest.raises(InputError, match="nothing to update: calm"):
        carry_out(champion(), history(), rows_at(drifting()), UpdatePlan("none", "calm"), QUICK)


def test_tokens_that_were_not_kept_are_missed_by_name() -> None:
    s = stream(drifting())
    some = History.replay(champion(), s, np.arange(len(s)) < 10)
    with pytest.raises(ValueError, match="1 without"):
        some.inputs(np.array([3, 10]))


# --- the update ---


@pytest.mark.parametrize("scope", ["head", "full"])
def test_an_update_learns_the_new_fraud_and_leaves_the_champion_alone(scope: str) -> None:
    weights = {name: value.clone() for name, value in champion().network.state_dict().items()}
    found = updated(scope)
    assert all(torch.equal(weights[name], value) for name, value in champion().network.state_dict().items())
    assert found.after > found.before
    assert (found.model.boosting is champion().boosting) == (scope == "head")
    moved = {n.split(".")[0] for n, v in found.model.network.state_dict().items() if not torch.equal(v, weights[n])}
    assert moved <= ({"head"} if scope == "head" else {*moved})
    if scope == "full":
        assert found.kept
        assert found.after > found.before + 0.1
        assert found.forgetting <= 0.02


def test_unknown_labels_and_later_payments_do_not_reach_the_challenger() -> None:
    flipped = later_labels_flipped(drifting(), NOW)
    flipped.loc[flipped["event_time"] > START + pd.Timedelta(days=NOW), "amount"] = 9999.0
    s = stream(flipped)
    other = History.replay(champion(), s, np.ones(len(s), bool))
    found = carry_out(champion(), other, rows_at(flipped), FULL, QUICK, seed=0)  # the same seed: the same challenger
    np.testing.assert_array_equal(found.challenger["fused"], updated("full").challenger["fused"])


def test_without_a_change_the_gate_refuses() -> None:
    """The labels of two equal worlds: there is nothing to gain."""
    frame = random_stream(7500, days=60, seed=1)
    s = stream(frame)
    calm = History.replay(champion(), s, np.ones(len(s), bool))
    rows = rows_at(frame, known_day=58.0)
    found = carry_out(champion(), calm, rows, HEAD, QUICK, seed=0)
    assert not found.kept
    assert "does not exceed" in found.reasons[0]


def test_forgetting_refuses_what_the_gate_lets_through() -> None:
    """The payments from before the change get other labels, which only the champion seems to have known."""
    rows = rows_at(drifting())
    odd_T = rows.fraud_T.copy()
    odd_T[rows.old] = probability()[rows.old] >= np.sort(probability()[rows.old])[-30]
    found = carry_out(champion(), history(), replace(rows, fraud_T=odd_T), FULL, QUICK)
    assert not found.kept
    assert found.forgetting > 0.02
    assert " exceeds +0.0000" in found.reasons[0]
    assert "forgetting" in found.reasons[1]


# --- the watch ---


def test_a_change_in_the_errors_is_seen_soon_and_placed_where_it_happened() -> None:
    days = [day for day in np.arange(33.0, NOW, 2.0) if outlook_at(drifting(), day).since is not None]
    assert days
    assert days[0] <= CHANGE + 4 + 7  # a week of matured labels
    found = outlook_at(drifting(), NOW)
    assert found.plan.scope == "full"
    assert "mean error rose by" in found.plan.why
    assert found.since == pytest.approx(at(CHANGE), abs=4 * DAY)
    assert found.labelled_days == pytest.approx((at(NOW) - MATURITY - (found.since or 0.0)) / DAY)


def test_nothing_drifts_before_the_change() -> None:
    assert all(outlook_at(drifting(), day).plan.scope == "none" for day in (31.0, 34.0))


def test_after_an_update_the_labels_of_seven_days_are_learnt_from_and_then_the_errors_decide() -> None:
    last = LastUpdate("full", at(35.0))
    settling = outlook_at(drifting(), NOW, last)  # the newest matured payment is of day 42
    assert settling.plan == UpdatePlan("full", "labels of 7.0 of 7 days after the change are known")
    assert settling.since == last.since
    assert outlook_at(drifting(), NOW + 0.5, last).since != last.since


def test_a_plan_waits_for_labels() -> None:
    found = look(
        *(stream(drifting()), probability(), at(22.0), at(28.0), at(NOW), MATURITY),
        warm_up_days=4.0,
        rows=RowSettings(old_days=0.05),
    )
    assert found.plan.scope == "none"
    assert "waiting for labels" in found.plan.why


# --- in a workspace ---


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A champion "first" with its held-out window, and payments until the 46th day."""
    place = Workspace(tmp_path)
    frame = drifting()
    now = frame[frame["event_time"] < START + pd.Timedelta(days=NOW)]
    place.payments.mkdir()
    for day, payments in now.groupby(now["event_time"].dt.strftime("%Y-%m-%d")):
        payments.to_parquet(place.payments / f"{day}.parquet", index=False)
    chosen = (frame["event_time"] >= START + pd.Timedelta(days=22)) & (
        frame["event_time"] < START + pd.Timedelta(days=28)
    )
    window = frame.loc[chosen, ["transaction_id", "event_time", "payer", "amount", "is_fraud"]]
    save_challenger(champion(), window.assign(fused=probability()[chosen]), place, "first")
    (place.root / "champion.json").write_text(json.dumps({"version": 1, "run": "first"}))
    return place


class Registry:
    """Remembers what was promoted."""

    promoted: int | None = None

    def promote(self, name: str, version: int) -> None:
        self.promoted = version


def test_from_a_plan_to_a_stored_challenger_and_on_to_the_next_plan(workspace: Workspace) -> None:
    frame = drifting()
    frame = frame[frame["event_time"] < START + pd.Timedelta(days=NOW)].reset_index(drop=True)
    outlook = plan_update(workspace, warm_up_days=4.0)
    assert outlook is not None
    assert outlook.plan.scope == "full"
    found = update_champion(workspace, frame, outlook, "second", QUICK, warm_up_days=4.0)
    assert found.kept
    window = pd.read_parquet(workspace.evaluation("second"))
    np.testing.assert_allclose(window["fused"], found.challenger["fused"])
    stored = json.loads(workspace.update("second").read_text())
    assert stored["kept"] is True
    assert stored["since"] == outlook.since
    np.testing.assert_allclose(
        FraudModel.load(workspace.model("second")).blend.probability({"lightgbm": np.zeros(1), "network": np.zeros(1)}),
        found.model.blend.probability({"lightgbm": np.zeros(1), "network": np.zeros(1)}),
    )
    assert last_update(workspace, "first") is None
    registry = Registry()
    promote_challenger(registry, 2, workspace, "second")  # type: ignore[arg-type]
    assert registry.promoted == 2
    assert last_update(workspace, "second") == LastUpdate("full", outlook.since or 0.0)
    following = plan_update(workspace, warm_up_days=4.0)
    assert following is not None  # with twelve days of labels after the change the errors decide, and they fell
    assert following.plan.scope == "none"


def test_without_a_champion_there_is_nothing_to_do(tmp_path: Path) -> None:
    empty = Workspace(tmp_path)
    assert plan_update(empty, warm_up_days=4.0) is None
    assert "no champion" in str(update_when_due(empty, drifting(), "x", warm_up_days=4.0))
    with pytest.raises(InputError, match="there is no champion"):
        update_champion(empty, drifting(), Outlook(FULL, at(CHANGE), at(NOW)), "x", warm_up_days=4.0)
