"""The prior: what it learns, and that boosting and network start from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from solutions.fraud.boosting import Boosting
from solutions.fraud.engine import Engine, encode_labels, encode_payments
from solutions.fraud.features import AGGREGATES, LEAST_HABIT
from solutions.fraud.network import NetworkSettings, TemporalGraphNetwork
from solutions.fraud.prior import COLUMNS, Prior
from tests.solutions.fraud.streams import ENGINE, random_stream


def planted(n: int = 40_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Aggregates at random, and a truth that follows 1.5 * posterior + 4 * high - 1."""
    rng = np.random.default_rng(seed)
    x_TF = rng.normal(size=(n, len(AGGREGATES))).astype(np.float32)
    x_TF[:, COLUMNS[1]] = rng.random(n) < 0.1
    logit = 1.5 * x_TF[:, COLUMNS[0]] + 4.0 * x_TF[:, COLUMNS[1]] - 1.0
    return x_TF, rng.random(n) < 1.0 / (1.0 + np.exp(-logit))


def test_the_prior_learns_what_was_planted_and_serves_arrays_and_tensors() -> None:
    x_TF, fraud_T = planted()
    prior = Prior.fit(x_TF, fraud_T)
    assert (prior.posterior, prior.high, prior.intercept) == pytest.approx((1.5, 4.0, -1.0), abs=0.15)
    np.testing.assert_allclose(prior.logit(torch.from_numpy(x_TF)).numpy(), prior.logit(x_TF), atol=1e-5)


def test_an_untrained_network_says_what_the_prior_says() -> None:
    frame = random_stream(200)
    events = encode_payments(frame, ENGINE)
    observed = Engine(ENGINE).observe(events, encode_labels(frame, events.key_TE[:, 0]))
    prior = Prior(0.9, 5.0, -0.3)
    network = TemporalGraphNetwork(NetworkSettings(), prior)
    network.prior_shift.fill_(np.log(0.1))  # of training on a tenth of the genuine payments
    logit = network.logit(observed.x_TF, observed.modalities())
    np.testing.assert_allclose(logit, prior.logit(observed.x_TF), atol=1e-4)


def test_boosting_starts_from_the_prior_and_stops_when_it_adds_nothing() -> None:
    x_TF, fraud_T = planted(6000)
    later = planted(6000, seed=1)
    prior = Prior(1.5, 4.0, -1.0)  # the truth: every tree is noise
    boosting = Boosting.train(x_TF, fraud_T, prior, seed=0, trees=300, held=later, threads=1)
    assert boosting.trees < 60
    assert np.abs(boosting.logit(x_TF) - prior.logit(x_TF)).mean() < 0.1
    blind = Boosting.train(x_TF, fraud_T, Prior(0.0, 0.0, 0.0), seed=0, trees=300, held=later, threads=1)
    assert blind.trees > 100


def test_a_habit_needs_some_payments() -> None:
    """With fewer usual payments before, how far an amount is from them is no evidence: the ratio is 1."""
    frame = random_stream(40, devices=False).assign(payer="c0", amount=20.0)
    frame.loc[[LEAST_HABIT - 1, LEAST_HABIT, 20], "amount"] = 200.0
    observed = Engine(ENGINE).observe(encode_payments(frame, ENGINE))
    ratio_T = observed.x_TF[:, AGGREGATES.index("amount_ratio")]
    assert ratio_T[:LEAST_HABIT].tolist() == [1.0] * LEAST_HABIT
    assert ratio_T[20] == pytest.approx(10.0, rel=0.01)
