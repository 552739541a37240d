"""The backbone: masks, early exits, activation checkpointing, rebalancing, and an ONNX export that takes any batch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core.backbone import Backbone, BackboneSettings, certainty, pool
from core.moe import MoE

SMALL = BackboneSettings(width=8, layers=2, heads=2, num_experts=4, expert_width=8, shared_width=8)


def backbone(seed: int = 0, **changes: Any) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(replace(SMALL, **changes))


def tokens(batch: int = 6, length: int = 7) -> tuple[Tensor, Tensor]:
    mask_BS = torch.rand(batch, length) < 0.7
    mask_BS[0] = False  # an example without any token
    return torch.randn(batch, length, 8), mask_BS


def routers(model: Backbone) -> list[Any]:
    return [module.router for module in model.modules() if isinstance(module, MoE)]


def test_output_shapes_and_loads() -> None:
    x_BSD, mask_BS = tokens()
    out = backbone()(x_BSD, mask_BS)
    assert out.h_BD.shape == (6, 8)
    assert out.tokens_BSD.shape == (6, 7, 8)
    assert out.exit_layer_B.tolist() == [2] * 6
    assert [float(load.sum()) for load in out.loads] == [2.0 * int(mask_BS.sum())] * 2  # top 2 of real tokens only


def test_the_dense_control_has_the_same_active_width_and_no_loads() -> None:
    x_BSD, mask_BS = tokens()
    dense = backbone(moe=False)
    assert dense(x_BSD, mask_BS).loads == ()
    mixture = dense.blocks[0].mixture
    assert isinstance(mixture, nn.Module)
    assert sum(p.numel() for p in mixture.parameters()) == 2 * 8 * SMALL.mixture().active_width


@pytest.mark.parametrize("moe", [True, False])
@pytest.mark.parametrize("value", [50.0, math.nan])
def test_values_of_masked_tokens_have_no_influence(moe: bool, value: float) -> None:
    model = backbone(moe=moe)
    x_BSD, mask_BS = tokens()
    expected, out = model(x_BSD, mask_BS), model(torch.where(mask_BS[..., None], x_BSD, value), mask_BS)
    assert torch.equal(out.h_BD, expected.h_BD)
    assert torch.equal(out.tokens_BSD, expected.tokens_BSD)
    assert all(torch.equal(one, other) for one, other in zip(out.loads, expected.loads, strict=True))
    assert not out.h_BD[0].any()


def test_masked_tokens_are_as_good_as_cut_off() -> None:
    model = backbone()
    x_BSD, _ = tokens()
    mask_BS = torch.arange(7).expand(6, 7) < 4
    torch.testing.assert_close(model(x_BSD, mask_BS).h_BD, model(x_BSD[:, :4]).h_BD)


def test_a_mask_of_real_tokens_only_is_the_same_as_no_mask() -> None:
    model = backbone()
    x_BSD, mask_BS = tokens()
    assert torch.equal(model(x_BSD).h_BD, model(x_BSD, torch.ones_like(mask_BS)).h_BD)


def test_order_of_tokens_does_not_matter() -> None:
    model = backbone()
    x_BSD, mask_BS = tokens()
    order_S = torch.randperm(7)
    expected, out = model(x_BSD, mask_BS), model(x_BSD[:, order_S], mask_BS[:, order_S])
    torch.testing.assert_close(out.h_BD, expected.h_BD)
    torch.testing.assert_close(out.tokens_BSD, expected.tokens_BSD[:, order_S])


@pytest.mark.parametrize("changes", [{}, {"exit_outputs": 1, "exit_confidence": 0.6}, {"num_experts": 64}])
def test_a_batch_of_one_gives_what_it_gives_in_a_larger_batch(changes: dict[str, Any]) -> None:
    model = backbone(**changes).eval()
    x_BSD, mask_BS = tokens(40)
    whole = model(x_BSD, mask_BS)
    for b in range(40):
        one = model(x_BSD[b : b + 1], mask_BS[b : b + 1])
        torch.testing.assert_close(one.h_BD[0], whole.h_BD[b], rtol=1e-4, atol=1e-5)
        assert one.exit_layer_B[0] == whole.exit_layer_B[b]


def test_checkpointing_changes_neither_values_nor_gradients_nor_the_balance() -> None:
    results = []
    for checkpointing in (False, True):
        model = backbone(checkpointing=checkpointing, dropout=0.2)
        x_BSD, mask_BS = tokens()
        torch.manual_seed(5)
        out = model(x_BSD, mask_BS)
        out.h_BD.square().sum().backward()
        model.rebalance()
        results.append([out.h_BD.detach(), *(p.grad for p in model.parameters()), *(r.bias_E for r in routers(model))])
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed)


def test_rebalance_moves_every_router() -> None:
    model = backbone()
    model(*tokens())
    model.rebalance()
    assert len(routers(model)) == 2
    assert all(router.bias_E.any() for router in routers(model))
    assert not any(router.seen_E.any() for router in routers(model))


def test_dropout_only_acts_in_training() -> None:
    model = backbone(dropout=0.5)
    x_BSD, mask_BS = tokens()
    assert not torch.equal(model(x_BSD, mask_BS).h_BD, model(x_BSD, mask_BS).h_BD)
    calls: list[nn.Module] = []
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(lambda layer, *_: calls.append(layer))
    model.eval()
    assert torch.equal(model(x_BSD, mask_BS).h_BD, model(x_BSD, mask_BS).h_BD)
    assert len(calls) == 2 * 2 * 2  # two calls, two layers, after attention and after the mixture


def test_exits_are_off_by_default_and_heads_alone_do_not_leave() -> None:
    x_BSD, mask_BS = tokens()
    assert backbone()(x_BSD, mask_BS).exit_logits == ()
    out = backbone(layers=3, exit_outputs=4).eval()(x_BSD, mask_BS)
    assert [logit.shape for logit in out.exit_logits] == [(6, 4), (6, 4)]
    assert out.exit_layer_B.tolist() == [3] * 6


def test_exit_heads_are_trained_by_their_logits() -> None:
    model = backbone(layers=3, exit_outputs=1)
    x_BSD, mask_BS = tokens()
    sum(logit.square().sum() for logit in model(x_BSD, mask_BS).exit_logits).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.exits.parameters())


@pytest.mark.parametrize("outputs", [1, 3])
def test_sure_examples_leave_early_with_the_tokens_of_that_layer_and_others_go_on(outputs: int) -> None:
    whole = backbone(layers=3, exit_outputs=outputs).eval()
    x_BSD, mask_BS = tokens(30)
    full = whole(x_BSD, mask_BS)
    certainty_BL = torch.stack([certainty(logit) for logit in full.exit_logits], 1)
    threshold = float(certainty_BL.detach().median())
    leaving = Backbone(replace(whole.settings, exit_confidence=threshold)).eval()
    leaving.load_state_dict(whole.state_dict())
    out = leaving(x_BSD, mask_BS)
    expected_B = torch.where(certainty_BL[:, 0] >= threshold, 1, torch.where(certainty_BL[:, 1] >= threshold, 2, 3))
    assert torch.equal(out.exit_layer_B, expected_B)
    assert set(out.exit_layer_B.tolist()) == {1, 2, 3}
    for layers in (1, 2, 3):
        cut = Backbone(replace(whole.settings, layers=layers, exit_outputs=0)).eval()
        cut.load_state_dict(whole.state_dict(), strict=False)
        chosen_B = out.exit_layer_B == layers
        torch.testing.assert_close(out.h_BD[chosen_B], cut(x_BSD, mask_BS).h_BD[chosen_B], rtol=1e-4, atol=1e-5)
    first = out.exit_layer_B == 1
    torch.testing.assert_close(out.exit_logits[1][first], full.exit_logits[0][first])  # kept from where they left
    assert float(out.loads[2].sum()) == 2.0 * int(mask_BS[out.exit_layer_B == 3].sum())  # fewer tokens to compute


def test_all_examples_may_leave_at_the_first_exit() -> None:
    x_BSD, mask_BS = tokens()
    model = backbone(layers=3, exit_outputs=2, exit_confidence=0.01)
    out = model.eval()(x_BSD, mask_BS)
    assert out.exit_layer_B.tolist() == [1] * 6
    assert [len(out.loads), len(out.exit_logits)] == [3, 2]
    assert not out.loads[1].any()
    assert model.train()(x_BSD, mask_BS).exit_layer_B.tolist() == [3] * 6  # never in training


def test_certainty_of_a_logit_and_of_classes() -> None:
    torch.testing.assert_close(certainty(torch.tensor([[0.0], [2.0], [-2.0]])), torch.tensor([0.5, 0.8808, 0.8808]))
    torch.testing.assert_close(certainty(torch.tensor([[0.0, 0.0], [0.0, 2.0]])), torch.tensor([0.5, 0.8808]))


def test_pool_is_the_mean_of_real_tokens() -> None:
    x_BSD = torch.tensor([[[1.0], [3.0], [9.0]], [[1.0], [3.0], [9.0]]])
    mask_BS = torch.tensor([[True, True, False], [False, False, False]])
    assert pool(x_BSD, mask_BS).flatten().tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": 0}, "layers=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"exit_outputs": -1}, "exit_outputs=-1"),
        ({"exit_confidence": 0.9}, "exit_confidence=0.9, exit_outputs=0"),
        ({"exit_confidence": 1.1, "exit_outputs": 1}, "exit_confidence=1.1"),
        ({"top_k": 9}, "top_k=9, num_experts=4"),
    ],
)
def test_settings_refuse_nonsense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(SMALL, **changes)


class Exported(nn.Module):
    """ONNX graphs return tensors, not dataclasses."""

    def __init__(self, body: Backbone) -> None:
        super().__init__()
        self.body = body

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor]:
        out = self.body(x_BSD, mask_BS)
        return out.h_BD, out.tokens_BSD


def test_the_exported_backbone_agrees_at_another_batch_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(torch.backends.opt_einsum, "enabled", False)  # it would freeze the batch size in silence
    model = Exported(backbone(layers=1)).eval()
    any_size = torch.export.Dim("batch", min=1, max=4096)
    program = torch.onnx.export(
        model, tokens(3), dynamo=True, dynamic_shapes=({0: any_size}, {0: any_size}), verbose=False
    )
    assert program is not None
    program.save(tmp_path / "backbone.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    for batch in (1, 11):
        x_BSD, mask_BS = tokens(batch)
        received = session.run(None, {names[0]: x_BSD.numpy(), names[1]: mask_BS.numpy()})
        with torch.no_grad():
            for one, other in zip(received, model(x_BSD, mask_BS), strict=True):
                np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
