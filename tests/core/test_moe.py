"""The mixture of experts: three routes that agree, a bias that only picks, a balance that holds on unseen data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.moe import DenseFeedForward, MoE, MoESettings, Route, Router, load_report
from core.training import TrainingSettings, fit, shuffled

ROUTES: tuple[Route, ...] = ("grouped", "dense", "looped")


def mixture(seed: int = 0, **changes: Any) -> MoE:
    torch.manual_seed(seed)
    sizes = {"width": 12, "num_experts": 6, "top_k": 2, "expert_width": 8, "shared_width": 4}
    return MoE(MoESettings(**{**sizes, **changes}))


def values_and_gradients(moe: MoE, route: Route, x_TD: Tensor, mask_T: Tensor | None) -> list[Tensor]:
    object.__setattr__(moe.experts.settings, "route", route)
    moe.zero_grad()
    x_TD = x_TD.clone().requires_grad_()
    out_TD = moe(x_TD, mask_T)
    (out_TD * torch.linspace(-1.0, 1.0, out_TD.numel()).view_as(out_TD)).sum().backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in moe.parameters()]
    assert x_TD.grad is not None
    return [out_TD.detach(), x_TD.grad, *(g.clone() for g in gradients)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_grouped_dense_and_looped_experts_agree_in_value_and_gradient(data: st.DataObject) -> None:
    experts = data.draw(st.integers(1, 7), label="experts")
    moe = mixture(
        seed=data.draw(st.integers(0, 99), label="seed"),
        width=4 * data.draw(st.integers(1, 3), label="width"),
        num_experts=experts,
        top_k=data.draw(st.integers(1, experts), label="top_k"),
        expert_width=4 * data.draw(st.integers(1, 3), label="hidden"),
        shared_width=data.draw(st.sampled_from([0, 5]), label="shared"),
        gate=data.draw(st.sampled_from(["sigmoid", "softmax"]), label="gate"),
        activation=data.draw(st.sampled_from(["gelu", "swiglu"]), label="activation"),
    )
    x_TD = torch.randn(data.draw(st.integers(0, 40), label="tokens"), moe.settings.width)
    mask_T = torch.rand(len(x_TD)) > 0.3 if data.draw(st.booleans(), label="masked") else None
    expected = values_and_gradients(moe, "looped", x_TD, mask_T)
    for route in ROUTES[:2]:
        for one, other in zip(values_and_gradients(moe, route, x_TD, mask_T), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_looped_experts_are_the_definition_of_a_mixture() -> None:
    moe = mixture(shared_width=0, route="looped")
    x_TD = torch.randn(5, 12)
    routing = moe.router(x_TD)
    for t in range(5):
        expected_D = torch.zeros(12)
        for weight, e in zip(routing.weights_TK[t], routing.experts_TK[t], strict=True):
            hidden_H = torch.nn.functional.gelu(moe.experts.up_EHD[e] @ x_TD[t])
            expected_D = expected_D + weight * (hidden_H @ moe.experts.down_EHD[e])
        torch.testing.assert_close(moe(x_TD)[t], expected_D)


@pytest.mark.parametrize("route", ROUTES)
def test_order_of_tokens_does_not_matter(route: Route) -> None:
    moe = mixture(route=route)
    x_TD, order_T = torch.randn(50, 12), torch.randperm(50)
    torch.testing.assert_close(moe(x_TD[order_T]), moe(x_TD)[order_T])


@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_the_bias_picks_and_never_weighs(gate: str) -> None:
    router = mixture(gate=gate).router
    x_TD = torch.randn(64, 12)
    logit_TE = router.gate(x_TD)
    affinity_TE = logit_TE.sigmoid() if gate == "sigmoid" else logit_TE.softmax(-1)
    router.bias_E.copy_(torch.tensor([0.0, 9.0, 0.0, 0.0, 7.0, 0.0]))
    routing = router(x_TD)
    assert set(routing.experts_TK.flatten().tolist()) == {1, 4}  # it picks
    expected_TK = affinity_TE.gather(1, routing.experts_TK)
    torch.testing.assert_close(routing.weights_TK, expected_TK / expected_TK.sum(1, keepdim=True))  # it never weighs


def test_no_gradient_reaches_the_bias_and_it_is_saved_with_the_model() -> None:
    moe = mixture()
    assert "router.bias_E" in moe.state_dict()
    assert "router.bias_E" not in dict(moe.named_parameters())
    assert "router.seen_E" not in moe.state_dict()  # counts of a step that is over


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_gate_learns_also_when_one_expert_is_chosen(top_k: int) -> None:
    moe = mixture(top_k=top_k)
    moe(torch.randn(20, 12)).square().sum().backward()
    assert moe.router.gate.weight.grad is not None
    assert float(moe.router.gate.weight.grad.abs().sum()) > 1e-3


def test_rebalance_moves_once_toward_the_mean_load_and_forgets_the_counts() -> None:
    router = mixture(bias_update_rate=0.1).router
    router.seen_E.copy_(torch.tensor([9.0, 1.0, 5.0, 5.0, 5.0, 5.0]))
    router.rebalance()
    torch.testing.assert_close(router.bias_E, torch.tensor([-0.1, 0.1, 0.0, 0.0, 0.0, 0.0]))
    router.rebalance()  # nothing seen since: nothing moves
    torch.testing.assert_close(router.bias_E, torch.tensor([-0.1, 0.1, 0.0, 0.0, 0.0, 0.0]))


def test_the_bias_moves_only_in_rebalance_and_only_for_training_tokens() -> None:
    router = mixture().router
    router(torch.randn(30, 12))
    assert not router.bias_E.any()
    assert float(router.seen_E.sum()) == 60.0
    router.rebalance()
    moved_E = router.bias_E.clone()
    assert moved_E.any()
    router.eval()
    router(torch.randn(30, 12))
    router.rebalance()
    assert torch.equal(router.bias_E, moved_E)


@pytest.mark.parametrize("route", ROUTES)
def test_masked_tokens_give_zeros_count_nowhere_and_touch_no_other_token(route: Route) -> None:
    moe = mixture(route=route)
    x_TD, mask_T = torch.randn(40, 12), torch.arange(40) % 3 != 0
    mixed = moe.mix(torch.where(mask_T[:, None], x_TD, torch.nan), mask_T)
    alone = moe.mix(x_TD[mask_T])
    assert not mixed.out_TD[~mask_T].any()
    torch.testing.assert_close(mixed.out_TD[mask_T], alone.out_TD)
    assert torch.equal(mixed.load_E, alone.load_E)
    assert float(moe.router.seen_E.sum()) == 2 * 2 * float(mask_T.sum())  # both calls, two experts each
    everything = moe.mix(x_TD, torch.zeros(40, dtype=torch.bool))
    assert not everything.out_TD.any()
    assert not everything.load_E.any()


def test_a_router_asked_directly_gives_masked_tokens_no_weight_and_no_load() -> None:
    router = mixture().router
    x_TD, mask_T = torch.randn(40, 12), torch.arange(40) % 3 != 0
    routing = router(x_TD, mask_T)
    assert not routing.weights_TK[~mask_T].any()
    assert torch.equal(routing.load_E, router(x_TD[mask_T]).load_E)


@pytest.mark.parametrize("route", ["grouped", "dense"])
def test_under_bf16_autocast_the_router_chooses_as_in_fp32(route: Route) -> None:
    moe = mixture(route=route, width=16)
    x_TD = torch.randn(300, 16)
    expected, full = moe.router(x_TD), moe(x_TD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(moe.router(x_TD).experts_TK, expected.experts_TK)
        mixed = moe(x_TD)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, rtol=0.05, atol=0.05)
    assert not torch.equal(mixed, full)  # it did run in bf16


def test_few_tokens_take_the_dense_route_and_many_the_grouped_one() -> None:
    experts = mixture(width=32, num_experts=8, expert_width=16).experts
    assert experts.fastest(8) == "dense"
    assert experts.fastest(4096) == "grouped"


def test_sizes_that_can_not_be_grouped_work_all_the_same() -> None:
    moe = mixture(width=5, expert_width=3)
    assert moe.experts.fastest(10**9) == "dense"
    assert moe(torch.randn(9, 5)).shape == (9, 5)
    half = mixture(width=12, expert_width=4, route="grouped")  # aligned in fp32, not in bf16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert half(torch.randn(9, 12)).shape == (9, 12)


def test_the_dense_control_has_the_parameters_that_one_token_passes() -> None:
    settings = MoESettings(width=12, num_experts=6, top_k=2, expert_width=8, shared_width=4)
    control = DenseFeedForward(settings, settings.active_width)
    assert settings.active_width == 20
    assert sum(p.numel() for p in control.parameters()) == 2 * 12 * 20
    assert control(torch.randn(3, 5, 12)).shape == (3, 5, 12)


def test_load_report_of_even_and_uneven_loads() -> None:
    even = load_report(torch.full((4,), 7.0))
    assert (even.utilisation, even.max_violation, even.entropy) == pytest.approx((1.0, 0.0, 1.0))
    half = load_report(torch.tensor([1, 1, 0, 0]))
    assert (half.utilisation, half.max_violation, half.entropy) == pytest.approx((0.5, 1.0, 0.5))
    collapsed = load_report(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    assert (collapsed.utilisation, collapsed.max_violation, collapsed.entropy) == pytest.approx((0.25, 3.0, 0.0))
    assert load_report(torch.tensor([3.0])).entropy == 1.0


@pytest.mark.parametrize("load", [[0.0, 0.0], [1.0, -1.0], [math.nan, 1.0], []])
def test_load_report_refuses_what_are_no_counts(load: list[float]) -> None:
    with pytest.raises(ValueError, match=r"`load_E` must be counts"):
        load_report(torch.tensor(load))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"top_k": 9, "num_experts": 4}, "top_k=9, num_experts=4"),
        ({"top_k": 0}, "top_k=0"),
        ({"expert_width": 0}, "expert_width=0"),
        ({"shared_width": -1}, "shared_width=-1"),
        ({"bias_update_rate": -0.1}, "bias_update_rate=-0.1"),
        ({"bias_update_rate": math.nan}, "bias_update_rate=nan"),
        ({"gate": "relu"}, "`gate` must be one of .* Received: 'relu'"),
        ({"activation": "tanh"}, "`activation` must be one of .* Received: 'tanh'"),
        ({"route": "grouped", "width": 6}, "multiples of 4 for route='grouped'. Received: width=6, expert_width=32"),
        ({"route": "fast"}, "`route` must be one of .* Received: 'fast'"),
    ],
)
def test_settings_refuse_nonsense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MoESettings(**{"width": 8, **changes})


def held_out_utilisation(bias_update_rate: float) -> float:
    """Twenty clusters of tokens, the first far larger than the last; a hundred steps of training."""
    torch.manual_seed(1)
    centre_CD, share_C = torch.randn(20, 12), 1.0 / torch.arange(1.0, 21.0)

    def draw(tokens: int) -> Tensor:
        return centre_CD[torch.multinomial(share_C, tokens, True)] + 0.5 * torch.randn(tokens, 12)

    x_TD, held_out_TD = draw(16_384), draw(16_384)
    moe = mixture(num_experts=8, bias_update_rate=bias_update_rate)
    report = fit(
        moe,
        shuffled(len(x_TD), 512, seed=0),
        lambda model, chosen: (model(x_TD[chosen]) - x_TD[chosen].sin()).square().mean(),
        TrainingSettings(epochs=4),
    )
    assert report.losses[-1] < report.losses[0]
    return load_report(moe.mix(held_out_TD).load_E).utilisation


def test_the_bias_balances_tokens_that_were_not_trained_on() -> None:
    assert held_out_utilisation(0.0) < 0.75
    assert held_out_utilisation(MoESettings(width=1).bias_update_rate) >= 0.92


def test_router_settings_survive_a_round_trip_of_the_weights() -> None:
    one, other = mixture(seed=1), mixture(seed=2)
    one.router.bias_E.copy_(torch.randn(6))
    other.load_state_dict(one.state_dict())
    x_TD = torch.randn(9, 12)
    torch.testing.assert_close(one(x_TD), other(x_TD))
    assert isinstance(one.router, Router)
