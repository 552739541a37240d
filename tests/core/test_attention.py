"""Attention against a slow twin with an explicit softmax, for every kind; rows without a key; the choice by length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.attention import LONG, Attention, Kind, choose_attention

KINDS: tuple[Kind, ...] = ("full", "sliding")


def attention(seed: int = 0, **changes: Any) -> Attention:
    torch.manual_seed(seed)
    return Attention(8, 2, **changes)


def slow_twin(layer: Attention, x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
    """One query of one head after the other: softmax over the keys it may see, zeros if there are none."""
    batch, length, width = x_BSD.shape
    size = width // layer.heads
    q, k, v = (layer.qkv(x_BSD).view(batch, length, 3, layer.heads, size)[:, :, part] for part in range(3))
    rows = []
    for b in range(batch):
        for i in range(length):
            near = [j for j in range(length) if layer.kind == "full" or abs(i - j) <= layer.window]
            seen = [j for j in near if mask_BS is None or bool(mask_BS[b, j])]
            for n in range(layer.heads):
                if seen:
                    weight_K = (k[b, seen, n] @ q[b, i, n] / size**0.5).softmax(0)
                    rows.append(weight_K @ v[b, seen, n])
                else:
                    rows.append(0.0 * q[b, i, n])
    out: Tensor = layer.out(torch.stack(rows).view(batch, length, width))
    return out


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_kind_agrees_with_its_slow_twin_in_value_and_gradient(data: st.DataObject) -> None:
    layer = attention(
        seed=data.draw(st.integers(0, 99), label="seed"),
        kind=data.draw(st.sampled_from(KINDS), label="kind"),
        window=data.draw(st.integers(1, 12), label="window"),
    )
    length = data.draw(st.integers(1, 11), label="length")
    x_BSD = torch.randn(2, length, 8)
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    mask_BS = torch.tensor([data.draw(row), data.draw(row)]) if data.draw(st.booleans(), label="masked") else None
    results = []
    for route in (layer, lambda x, mask: slow_twin(layer, x, mask)):
        layer.zero_grad()
        leaf_BSD = x_BSD.clone().requires_grad_()
        out_BSD = route(leaf_BSD, mask_BS)
        (out_BSD * torch.linspace(-1.0, 1.0, out_BSD.numel()).view_as(out_BSD)).sum().backward()
        assert leaf_BSD.grad is not None
        assert layer.out.weight.grad is not None
        results.append((out_BSD.detach(), leaf_BSD.grad, layer.out.weight.grad.clone()))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_without_any_key_gives_zeros_and_a_finite_gradient(kind: Kind) -> None:
    layer = attention(kind=kind, window=2)
    x_BSD = torch.randn(2, 7, 8, requires_grad=True)
    mask_BS = torch.tensor([[False] * 7, [True] * 7])
    out_BSD = layer(x_BSD, mask_BS)
    assert not out_BSD[0].any()
    assert out_BSD[1].any()
    out_BSD.square().sum().backward()
    assert x_BSD.grad is not None
    assert bool(x_BSD.grad.isfinite().all())
    assert not x_BSD.grad[0].any()


def test_a_query_without_any_key_in_its_window_gives_zeros() -> None:
    layer = attention(kind="sliding", window=2)
    mask_BS = torch.tensor([[True] + [False] * 9])
    out_SD = layer(torch.randn(1, 10, 8), mask_BS)[0]
    assert out_SD[:3].any(dim=1).all()
    assert not out_SD[3:].any()


@pytest.mark.parametrize("window", [9, 10, 300])
def test_sliding_is_full_when_the_window_holds_the_sequence(window: int) -> None:
    full, sliding = attention(kind="full"), attention(kind="sliding", window=window)
    x_BSD, mask_BS = torch.randn(3, 10, 8), torch.rand(3, 10) > 0.3
    assert torch.equal(full(x_BSD, mask_BS), sliding(x_BSD, mask_BS))


def test_sliding_sees_to_the_edge_of_its_window_and_no_further() -> None:
    layer = attention(kind="sliding", window=4)
    x_BSD = torch.randn(1, 30, 8)
    changed_BSD = x_BSD.clone()
    changed_BSD[0, 13] += 1.0
    differs_S = (layer(x_BSD) != layer(changed_BSD)).any(-1)[0]
    assert differs_S.nonzero().flatten().tolist() == list(range(9, 18))


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_masked_keys_do_not_matter(kind: Kind) -> None:
    layer = attention(kind=kind, window=3)
    x_BSD, mask_BS = torch.randn(2, 12, 8), torch.rand(2, 12) > 0.4
    changed_BSD = torch.where(mask_BS[..., None], x_BSD, 100.0)
    assert torch.equal(layer(x_BSD, mask_BS)[mask_BS], layer(changed_BSD, mask_BS)[mask_BS])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_real_tokens_only_is_the_same_as_no_mask(kind: Kind) -> None:
    layer = attention(kind=kind, window=3)
    x_BSD = torch.randn(2, 12, 8)
    torch.testing.assert_close(layer(x_BSD), layer(x_BSD, torch.ones(2, 12, dtype=torch.bool)))


def test_length_chooses_the_kind() -> None:
    assert choose_attention(LONG) == "full"
    assert choose_attention(LONG + 1) == "sliding"
    chosen, sliding = attention(window=8), attention(kind="sliding", window=8)
    x_BSD = torch.randn(1, LONG + 1, 8)
    assert torch.equal(chosen(x_BSD), sliding(x_BSD))
    full = attention(kind="full")
    assert torch.equal(chosen(x_BSD[:, :LONG]), full(x_BSD[:, :LONG]))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"width": 10, "heads": 4}, "width=10, heads=4"),
        ({"width": 8, "heads": 0}, "width=8, heads=0"),
        ({"width": 8, "heads": 2, "kind": "lsh2"}, r"`kind` must be one of \('full', 'sliding'\).* kind='lsh2'"),
        ({"width": 8, "heads": 2, "window": 0}, "window=0"),
    ],
)
def test_attention_refuses_nonsense(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Attention(**arguments)
