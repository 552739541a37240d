"""The traps of a streaming graph state: leaks, batching, clocks, labels, neighbours, eviction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from solutions.fraud.engine import Engine, EngineSettings, Events, Labels, Observed, encode_labels, encode_payments
from solutions.fraud.features import AGGREGATES
from solutions.fraud.graph_state import DAY, LABEL_OUTCOMES, StateSettings, hash_id, hash_ids
from tests.solutions.fraud.streams import ENGINE, random_stream, tiny_model


def observe(frame: pd.DataFrame, engine: Engine | None = None) -> Observed:
    engine = engine or tiny_model().new_engine()
    events = encode_payments(frame, engine.settings)
    return engine.observe(events, encode_labels(frame, events.key_TE[:, 0]))


def assert_same(a: Observed, b: Observed, rows: slice = slice(None)) -> None:
    np.testing.assert_array_equal(a.x_TF[rows], b.x_TF[rows])
    for x, y in zip(a.token_SKF, b.token_SKF, strict=True):
        np.testing.assert_array_equal(x[rows], y[rows])


def test_own_label_and_later_events_do_not_touch_a_payment() -> None:
    frame = random_stream(1500)
    target = 1000
    changed = frame.copy()
    changed.loc[target, "is_fraud"] = 1 - changed.loc[target, "is_fraud"]
    changed.loc[target, "label_time"] = changed.loc[
        target, "event_time"
    ]  # known the moment it happens: still not before
    changed.loc[target + 1 :, "amount"] = 999.0
    assert_same(observe(frame), observe(changed), slice(0, target + 1))


def test_a_label_that_has_arrived_does_change_later_payments() -> None:
    frame = random_stream(1500)
    silent = frame.assign(label_time=pd.NaT)
    assert not np.array_equal(observe(frame).x_TF[-200:], observe(silent).x_TF[-200:])


@pytest.mark.parametrize("batch", [1, 16, 64])
def test_batch_size_changes_nothing(batch: int) -> None:
    frame = random_stream(600)
    model = tiny_model()
    whole = observe(frame)
    engine = model.new_engine()
    events = encode_payments(frame, engine.settings)
    labels = encode_labels(frame, events.key_TE[:, 0])
    done, parts = 0, []
    for begin in range(0, len(events), batch):
        part = slice(begin, begin + batch)
        piece = Events(events.key_TE[part], events.time_T[part], events.amount_T[part])
        due = slice(done, max(done, int(np.searchsorted(labels.time_T, piece.time_T[-1], side="left"))))
        done = due.stop
        observed = engine.observe(piece, Labels(labels.key_T[due], labels.time_T[due], labels.fraud_T[due]))
        parts.append((observed.x_TF, model.probability(observed)))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), whole.x_TF)
    np.testing.assert_allclose(np.concatenate([p for _, p in parts]), model.probability(whole), atol=1e-6)


def test_a_late_payment_is_scored_and_moves_no_clock_back() -> None:
    engine = tiny_model().new_engine()
    frame = random_stream(300)
    observe(frame, engine)
    before = engine.state.last_N.copy()
    late = frame.tail(1).assign(transaction_id="late", event_time=frame["event_time"].iloc[0])
    assert np.isfinite(observe(late, engine).x_TF).all()
    assert (engine.state.last_N >= before).all()


def test_a_neighbours_label_changes_the_score_of_a_fresh_account() -> None:
    """The device's other account is proven fraudulent: that is two hops away from the new payment."""
    model = tiny_model()
    rows = {
        "transaction_id": ["a", "b"],
        "event_time": pd.to_datetime(["2024-05-01", "2024-05-03"]).astype("datetime64[us]"),
        "payer": ["mule1", "mule2"],
        "payee": ["x", "y"],
        "amount": [20.0, 20.0],
        "device": ["shared", "shared"],
        "is_fraud": np.array([1, 0], np.int8),
        "label_time": pd.to_datetime(["2024-05-02", None]).astype("datetime64[us]"),
    }
    known = pd.DataFrame(rows)
    unknown = known.assign(label_time=pd.NaT)
    column = AGGREGATES.index("device_frauds")
    assert observe(known).x_TF[1, column] == 1.0
    assert observe(unknown).x_TF[1, column] == 0.0
    p_known, p_unknown = (model.network.logit(o.x_TF, o.modalities())[1] for o in (observe(known), observe(unknown)))
    assert p_known != p_unknown


def test_self_transfers_and_account_to_account_streams_work() -> None:
    settings = EngineSettings(state=ENGINE.state, account_to_account=True)
    frame = random_stream(300, devices=False)
    frame["payee"] = frame["payer"].sample(frac=1.0, random_state=1).to_numpy()
    frame.loc[5, "payee"] = frame.loc[5, "payer"]
    observed = observe(frame, Engine(settings))
    assert np.isfinite(observed.x_TF).all()
    assert observed.x_TF[:, AGGREGATES.index("reciprocal")].max() > 0


def test_labels_are_idempotent_and_fraud_overrides_genuine() -> None:
    engine = tiny_model().new_engine()
    observe(random_stream(50).assign(label_time=pd.NaT), engine)
    key = hash_ids(["t7", "t7", "t7", "t7", "nobody"], "payment")
    outcomes = engine.apply_labels(key, np.array([False, False, True, False, True]))
    assert [LABEL_OUTCOMES[o] for o in outcomes] == [
        "applied",
        "duplicate",
        "applied",
        "duplicate",
        "unknown_payment",
    ]


def test_state_is_bounded_and_an_evicted_endpoint_starts_anew() -> None:
    small = EngineSettings(state=StateSettings(nodes=16, mailbox=64, pending=64))
    frame = random_stream(2000, devices=False)
    engine = Engine(small)
    observed = observe(frame, engine)
    assert np.isfinite(observed.x_TF).all()
    assert len(np.unique(engine.state.key_N)) <= 16
    assert engine.state.generation_N.max() > 0


def test_hashes_of_columns_and_of_single_identifiers_agree() -> None:
    assert hash_ids(["a", None, "b"], "payer").tolist() == [hash_id("a", "payer"), 0, hash_id("b", "payer")]
    assert hash_id("a", "payer") != hash_id("a", "payee")


def test_book_features_agree_with_pandas() -> None:
    """The slow twin: rolling windows over whole columns."""
    frame = random_stream(1200, devices=False).assign(label_time=lambda f: f["event_time"] + pd.Timedelta(days=4))
    x = pd.DataFrame(observe(frame).x_TF, columns=list(AGGREGATES))
    for window in (1, 7, 30):
        rolling = frame.set_index("event_time").groupby("payer")["amount"].rolling(f"{window}D")
        expected = rolling.mean().reset_index(level=0, drop=True).sort_index()
        np.testing.assert_allclose(x[f"payer_mean_{window}d"], expected, rtol=1e-5)
        counts = []
        rates = []
        time = frame["event_time"].to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
        for i in range(0, len(frame), 37):
            matured = (frame["payee"] == frame["payee"].iat[i]).to_numpy() & (time < time[i] - 4 * DAY)
            chosen = matured & (time > time[i] - (4 + window) * DAY)
            counts.append(chosen.sum())
            rates.append(frame["is_fraud"].to_numpy()[chosen].mean() if chosen.any() else 0.0)
        np.testing.assert_array_equal(x[f"payee_count_{window}d"].to_numpy()[::37], counts)
        np.testing.assert_allclose(x[f"payee_rate_{window}d"].to_numpy()[::37], rates, rtol=1e-5)
