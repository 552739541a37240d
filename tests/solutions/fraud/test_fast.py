"""The compiled twins of network and trees agree with the slow ones, and give the same bits in any batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from solutions.fraud.engine import Observed, encode_labels, encode_payments
from solutions.fraud.fast import FastLogits
from solutions.fraud.fast_trees import Trees, UnsupportedTreesError, tree_logit
from solutions.fraud.graph_state import ROLES
from solutions.fraud.network import NetworkSettings, TemporalGraphNetwork
from solutions.fraud.prior import Prior
from tests.solutions.fraud.streams import random_stream, tiny_model


def observed_stream(n: int = 600, *, devices: bool = True) -> Observed:
    model = tiny_model()
    events = encode_payments(frame := random_stream(n, seed=3, devices=devices), model.engine)
    return model.new_engine().observe(events, encode_labels(frame, events.key_TE[:, 0]))


def compiled(network: TemporalGraphNetwork, observed: Observed) -> np.ndarray:
    return FastLogits(tiny_model().boosting, network).network(observed, slice(None))


def exact(network: TemporalGraphNetwork, observed: Observed) -> np.ndarray:
    """The slow twin in double precision."""
    double = TemporalGraphNetwork(network.settings, network.prior).double().eval()
    double.load_state_dict(network.state_dict())
    for block in double.backbone.blocks:
        block.mixture.experts.forward = block.mixture.experts.looped  # grouped_mm knows no double
    tokens = {r: torch.from_numpy(t).double() for r, t in zip(ROLES, observed.token_SKF, strict=True)}
    masks = {r: torch.from_numpy(m) for r, m in zip(ROLES, observed.mask_SK, strict=True)}
    with torch.no_grad():
        logit_T = double(torch.from_numpy(observed.x_TF).double(), tokens, masks)
    return (logit_T + double.prior_shift).numpy()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"layers": 2},
        {"moe": False},
        {"top_k": 1},
        {"top_k": 3, "num_experts": 5},
        {"shared_width": 0},
        {"width": 24, "heads": 2, "read_outs": 3, "aggregate_tokens": 2, "frequencies": 5, "expert_width": 12},
    ],
)
def test_the_compiled_network_agrees_with_the_slow_twin(change: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network = TemporalGraphNetwork(NetworkSettings(**change), Prior(0.9, 2.0, -0.5))
    observed = observed_stream()
    network.standardise_by(observed.x_TF)
    network.prior_shift.fill_(-2.0)
    for parameter in network.parameters():  # far from the start, where gates and biases are zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    fast_T, slow_T = compiled(network, observed), network.logit(observed.x_TF, observed.modalities())
    np.testing.assert_allclose(fast_T, slow_T, atol=5e-5)
    assert np.std(slow_T) > 0.05  # they agree about something


def test_a_trained_network_is_as_near_to_the_truth_as_the_slow_twin_and_near_enough() -> None:
    network, observed = tiny_model().network, observed_stream()
    wanted_T = exact(network, observed)
    fast_T, slow_T = compiled(network, observed), network.logit(observed.x_TF, observed.modalities())
    assert np.abs(fast_T - wanted_T).max() < max(2.0 * np.abs(slow_T - wanted_T).max(), 1e-5)
    sigmoid = [1.0 / (1.0 + np.exp(-z_T)) for z_T in (fast_T, slow_T)]
    np.testing.assert_allclose(sigmoid[0], sigmoid[1], atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_the_same_bits_in_any_batch(batch: int) -> None:
    model, observed = tiny_model(), observed_stream()
    whole = model.logits(observed)
    cuts = [slice(i, i + batch) for i in range(0, len(observed.x_TF), batch)]
    for name in ("lightgbm", "network"):
        cut_T = np.concatenate([model.fast.logits(observed, cut)[name] for cut in cuts])
        assert (cut_T == whole[name]).all()
    threaded = model.logits(observed, threads=2)
    assert (threaded["network"] == whole["network"]).all()


def test_payments_without_mails_are_scored() -> None:
    observed = observed_stream(40, devices=False)
    none = replace(observed, mask_SK=tuple(np.zeros_like(mask) for mask in observed.mask_SK))
    network = tiny_model().network
    np.testing.assert_allclose(compiled(network, none), network.logit(none.x_TF, none.modalities()), atol=1e-5)
    assert np.abs(compiled(network, none) - compiled(network, observed)).max() > 1e-3  # mails matter


def test_compiled_trees_equal_lightgbm_to_the_bit() -> None:
    import lightgbm

    model, observed = tiny_model(), observed_stream()
    assert (model.fast.boosting(observed.x_TF) == model.boosting.logit(observed.x_TF)).all()
    x = np.random.default_rng(0).normal(size=(800, 6)).astype(np.float32)
    target = x[:, 0] * x[:, 1] + np.sin(x[:, 2])
    many = lightgbm.train({"objective": "regression", "verbose": -1}, lightgbm.Dataset(x, label=target), 60)
    out_T = np.empty(800)
    tree_logit(Trees.of(many), x, out_T)
    assert (out_T == many.predict(x, raw_score=True)).all()
    assert len(np.unique(out_T)) > 700


def test_trees_that_are_not_known_are_refused() -> None:
    import lightgbm

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = (x[:, 0] > 0).astype(float)
    x[::7, 0] = np.nan
    missing = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(x, label=y), 3)
    with pytest.raises(UnsupportedTreesError, match="missing_type=NaN"):
        Trees.of(missing)


def test_a_single_leaf_is_a_tree() -> None:
    import lightgbm

    x = np.zeros((50, 2))
    single = lightgbm.train({"objective": "regression", "verbose": -1}, lightgbm.Dataset(x, label=np.arange(50.0)), 2)
    out_T = np.empty(3)
    tree_logit(Trees.of(single), np.zeros((3, 2), np.float32), out_T)
    np.testing.assert_allclose(out_T, single.predict(np.zeros((3, 2)), raw_score=True))
