"""The scorer: live and replayed scores agree, stops have reasons, and reasons matter."""

from __future__ import annotations

import numpy as np
import pandas as pd

from solutions.fraud.decisions import DecisionPolicy
from solutions.fraud.engine import seconds
from solutions.fraud.messages import Label, Payment
from solutions.fraud.reasons import GROUPS, effects
from solutions.fraud.scorer import Scorer, replay
from tests.solutions.fraud.streams import random_stream, tiny_model

WARY = DecisionPolicy(friction=0.0, friction_fraction=0.0)


def payments_of(frame: pd.DataFrame) -> list[Payment]:
    rows = zip(
        frame["transaction_id"],
        seconds(frame["event_time"]),
        frame["payer"],
        frame["payee"],
        frame["amount"],
        frame["device"],
        strict=True,
    )
    return [Payment(i, float(t), a, b, float(x), None if pd.isna(d) else d) for i, t, a, b, x, d in rows]


def test_live_one_by_one_equals_replay() -> None:
    frame = random_stream(500, seed=2)
    replayed = replay(tiny_model(), frame, model_version="v", policy=WARY)
    scorer = Scorer(tiny_model(), model_version="v", policy=WARY)
    labels = [
        Label(i, True, float(t), "test")
        for i, t, y in zip(frame["transaction_id"], seconds(frame["label_time"]), frame["is_fraud"], strict=True)
        if y == 1
    ]
    labels.sort(key=lambda label: label.label_time)
    live = []
    for payment in payments_of(frame):
        while labels and labels[0].label_time < payment.event_time:
            assert scorer.apply_labels([labels.pop(0)]) == ["applied"]
        live.extend(scorer.score([payment]))
    np.testing.assert_allclose([s.probability for s in live], replayed["probability"], atol=1e-6)
    assert [s.decision for s in live] == replayed["decision"].tolist()
    assert [list(s.reasons) for s in live] == replayed["reasons"].tolist()


def test_every_stop_has_reasons_and_no_pass_has_one() -> None:
    scores = replay(tiny_model(), random_stream(800, seed=4), model_version="v", policy=WARY)
    codes = {group.code for group in GROUPS}
    for decision, reasons in zip(scores["decision"], scores["reasons"], strict=True):
        assert bool(reasons) == (decision != "allow")
        assert set(reasons) <= codes
        assert len(reasons) <= 3


def test_the_payee_is_the_reason_where_the_payee_is_bad() -> None:
    """In the test stream fraud follows payees, so that is what the strongest reason must be."""
    model = tiny_model()
    frame = random_stream(2500, seed=6)
    scores = replay(model, frame, model_version="v", policy=WARY)
    worst = scores.nlargest(30, "probability")
    first = [reasons[0] for reasons in worst["reasons"]]
    assert first.count("PAYEE_COMPROMISED") > 20


def test_effects_of_an_ordinary_payment_are_small() -> None:
    model = tiny_model()
    frame = random_stream(400, seed=7)
    scorer = Scorer(model, model_version="v")
    scorer.score(payments_of(frame.head(399)))
    from solutions.fraud.engine import encode_payments

    observed = scorer.engine.observe(encode_payments(frame.tail(1), model.engine))
    assert set(effects(model, observed.x_TF[0])) == {group.code for group in GROUPS}
