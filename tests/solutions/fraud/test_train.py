"""Training: what counts as known, what is calibrated, what survives saving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from solutions.fraud.data import InputError
from solutions.fraud.engine import encode_labels, encode_payments
from solutions.fraud.graph_state import DAY, LABEL_FRAUD, LABEL_UNKNOWN
from solutions.fraud.model import FraudModel, UnknownModelError
from solutions.fraud.train import Stream, TrainSettings, fit_high_amount, train_model
from tests.solutions.fraud.streams import ENGINE, random_stream, tiny_model


def test_only_matured_payments_have_a_verdict() -> None:
    """Early chargebacks come from payments whose genuine neighbours in time are not known yet: no sample of anything."""
    frame = random_stream(1000)
    stream = Stream.encode(frame, ENGINE)
    known_by = float(stream.events.time_T[700])
    verdict_T = stream.verdicts(known_by, 4 * DAY)
    young_T = stream.events.time_T + 4 * DAY > known_by
    assert (verdict_T[young_T] == LABEL_UNKNOWN).all()
    assert (verdict_T[~young_T] != LABEL_UNKNOWN).all()
    assert not ((verdict_T == LABEL_FRAUD) & ~stream.fraud_T).any()


def test_a_champion_ranks_and_is_calibrated() -> None:
    frame = random_stream(3000, seed=5)
    model = tiny_model()
    events = encode_payments(frame, model.engine)
    observed = model.new_engine().observe(events, encode_labels(frame, events.key_TE[:, 0]))
    p, fraud = model.probability(observed), frame["is_fraud"].to_numpy() == 1
    late = slice(1500, None)
    assert p[late][fraud[late]].mean() > 2 * p[late][~fraud[late]].mean()
    assert p[late].mean() == pytest.approx(fraud[late].mean(), rel=0.6)


def test_saving_and_loading_keeps_every_probability(tmp_path: Path) -> None:
    frame = random_stream(400, seed=3)
    model = tiny_model()
    model.save(tmp_path / "model")
    again = FraudModel.load(tmp_path / "model")
    events = encode_payments(frame, model.engine)
    labels = encode_labels(frame, events.key_TE[:, 0])
    a, b = (m.probability(m.new_engine().observe(events, labels)) for m in (model, again))
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_a_directory_without_a_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"model.json is missing. Train one"):
        FraudModel.load(tmp_path)


def test_too_few_frauds_are_refused_with_the_count() -> None:
    frame = random_stream(500).assign(is_fraud=np.int8(0))
    with pytest.raises(InputError, match="at least 20 are needed.*Received: 0"):
        train_model(frame, TrainSettings(engine=ENGINE, warm_up_days=2.0), seed=0)


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        Stream.encode(random_stream(10).head(0), ENGINE)


def test_the_amount_that_is_fraud_by_itself() -> None:
    amount = np.concatenate([np.linspace(1, 219, 5000), np.linspace(221, 400, 60)])
    fraud = amount > 220
    fraud[::100] = True
    assert fit_high_amount(amount, fraud) == pytest.approx(220.0, abs=2.0)
    assert fit_high_amount(amount, np.zeros(len(amount), bool)) == float("inf")


def test_settings_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match=r"keep_genuine=0.0"):
        TrainSettings(keep_genuine=0.0)
