"""What operators do while the scorer runs: change the model and back, watch a challenger, read figures, ask what if."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solutions.fraud.changelog import newest_marker
from solutions.fraud.data import InputError
from solutions.fraud.decisions import DecisionPolicy
from solutions.fraud.exposition import EDGES, Histogram, ScoreDrift, serve_metrics
from solutions.fraud.graph_state import LABEL_FRAUD
from solutions.fraud.messages import Label, encode_label
from solutions.fraud.scorer import Scorer, replay
from solutions.fraud.stream import Service
from solutions.fraud.what_if import read_scores, what_if
from tests.solutions.fraud.streams import random_stream, tiny_model
from tests.solutions.fraud.stub import CountingScorer, send, settings_for
from tests.solutions.fraud.test_scorer import payments_of
from tests.solutions.fraud.test_stream import NOON, fresh_name, payment, scores_of


def other_model():  # type: ignore[no-untyped-def]
    model = tiny_model()
    intercepts = {name: value + 3.0 for name, value in model.blend.intercepts.items()}
    return replace(model, blend=replace(model.blend, intercepts=intercepts))


def test_a_model_is_changed_on_the_running_state_and_back() -> None:
    frame = payments_of(random_stream(300, seed=2))
    steady = Scorer(tiny_model(), model_version="1")
    changed = Scorer(tiny_model(), model_version="1")
    wanted = [steady.score(frame[i : i + 100]) for i in (0, 100, 200)]
    assert changed.score(frame[:100]) == wanted[0]
    changed.change_model(other_model(), "2")
    middle = changed.score(frame[100:200])
    assert {s.model_version for s in middle} == {"2"}
    assert all(m.probability > w.probability for m, w in zip(middle, wanted[1], strict=True))
    changed.change_model(tiny_model(), "1")
    back = changed.score(frame[200:])
    assert [s.probability for s in back] == [s.probability for s in wanted[2]]  # no state was lost on the way


def test_a_model_of_another_state_is_refused() -> None:
    model = tiny_model()
    other = replace(model, engine=replace(model.engine, maturity_days=9.0))
    with pytest.raises(InputError, match="must have the same engine settings.*maturity_days=9.0"):
        Scorer(model, model_version="1").change_model(other, "2")


def test_a_restart_after_a_change_of_model_keeps_the_answers_of_the_old_one(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    send(tansu, settings.transactions, payment("t1"))
    scorer = Scorer(tiny_model(), model_version="1")
    service = Service(settings, scorer)
    while not service.step():
        pass
    service.change_scorer(lambda: scorer.change_model(other_model(), "2"))
    marker = newest_marker(settings)
    assert marker is not None
    assert (marker.sequence, marker.version) == (1, "1")
    service.close()
    send(tansu, settings.transactions, payment("t1"), payment("t2"))
    Service(settings, Scorer(other_model(), model_version="2")).run(max_records=2)
    first, again, second = scores_of(settings, 3)
    assert again == first | {"offset": 1}
    assert (first["model_version"], second["model_version"]) == ("1", "2")


def test_a_challenger_in_the_shadow_sees_everything_and_changes_nothing() -> None:
    frame = random_stream(300, seed=2)
    payments = payments_of(frame)
    alone, watched = Scorer(tiny_model(), model_version="1"), Scorer(tiny_model(), model_version="1")
    alone.score(payments[:100])
    watched.score(payments[:100])
    watched.watch(other_model())
    label = Label(payments[0].transaction_id, True, payments[100].event_time, "test")
    for scorer in (alone, watched):
        assert scorer.apply_labels([label]) == ["applied"]
    assert watched.score(payments[100:]) == alone.score(payments[100:])
    assert watched.shadow_scored == 200
    assert watched.shadow is not None
    assert (watched.shadow.engine.state.mail_label_NM == watched.engine.state.mail_label_NM).all()
    watched.watch(tiny_model())
    watched.score(payments_of(random_stream(100, seed=5)))
    assert watched.shadow_differs == 0  # the same model decides the same


def test_figures_are_served_and_hold_no_identifier(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    send(tansu, settings.transactions, payment("transaction-4711"), payment("t2"), b"poison")
    service = Service(settings, CountingScorer())
    server = serve_metrics(service, 0)
    try:
        service.run(max_records=3)
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            text = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/other")
    finally:
        server.shutdown()
        server.server_close()
    assert 'vigil_fraud_decisions_total{decision="allow"} 2' in text
    assert "vigil_fraud_dead_letters_total 1" in text
    assert 'vigil_fraud_labels_total{source="chargeback"} 0' in text
    assert "vigil_fraud_score_drift NaN" in text
    assert f'vigil_fraud_lag{{topic="{settings.transactions}",partition="0"}} 0' in text
    assert "vigil_fraud_commit_seconds_count 2" in text
    assert "4711" not in text


def test_the_drift_of_scores_shows_when_they_move_and_starts_anew_with_a_model() -> None:
    drift, rng = ScoreDrift(rows=500), np.random.default_rng(0)
    assert np.isnan(drift.index())
    for p in rng.beta(1, 20, 1000):
        drift.observe(p)
    assert drift.index() < 0.1
    for p in rng.beta(2, 8, 500):
        drift.observe(p)
    assert drift.index() > 0.25
    drift.start_anew()
    assert np.isnan(drift.index())


def test_labels_are_counted_by_who_said_so_and_fraud_stands(tansu: str) -> None:
    settings = settings_for(tansu, fresh_name())
    service = Service(settings, Scorer(tiny_model(), model_version="1"))
    send(tansu, settings.transactions, payment("t1"))
    told = [("analyst", False), ("chargeback", True), ("chargeback", True), ("analyst", False), ("acquirer 7", True)]
    send(
        tansu,
        settings.labels,
        *[encode_label(Label("t1", fraud, NOON + i, who)) for i, (who, fraud) in enumerate(told)],
    )
    service.run(max_records=6)
    assert service.served.labels_by_source == {"chargeback": 2, "analyst": 2, "other": 1}
    assert service.scorer.engine.state.mail_label_NM.max() == LABEL_FRAUD


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram()
    for seconds in (0.001, 0.03, 99.0):
        histogram.observe(seconds)
    lines = list(histogram.lines("x"))
    assert lines[0] == f'x_bucket{{le="{EDGES[0]:g}"}} 1'
    assert lines[-3:] == ['x_bucket{le="+Inf"} 3', "x_sum 99.031000", "x_count 3"]
    assert 'x_bucket{le="0.05"} 2' in lines


def test_what_if_asks_other_policies_of_recorded_scores(tmp_path: Path) -> None:
    frame = random_stream(800, seed=4)
    policy = DecisionPolicy(friction=0.5)
    replayed = replay(tiny_model(), frame, model_version="v", policy=policy)
    replayed.to_parquet(tmp_path / "scores.parquet")
    scores = read_scores(tmp_path / "scores.parquet")
    free = DecisionPolicy(insult=0.0, insult_fraction=0.0, review_cost=0.0, review_capacity_per_day=None)
    same, other = what_if(scores, frame, {"same": policy, "free": replace(free, exploration_fraction=0.0)})
    assert same.changed < 0.01
    assert other.shares["block"] > same.shares["block"]
    assert other.changed > 0.0
    assert sum(other.shares.values()) == pytest.approx(1.0)
    assert same.money_saved is not None
    unlabelled = what_if(scores, frame.drop(columns="is_fraud"), {"same": policy})
    assert unlabelled[0].money_saved is None
    with pytest.raises(InputError, match="do not belong together"):
        what_if(scores, frame.assign(transaction_id=np.arange(800) + 10**6), {"same": policy})
    frame.to_parquet(tmp_path / "payments.parquet")
    with pytest.raises(InputError, match="Missing columns: probability, decision"):
        read_scores(tmp_path / "payments.parquet")
