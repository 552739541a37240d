"""The Fuser against a slow twin; what is absent contributes nothing; routing; shared and private subspaces."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.fusion import Fuser

WIDTHS = {"text": 8, "scan": 5, "record": 3}
LENGTHS = {"text": 6, "scan": 4, "record": 1}
Inputs = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def fuser(seed: int = 0, **changes: Any) -> Fuser:
    torch.manual_seed(seed)
    built = Fuser(WIDTHS, **{"width": 8, "read_outs": 3, "heads": 4, **changes})
    nn.init.normal_(built.gate.weight)  # as after training: unequal weights
    return built


def inputs(batch: int = 5, present: float = 0.7) -> Inputs:
    tokens = {name: torch.randn(batch, LENGTHS[name], width) for name, width in WIDTHS.items()}
    mask = {name: torch.rand(batch, length) < 0.8 for name, length in LENGTHS.items()}
    return tokens, mask, torch.rand(batch, len(WIDTHS)) < present


def slow_twin(layer: Fuser, tokens: dict[str, Tensor], mask: dict[str, Tensor], present_BM: Tensor) -> Tensor:
    """Example by example, head by head: project every real token, attend, weigh by the route of its modality."""
    half, size = layer.width // 2, layer.width // layer.heads
    outs = []
    for b in range(len(present_BM)):
        keys, values, owner = [], [], []
        for m, name in enumerate(layer.names):
            adapt, private = layer.adapt[name], layer.private[name]
            for token_X, real in zip(tokens[name][b], mask[name][b], strict=True):
                if bool(real & present_BM[b, m]):
                    shared_X, own_X = layer.shared(adapt(token_X)), private(token_X)
                    keys.append(torch.cat([shared_X[:half], own_X[:half]]))
                    values.append(torch.cat([shared_X[half:], own_X[half:]]))
                    owner.append(m)
        here = sorted(set(owner))
        means = [
            torch.stack([v for v, o in zip(values, owner, strict=True) if o == m]).mean(0)
            if m in here
            else torch.zeros(layer.width)
            for m in range(len(layer.names))
        ]
        score_M = layer.gate(torch.cat(means))
        route = dict(zip(here, (score_M[here].softmax(0) * len(here)), strict=True)) if here else {}
        read_SD = []
        for query_D in layer.query_SD:
            heads = []
            for n in range(layer.heads):
                part = slice(n * size, (n + 1) * size)
                if not keys:
                    heads.append(torch.zeros(size))
                    continue
                weight_L = torch.stack([key[part] @ query_D[part] / size**0.5 for key in keys]).softmax(0)
                routed_L = weight_L * torch.stack([route[o] for o in owner])
                heads.append((routed_L[:, None] * torch.stack(values)[:, part]).sum(0))
            read_SD.append(torch.cat(heads))
        outs.append(layer.out(torch.stack(read_SD)) + layer.query_SD)
    return torch.stack(outs)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), present=st.sampled_from([0.0, 0.3, 0.8, 1.0]), heads=st.sampled_from([2, 4, 8]))
def test_the_fuser_agrees_with_its_slow_twin_in_value_and_gradient(seed: int, present: float, heads: int) -> None:
    layer = fuser(seed, heads=heads)
    tokens, mask, present_BM = inputs(3, present)
    results = []
    for route in (layer, lambda *given: slow_twin(layer, *given)):
        layer.zero_grad()
        leaves = {name: token.clone().requires_grad_() for name, token in tokens.items()}
        out_BSD = route(leaves, mask, present_BM)
        (out_BSD * torch.linspace(-1.0, 1.0, out_BSD.numel()).view_as(out_BSD)).sum().backward()
        gradients = [*(leaf.grad for leaf in leaves.values()), *(p.grad for p in layer.parameters())]
        results.append([out_BSD.detach(), *(torch.zeros(()) if g is None else g.clone() for g in gradients)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow.expand_as(fast), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [100.0, math.nan, math.inf])
@pytest.mark.parametrize("by", ["presence", "mask"])
def test_an_absent_modality_contributes_nothing_whatever_its_values(value: float, by: str) -> None:
    layer = fuser()
    tokens, mask, _ = inputs()
    present_BM = torch.ones(5, 3, dtype=torch.bool)
    if by == "presence":
        present_BM[:, 1] = False
    else:
        mask["scan"] = torch.zeros_like(mask["scan"])
    expected = layer.fuse(tokens, mask, present_BM)
    changed = {**tokens, "scan": torch.full_like(tokens["scan"], value).requires_grad_()}
    fused = layer.fuse(changed, mask, present_BM)
    assert torch.equal(fused.read_BSD, expected.read_BSD)
    assert torch.equal(fused.route_BM, expected.route_BM)
    assert not fused.route_BM[:, 1].any()
    layer.zero_grad()
    fused.read_BSD.square().sum().backward()  # type: ignore[no-untyped-call]
    assert not changed["scan"].grad.any()  # type: ignore[union-attr]
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_absence_in_one_example_does_not_touch_the_others() -> None:
    layer = fuser()
    tokens, mask, _ = inputs()
    present_BM = torch.ones(5, 3, dtype=torch.bool)
    whole_BSD = layer(tokens, mask, present_BM)
    present_BM[2, 0] = False
    partly_BSD = layer(tokens, mask, present_BM)
    assert (whole_BSD != partly_BSD).flatten(1).any(1).tolist() == [False, False, True, False, False]


def test_with_nothing_present_the_read_outs_are_the_same_for_all_examples_and_finite() -> None:
    layer = fuser()
    tokens, mask, _ = inputs()
    fused = layer.fuse(tokens, mask, torch.zeros(5, 3, dtype=torch.bool))
    torch.testing.assert_close(fused.read_BSD, (layer.query_SD + layer.out.bias).expand(5, -1, -1))
    assert not fused.route_BM.any()


def test_every_present_modality_and_token_is_read() -> None:
    layer = fuser()
    tokens, _, _ = inputs(1)
    mask = {name: torch.ones(1, length, dtype=torch.bool) for name, length in LENGTHS.items()}
    present_BM = torch.ones(1, 3, dtype=torch.bool)
    leaves = {name: token.clone().requires_grad_() for name, token in tokens.items()}
    layer(leaves, mask, present_BM).square().sum().backward()
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert bool(leaf.grad.any(-1).all())


def test_routing_weighs_modalities_per_example_with_mean_one_over_the_present() -> None:
    layer = fuser()
    tokens, mask, present_BM = inputs(40)
    mask = {name: torch.ones_like(m) for name, m in mask.items()}
    route_BM = layer.fuse(tokens, mask, present_BM).route_BM
    assert torch.equal(route_BM > 0, present_BM)
    some_B = present_BM.any(1)
    torch.testing.assert_close(route_BM.sum(1)[some_B], present_BM.sum(1)[some_B].float())
    all_B = present_BM.all(1)
    assert float(route_BM[all_B].detach().std(0).min()) > 0.01  # it differs between examples


def test_an_untrained_gate_weighs_all_alike_and_gets_a_gradient() -> None:
    torch.manual_seed(0)
    layer = Fuser(WIDTHS, width=8, read_outs=3, heads=4)
    tokens, mask, _ = inputs()
    mask = {name: torch.ones_like(m) for name, m in mask.items()}
    fused = layer.fuse(tokens, mask, torch.ones(5, 3, dtype=torch.bool))
    torch.testing.assert_close(fused.route_BM, torch.ones(5, 3))
    fused.read_BSD.square().sum().backward()  # type: ignore[no-untyped-call]
    assert layer.gate.weight.grad is not None
    assert bool(layer.gate.weight.grad.any())


def test_order_of_tokens_within_a_modality_does_not_matter() -> None:
    layer = fuser()
    tokens, mask, present_BM = inputs()
    order_L = torch.randperm(LENGTHS["text"])
    shuffled = {**tokens, "text": tokens["text"][:, order_L]}
    turned = {**mask, "text": mask["text"][:, order_L]}
    torch.testing.assert_close(layer(shuffled, turned, present_BM), layer(tokens, mask, present_BM))


def test_half_of_the_heads_read_the_shared_subspace_and_half_a_private_one() -> None:
    torch.manual_seed(0)
    layer = Fuser({"left": 8, "right": 8}, width=8, read_outs=1, heads=2)
    nn.init.eye_(layer.out.weight)
    token, none = torch.randn(1, 4, 8), torch.zeros(1, 4, 8)
    real, unreal = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    present_BM = torch.ones(1, 2, dtype=torch.bool)
    as_left = layer({"left": token, "right": none}, {"left": real, "right": unreal}, present_BM)
    as_right = layer({"left": none, "right": token}, {"left": unreal, "right": real}, present_BM)
    torch.testing.assert_close(as_left[..., :4], as_right[..., :4])  # what is shared does not depend on who says it
    assert float((as_left[..., 4:] - as_right[..., 4:]).detach().abs().min()) > 1e-3


def test_a_batch_of_one_gives_what_it_gives_in_a_larger_batch() -> None:
    layer = fuser()
    tokens, mask, present_BM = inputs(7)
    whole_BSD = layer(tokens, mask, present_BM)
    for b in range(7):
        one = slice(b, b + 1)
        alone = layer({n: t[one] for n, t in tokens.items()}, {n: m[one] for n, m in mask.items()}, present_BM[one])
        torch.testing.assert_close(alone, whole_BSD[one], rtol=1e-5, atol=1e-6)


def test_bf16_autocast_stays_close_to_fp32() -> None:
    layer = fuser()
    tokens, mask, present_BM = inputs()
    full = layer(tokens, mask, present_BM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(tokens, mask, present_BM).float(), full, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("widths", "changes", "reason"),
    [
        ({}, {}, "`widths` must name modalities"),
        ({"a": 0}, {}, r"Received: \{'a': 0\}"),
        ({"a": 8}, {"heads": 3}, "width=8, heads=3"),
        ({"a": 8}, {"heads": 6}, "width=8, heads=6"),
        ({"a": 8}, {"read_outs": 0}, "read_outs=0"),
    ],
)
def test_construction_refuses_nonsense(widths: dict[str, int], changes: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Fuser(widths, width=8, **changes)


def test_input_errors_name_the_modality_and_the_shapes() -> None:
    layer = fuser()
    tokens, mask, present_BM = inputs()
    with pytest.raises(ValueError, match=r"Missing or unknown: \['scan'\]"):
        layer({n: t for n, t in tokens.items() if n != "scan"}, mask, present_BM)
    with pytest.raises(ValueError, match=r"Missing or unknown: \['sound'\]"):
        layer(tokens, {**mask, "sound": mask["scan"]}, present_BM)
    with pytest.raises(ValueError, match=r"`tokens\['scan'\]` must be \(B, L, 5\).*Received: \(5, 4, 6\) and \(5, 4\)"):
        layer({**tokens, "scan": torch.randn(5, 4, 6)}, mask, present_BM)
    with pytest.raises(ValueError, match=r"one column for each of .*Received: \(5, 2\)"):
        layer(tokens, mask, present_BM[:, :2])
