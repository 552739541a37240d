"""The training loop: interrupted and resumed equals uninterrupted, best weights are kept, ruined losses stop it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.backbone import Backbone, BackboneSettings
from core.moe import Router
from core.training import (
    CheckpointMismatchError,
    NonFiniteLossError,
    TrainingSettings,
    fade,
    fit,
    learning_rate_factor,
    make_optimizer,
    progress_bar,
    shuffled,
)

X_TSD = torch.randn(48, 3, 8, generator=torch.Generator().manual_seed(0))
Y_T = X_TSD.mean((1, 2))
BATCHES = shuffled(48, 8, seed=3)  # six steps an epoch
EVERYTHING = TrainingSettings(epochs=3, ema_decay=0.9, checkpoint_steps=2, learning_rate=0.01)


class Net(nn.Module):
    """Dropout draws random numbers, routers hold a balance: all that a resume must bring back."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"width": 8, "heads": 2, "num_experts": 4, "expert_width": 8, "shared_width": 8}
        self.body = Backbone(BackboneSettings(**sizes, layers=1, dropout=0.2))  # type: ignore[arg-type]
        self.head = nn.Linear(8, 1)

    def forward(self, x_BSD: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x_BSD).h_BD).squeeze(-1)
        return out


class KilledError(Exception):
    """A power cut."""


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def loss_of(model: nn.Module, chosen_N: Tensor) -> Tensor:
    loss: Tensor = (model(X_TSD[chosen_N]) - Y_T[chosen_N]).square().mean()
    return loss


def dying(at: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss, until the call number `at`."""
    calls = 0

    def loss(model: nn.Module, chosen_N: Tensor) -> Tensor:
        nonlocal calls
        if calls == at:
            raise KilledError
        calls += 1
        return loss_of(model, chosen_N)

    return loss


def score(model: nn.Module) -> float:
    return -float((model(X_TSD) - Y_T).square().mean())


def scores(*values: float) -> Callable[[nn.Module], float]:
    left = iter(values)
    return lambda model: next(left)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("at", [1, 2, 5, 6, 7, 11, 12, 17])
@pytest.mark.parametrize("changes", [{}, {"ema_decay": None, "checkpoint_steps": None}])
def test_interrupted_and_resumed_equals_uninterrupted(at: int, changes: dict[str, Any], tmp_path: Path) -> None:
    settings = replace(EVERYTHING, **changes)
    whole, cut = net(), net()
    torch.manual_seed(1)
    expected = fit(whole, BATCHES, loss_of, settings, validate=score)
    torch.manual_seed(1)
    with pytest.raises(KilledError):
        fit(cut, BATCHES, dying(at), settings, validate=score, checkpoint=tmp_path / "run.pt")
    if not (tmp_path / "run.pt").exists():  # killed before the first checkpoint: a new start
        cut = net()
        torch.manual_seed(1)
    else:
        cut = net(seed=9)
        torch.manual_seed(999)  # a new process knows nothing of the old generator
    report = fit(cut, BATCHES, loss_of, settings, validate=score, checkpoint=tmp_path / "run.pt")
    assert report == expected
    assert_same(cut, whole)


def test_resuming_twice_and_after_the_end_changes_nothing(tmp_path: Path) -> None:
    whole, cut = net(), net()
    torch.manual_seed(1)
    expected = fit(whole, BATCHES, loss_of, EVERYTHING, validate=score)
    torch.manual_seed(1)
    for at in (4, 6):
        with pytest.raises(KilledError):
            fit(cut, BATCHES, dying(at), EVERYTHING, validate=score, checkpoint=tmp_path / "run.pt")
        cut = net(seed=at)
    assert fit(cut, BATCHES, loss_of, EVERYTHING, validate=score, checkpoint=tmp_path / "run.pt") == expected
    again = net(seed=7)
    assert fit(again, BATCHES, dying(0), EVERYTHING, validate=score, checkpoint=tmp_path / "run.pt") == expected
    assert_same(again, whole)


def test_a_resume_is_exact_when_making_batches_draws_random_numbers(tmp_path: Path) -> None:
    def drawing(epoch: int) -> Any:
        torch.rand(5)
        return BATCHES(epoch)

    whole, cut = net(), net()
    torch.manual_seed(1)
    fit(whole, drawing, loss_of, EVERYTHING)
    torch.manual_seed(1)
    with pytest.raises(KilledError):
        fit(cut, drawing, dying(9), EVERYTHING, checkpoint=tmp_path / "run.pt")
    fit(cut, drawing, loss_of, EVERYTHING, checkpoint=tmp_path / "run.pt")
    assert_same(cut, whole)


def test_a_checkpoint_changes_nothing_about_the_training(tmp_path: Path) -> None:
    plain, written = net(), net()
    for model, path in ((plain, None), (written, tmp_path / "deep" / "run.pt")):
        torch.manual_seed(1)
        fit(model, BATCHES, loss_of, EVERYTHING, checkpoint=path)
    assert_same(plain, written)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run.pt"]


def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(KilledError):
        fit(net(), BATCHES, dying(5), EVERYTHING, checkpoint=path)
    before = path.read_bytes()

    def half_a_file(content: Any, file: Any) -> None:
        file.write(b"half")
        raise KilledError

    def no_time_left(*_: Any) -> None:
        raise KilledError

    for owner, name, end in ((torch, "save", half_a_file), (os, "replace", no_time_left)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, end)
            with pytest.raises(KilledError):
                fit(net(), BATCHES, loss_of, EVERYTHING, checkpoint=path)
        assert path.read_bytes() == before


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    fit(net(), BATCHES, loss_of, TrainingSettings(epochs=1), checkpoint=path)
    with pytest.raises(CheckpointMismatchError, match=r"run.pt .*Expected: epochs=2. Received: epochs=1"):
        fit(net(), BATCHES, loss_of, TrainingSettings(epochs=2), checkpoint=path)
    with pytest.raises(CheckpointMismatchError, match=r"Expected: batches per epoch=12. Received: .*=6"):
        fit(net(), shuffled(48, 4, seed=3), loss_of, TrainingSettings(epochs=1), checkpoint=path)


def test_training_stops_when_patience_is_out_and_keeps_the_best_weights() -> None:
    settings = TrainingSettings(epochs=9, patience=2)
    model, best = net(), net()
    torch.manual_seed(1)
    report = fit(model, BATCHES, loss_of, settings, validate=scores(0.1, 0.5, 0.4, math.nan, 0.9))
    assert report.scores[:3] == (0.1, 0.5, 0.4)
    assert (len(report.scores), report.best_epoch, report.steps) == (4, 1, 24)
    torch.manual_seed(1)
    stopped: list[dict[str, Tensor]] = []

    def keep(model: nn.Module) -> float:
        stopped.append({name: value.clone() for name, value in model.state_dict().items()})
        return 0.0

    fit(best, BATCHES, loss_of, settings, validate=keep)
    best.load_state_dict(stopped[1])
    assert_same(model, best)
    assert not model.training


def test_a_first_score_that_is_no_number_is_replaced_by_the_first_that_is_one() -> None:
    report = fit(net(), BATCHES, loss_of, TrainingSettings(epochs=3), validate=scores(math.nan, 0.2, 0.2))
    assert report.best_epoch == 1


def test_without_validation_the_last_weights_stay_and_the_loss_falls() -> None:
    model = net()
    report = fit(model, BATCHES, loss_of, TrainingSettings(epochs=12, learning_rate=0.02))
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert (report.scores, report.best_epoch, report.steps) == ((), 11, 72)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_epoch_and_step_before_any_harm(value: float) -> None:
    model, calls = net(), 0
    weights: dict[str, Tensor] = {}

    def ruined(model: nn.Module, chosen_N: Tensor) -> Tensor:
        nonlocal calls, weights
        calls += 1
        if calls == 9:
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
            return loss_of(model, chosen_N) * value
        return loss_of(model, chosen_N)

    with pytest.raises(NonFiniteLossError, match=rf"The loss is {value} at epoch 1, step 8\."):
        fit(model, BATCHES, ruined, TrainingSettings(epochs=3))
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    def steep(model: nn.Module, chosen_N: Tensor) -> Tensor:
        return (loss_of(model, chosen_N) * 0.0).sqrt()  # 0, with an infinite slope

    with pytest.raises(NonFiniteLossError, match="norm of the gradient is nan at epoch 0, step 0"):
        fit(net(), BATCHES, steep, TrainingSettings(epochs=1))


def test_every_router_is_rebalanced_once_per_step_and_fades_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[float] = []
    monkeypatch.setattr(Router, "rebalance", lambda self, scale=1.0: scales.append(scale))
    fit(net(), BATCHES, loss_of, TrainingSettings(epochs=2, balance_decay=0.5))
    assert scales == pytest.approx([1.0] * 7 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert fade(11, 12, 0.0) == 1.0


def test_learning_rate_rises_then_falls_as_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert 0.0 < factors[-1] < 0.001


def test_the_schedule_reaches_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.extend({group["lr"] for group in self.param_groups})
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(net(), BATCHES, loss_of, TrainingSettings(epochs=2, learning_rate=0.5, warm_up=0.25))
    assert rates == pytest.approx([0.5 * learning_rate_factor(i, 12, 0.25) for i in range(12)])


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model[0].weight.requires_grad_(False)
    model.append(nn.Linear(2, 1))
    decayed, kept = make_optimizer(model, TrainingSettings(weight_decay=0.3)).param_groups
    assert [(p.shape, decayed["weight_decay"]) for p in decayed["params"]] == [((1, 2), 0.3)]
    assert [p.ndim for p in kept["params"]] == [1] * 4
    assert kept["weight_decay"] == 0.0


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    def watched(self: torch.optim.AdamW, closure: Any = None) -> None:
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(net(), BATCHES, lambda m, c: 1000.0 * loss_of(m, c), TrainingSettings(epochs=1, clip=0.25))
    assert norms == pytest.approx([0.25] * 6, rel=1e-4)


def test_averaged_weights_are_validated_and_returned_and_include_the_balance() -> None:
    seen: list[dict[str, Tensor]] = []
    states: list[dict[str, Tensor]] = []

    def watch(model: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return float(len(seen))

    def loss(model: nn.Module, chosen_N: Tensor) -> Tensor:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return loss_of(model, chosen_N)

    model = net()
    fit(model, BATCHES, loss, replace(EVERYTHING, epochs=2, checkpoint_steps=None), validate=watch)
    for name, value in model.state_dict().items():
        average = states[0][name]
        for step, after in enumerate(states[1:7]):  # what six steps of the first epoch left behind
            average = average + (1.0 - min(0.9, (1 + step) / (10 + step))) * (after[name] - average)
        torch.testing.assert_close(seen[0][name], average)
        assert torch.equal(value, seen[1][name])
    assert not torch.equal(states[6]["head.weight"], seen[0]["head.weight"])  # training went on from its own weights


def test_bf16_trains_and_keeps_the_weights_in_fp32() -> None:
    kinds: set[torch.dtype] = set()

    def loss(model: nn.Module, chosen_N: Tensor) -> Tensor:
        out_B = model(X_TSD[chosen_N])
        kinds.add(out_B.dtype)
        error_B: Tensor = out_B.float() - Y_T[chosen_N]
        return error_B.square().mean()

    model = net()
    report = fit(model, BATCHES, loss, TrainingSettings(epochs=12, learning_rate=0.02, bf16=True))
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_progress_hears_of_every_epoch_and_a_bar_can_listen() -> None:
    heard: list[tuple[int, float, float | None]] = []
    report = fit(net(), BATCHES, loss_of, TrainingSettings(epochs=2), progress=lambda *told: heard.append(told))
    assert heard == [(0, report.losses[0], None), (1, report.losses[1], None)]
    with progress_bar(2) as show:
        fit(net(), BATCHES, loss_of, TrainingSettings(epochs=2), validate=score, progress=show)


def test_shuffled_batches_hold_every_example_once_in_an_order_of_the_epoch() -> None:
    batches = shuffled(10, 4, seed=1)
    epochs = [torch.cat(list(batches(epoch))).tolist() for epoch in (0, 1, 0)]
    assert [len(batch) for batch in batches(0)] == [4, 4, 2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] == epochs[2] != epochs[1]
    assert torch.cat(list(shuffled(10, 4, seed=2)(0))).tolist() != epochs[0]


def test_batches_must_be_some_and_equally_many() -> None:
    with pytest.raises(ValueError, match=r"at least one batch per epoch\. Received: 0"):
        fit(net(), lambda epoch: [], loss_of, TrainingSettings())
    with pytest.raises(ValueError, match=r"Expected: 6, as in epoch 0. Received: 5 for epoch 1"):
        fit(net(), lambda epoch: list(BATCHES(epoch))[epoch:], loss_of, TrainingSettings())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"warm_up": 1.0}, "warm_up=1.0"),
        ({"balance_decay": -0.1}, "balance_decay=-0.1"),
        ({"patience": 0}, "patience=0"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ],
)
def test_settings_refuse_nonsense(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        TrainingSettings(**changes)


def test_shuffled_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="count=0, batch_size=4"):
        shuffled(0, 4, seed=0)
