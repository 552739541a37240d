"""Plan from a report; apply with replay; keep what is a gain, and give every weight back when it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from core.continual.drift import DriftReport
from core.continual.updater import UpdatePlan, Updater, UpdateReport, UpdaterSettings
from core.moe import MoE, MoESettings
from core.promotion import Verdict
from core.results import Cost
from core.training import NonFiniteLossError

HEAD, FULL, NONE = UpdatePlan("head", "test"), UpdatePlan("full", "test"), UpdatePlan("none", "calm")
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A body with running statistics, dropout and a router; a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1))
        self.moe = MoE(MoESettings(width=16, num_experts=4, top_k=2, expert_width=8, shared_width=8))
        self.head = nn.Linear(16, 1)

    def forward(self, x_BD: Tensor) -> Tensor:
        h_BD = self.body(x_BD)
        out: Tensor = self.head(h_BD + self.moe(h_BD)).squeeze(-1)
        return out


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    model.body(torch.randn(64, 2))  # running statistics that are not the initial ones
    return model.eval()


def task(centre: float, seed: int, n: int = 256) -> Batch:
    """Points around (centre, 0); positive above it when centre < 0, to the right of it otherwise."""
    rng = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(n, 2, generator=rng) + torch.tensor([centre, 0.0])
    return x_BD, (x_BD[:, 1] > 0.0 if centre < 0.0 else x_BD[:, 0] > centre).float()


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def logit_of(model: nn.Module, batch: Batch) -> Tensor:
    out: Tensor = model(batch[0])
    return out


def accuracy_on(batch: Batch) -> Callable[[nn.Module], float]:
    return lambda model: float(((model(batch[0]) > 0.0) == batch[1].bool()).float().mean())


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, those outside the state dict too."""
    return {name: value.detach().clone() for name, value in (*model.named_parameters(), *model.named_buffers())}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    return {name for name, value in everything(model).items() if not torch.equal(value, before[name])}


def apply(model: nn.Module, plan: UpdatePlan = FULL, **changes: Any) -> UpdateReport:
    """An update that is always a gain and forgets nothing, unless told otherwise."""
    scores = iter([0.5, 0.9])
    arguments: dict[str, Any] = {
        "loss_of": loss_of,
        "replay": None,
        "logit_of": logit_of,
        "new_score": lambda _: next(scores),
        "old_score": lambda _: 0.8,
    }
    options = changes.pop("settings", UpdaterSettings(learning_rate=0.01))
    batches = changes.pop("batches", [task(2.0, seed) for seed in range(4)])
    return Updater(options).apply(model, batches, plan, **(arguments | changes))


def scores(*values: float) -> Callable[[nn.Module], float]:
    coming = iter(values)
    return lambda _: next(coming)


# --- plan ---


def report(before: float, after: float, *, moved: int = 0, rose: bool = True, group: str | None = None) -> DriftReport:
    return DriftReport({f"x{i}": 0.3 for i in range(moved)}, rose, before, after, error_group=group)


def refused(scope: str = "head", kept: bool = False) -> UpdateReport:
    return UpdateReport(scope, 0.5, 0.4, 0.0, kept, Cost())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "last", "scope", "why"),
    [
        (report(0.2, 0.2, rose=False), None, "none", "nothing drifted"),
        (report(0.2, 0.2, rose=False, moved=2), None, "none", "2 inputs moved, errors did not: watch"),
        (report(0.2, 0.26), None, "head", "rose by 30%, inputs did not move"),
        (report(0.2, 0.26, group="fraud"), None, "head", "in group fraud"),
        (report(0.2, 0.26, moved=1), None, "full", "1 inputs moved"),
        (report(0.2, 0.31), None, "full", "rose by 55%, which is severe"),
        (report(0.0, 0.1), None, "full", "severe"),  # from no error at all
        (report(0.2, 0.26), refused(), "full", "training the head was no gain"),
        (report(0.2, 0.26), refused(kept=True), "head", "inputs did not move"),
        (report(0.2, 0.26), refused("full"), "head", "inputs did not move"),
    ],
)
def test_plan_says_what_and_why(found: DriftReport, last: UpdateReport | None, scope: str, why: str) -> None:
    plan = Updater().plan(found, last=last)
    assert plan.scope == scope
    assert why in plan.why


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(1e-6, 1.0), st.floats(1.0, 3.0), st.integers(0, 3), st.booleans())
def test_a_plan_never_trains_without_an_error_shift_and_never_less_for_a_larger_rise(
    before: float, factor: float, moved: int, rose: bool
) -> None:
    order = {"none": 0, "head": 1, "full": 2}
    plan = Updater().plan(report(before, before * factor, moved=moved, rose=rose))
    worse = Updater().plan(report(before, before * factor * 1.5, moved=moved, rose=rose))
    assert (plan.scope == "none") == (not rose)
    assert order[worse.scope] >= order[plan.scope]


# --- apply: kept, refused ---


def test_nothing_is_touched_without_a_plan() -> None:
    model = net()
    before = everything(model)
    found = apply(model, NONE, batches=[])
    assert not changed(before, model)
    assert (found.scope, found.kept, found.steps, found.reasons) == ("none", False, 0, ("calm",))
    assert found.before == found.after == 0.5


def test_a_gain_is_kept_and_reported() -> None:
    model = net()
    before = everything(model)
    found = apply(model, settings=UpdaterSettings(passes=3))
    assert found.kept
    assert (found.before, found.after, found.forgetting) == (0.5, 0.9, 0.0)
    assert found.steps == 12  # 4 batches, 3 times
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.cost.seconds > 0.0
    assert {"head.weight", "moe.router.gate.weight", "body.1.running_mean"} <= changed(before, model)
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("new", "old", "kept", "reason"),
    [
        ((0.5, 0.5), (0.8, 0.8), False, "0.5000 -> 0.5000"),  # as good is no gain
        ((0.5, 0.6), (0.8, 0.781), True, "0.5000 -> 0.6000"),
        ((0.5, 0.6), (0.8, 0.77), False, "forgetting 0.0300 exceeds 0.0200"),
        ((0.5, 0.4), (0.8, 0.9), False, "0.5000 -> 0.4000"),
    ],
)
@pytest.mark.parametrize("plan", [HEAD, FULL])
def test_the_scores_decide_and_a_refused_update_gives_every_weight_back(
    plan: UpdatePlan, new: tuple[float, float], old: tuple[float, float], kept: bool, reason: str
) -> None:
    model = net()
    before = everything(model)
    found = apply(model, plan, new_score=scores(*new), old_score=scores(*old))
    assert found.kept is kept
    assert bool(changed(before, model)) is kept
    assert reason in found.reasons[-1]
    assert (found.before, found.after) == new
    assert found.forgetting == pytest.approx(old[0] - old[1])
    assert not model.training


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_kept_means_better_and_not_forgetful_and_else_nothing_changed(
    before: float, after: float, old_before: float, old_after: float
) -> None:
    model = net()
    held = everything(model)
    found = apply(
        model,
        HEAD,
        batches=[task(2.0, 0, n=8)],
        new_score=scores(before, after),
        old_score=scores(old_before, old_after),
    )
    assert found.kept == (after > before and old_before - old_after <= 0.02)
    assert bool(changed(held, model)) == found.kept


# --- apply: what is trained ---


def test_the_head_learns_alone_and_the_body_stays_with_its_running_statistics() -> None:
    model = net()
    before = everything(model)
    modes: list[bool] = []

    def spying(model: nn.Module, batch: Batch) -> Tensor:
        modes.append(model.get_submodule("body").training)
        return loss_of(model, batch)

    found = apply(model, HEAD, loss_of=spying)
    assert changed(before, model) == {"head.weight", "head.bias"}
    assert not any(modes)
    assert found.parameters == 17


def test_a_parameter_that_was_frozen_before_stays_frozen_and_the_others_do_not() -> None:
    model = net()
    model.head.bias.requires_grad_(False)
    before = everything(model)
    apply(model, FULL)
    assert "head.bias" not in changed(before, model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_another_part_can_be_named_as_the_head() -> None:
    model = net()
    before = everything(model)
    apply(model, HEAD, head=lambda model: model.get_submodule("moe.shared"))
    assert changed(before, model) == {"moe.shared.up.weight", "moe.shared.down.weight"}


# --- apply: replay ---


class Plain(nn.Module):
    """Without running statistics: those of past and present would mix, whatever the replay does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(2, 32), nn.Tanh()), nn.Linear(32, 1)

    def forward(self, x_BD: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x_BD)).squeeze(-1)
        return out


def learnt_old() -> tuple[Plain, Batch]:
    """A model that has learnt the old task, and the task."""
    torch.manual_seed(0)
    model, old = Plain(), task(-2.0, 100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, old).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval(), old


def forgetting_with(options: UpdaterSettings, *, replayed: bool) -> UpdateReport:
    model, old = learnt_old()
    held_new, held_old = task(2.0, 200, 1000), task(-2.0, 201, 1000)
    with torch.no_grad():
        then_B = model(old[0])
    rng = torch.Generator().manual_seed(1)

    def replay() -> tuple[Batch, Tensor]:
        drawn = torch.randint(len(then_B), (64,), generator=rng)
        return (old[0][drawn], old[1][drawn]), then_B[drawn]

    return apply(
        model,
        FULL,
        settings=options,
        batches=[task(2.0, seed, 64) for seed in range(120)],
        replay=replay if replayed else None,
        new_score=accuracy_on(held_new),
        old_score=accuracy_on(held_old),
    )


def test_replay_and_logit_matching_each_forget_less_than_none_and_learn_as_well() -> None:
    options = {"learning_rate": 0.03, "most_forgetting": 1.0}
    without = forgetting_with(UpdaterSettings(**options), replayed=False)
    matched = forgetting_with(UpdaterSettings(rehearse=0.0, **options), replayed=True)
    rehearsed = forgetting_with(UpdaterSettings(match=0.0, **options), replayed=True)
    both = forgetting_with(UpdaterSettings(**options), replayed=True)
    assert without.forgetting > 0.4  # of an accuracy of .97
    for found in (matched, rehearsed, both):
        assert found.forgetting < 0.1
        assert found.after > 0.8  # from .5
    assert both.forgetting < 0.02


def test_replay_is_drawn_for_matching_and_again_for_rehearsal() -> None:
    batch = task(-2.0, 5, 16)
    for options, expected in (
        ({}, 8),
        ({"match": 0.0}, 4),
        ({"rehearse": 0.0}, 4),
        ({"match": 0.0, "rehearse": 0.0}, 0),
    ):
        drawn: list[int] = []

        def replay(drawn: list[int] = drawn) -> tuple[Batch, Tensor]:
            drawn.append(1)
            return batch, torch.zeros(16)

        apply(net(), HEAD, replay=replay, settings=UpdaterSettings(**options))
        assert len(drawn) == expected


def test_logits_of_another_shape_are_refused_and_the_weights_are_as_before() -> None:
    model, batch = net(), task(-2.0, 5, 16)
    before = everything(model)
    with pytest.raises(ValueError, match=r"\(16,\). Received: \(16, 1\)"):
        apply(model, replay=lambda: (batch, torch.zeros(16, 1)))
    assert not changed(before, model)


# --- apply: what goes wrong ---


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("plan", [HEAD, FULL])
def test_a_loss_that_is_not_a_number_restores_the_model(at: int, plan: UpdatePlan) -> None:
    model = net()
    before = everything(model)
    calls = 0

    def ruined(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(model, batch) * (math.nan if calls == at + 1 else 1.0)

    with pytest.raises(NonFiniteLossError, match=f"step {at}"):
        apply(model, plan, loss_of=ruined)
    assert not changed(before, model)
    assert not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_gradient_that_is_not_finite_restores_the_model_too() -> None:
    model = net()
    before = everything(model)

    def steep(model: nn.Module, batch: Batch) -> Tensor:
        return loss_of(model, batch) + (model(batch[0]) * 0.0).abs().sqrt().sum()  # 0, with an infinite slope

    with pytest.raises(NonFiniteLossError, match="gradient is nan at step 0"):
        apply(model, loss_of=steep)
    assert not changed(before, model)


def test_an_interruption_and_a_score_that_is_not_a_number_restore_the_model() -> None:
    model = net()
    before = everything(model)

    def interrupted(model: nn.Module, batch: Batch) -> Tensor:
        model.get_parameter("head.bias").data += 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(model, loss_of=interrupted)
    with pytest.raises(ValueError, match="NaN"):
        apply(model, new_score=scores(0.5, math.nan))
    assert not changed(before, model)


def test_calls_that_can_not_mean_anything_are_refused() -> None:
    with pytest.raises(ValueError, match="0 batches"):
        apply(net(), HEAD, batches=[])
    with pytest.raises(ValueError, match="`scores_of` and `gate` belong together"):
        apply(net(), HEAD, gate=lambda a, b: Verdict(True, (), 0.0, 0.0))
    with pytest.raises(ValueError, match="Received: Tanh without any"):
        apply(net(), HEAD, head=lambda model: model.get_submodule("body.2"))
    for wrong in ({"severe": 0.0}, {"passes": 0}, {"match": -1.0}, {"most_forgetting": -0.1}, {"clip": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            UpdaterSettings(**wrong)  # type: ignore[arg-type]


# --- apply: the gate ---


@pytest.mark.parametrize(("promote", "old_after", "kept"), [(True, 0.8, True), (False, 0.8, False), (True, 0.7, False)])
def test_the_gate_decides_on_scores_before_and_after_and_forgetting_still_counts(
    promote: bool, old_after: float, kept: bool
) -> None:
    model, held = net(), task(2.0, 300)
    before = everything(model)
    seen: list[np.ndarray] = []

    def scores_of(model: nn.Module) -> np.ndarray:
        assert not model.training
        return model(held[0]).detach().numpy().astype(np.float64)  # type: ignore[no-any-return]

    def gate(before_N: np.ndarray, after_N: np.ndarray) -> Verdict:
        seen.extend([before_N, after_N])
        return Verdict(promote, ("the gate speaks",), 0.1, 0.05)

    expected = scores_of(model)
    # the score itself falls: with a gate that is only reported
    found = apply(model, scores_of=scores_of, gate=gate, new_score=scores(0.5, 0.4), old_score=scores(0.8, old_after))
    assert found.kept is kept
    assert found.reasons[0] == "the gate speaks"
    assert len(found.reasons) == (1 if old_after == 0.8 else 2)
    assert bool(changed(before, model)) is kept
    np.testing.assert_array_equal(seen[0], expected)
    assert not np.array_equal(seen[0], seen[1])


def test_the_same_seed_gives_the_same_update() -> None:
    weights = []
    for _ in range(2):
        model = net()
        torch.manual_seed(3)
        apply(model)
        weights.append(everything(model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
