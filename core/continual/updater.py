"""Plan an update from a drift report, apply it with replay, and take it back unless a gate says it is a gain.

Replay with logit matching is dark experience replay, DER++ (arXiv 2004.07211, equation 6):
loss(new) + match * |logit(past) - logit then|^2 + rehearse * loss(past).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.continual.drift import DriftReport
from core.promotion import Verdict
from core.results import Cost, measured
from core.training import NonFiniteLossError, TrainingSettings, make_optimizer, rebalance_routers

F64 = NDArray[np.float64]
Scope = Literal["none", "head", "full"]
Score = Callable[[nn.Module], float]  # higher is better
Gate = Callable[[F64, F64], Verdict]  # scores of the model before and after, on the same held-out samples


@dataclass(frozen=True)
class UpdatePlan:
    """What to train, and why."""

    scope: Scope
    why: str


@dataclass(frozen=True)
class UpdateReport:
    """Score on new data before and after, what was lost on old data (positive is forgetting), and what it cost.

    When `kept` is False the model has its old weights, and `after` is the score of the weights that were refused.
    """

    scope: Scope
    before: float
    after: float
    forgetting: float
    kept: bool
    cost: Cost
    reasons: tuple[str, ...] = ()
    parameters: int = 0
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class UpdaterSettings:
    """How to plan and how to train.

    Args:
        severe: relative rise of the mean error from which the whole model is trained at once.
        match, rehearse: weights of logit matching and of the loss on the past; both .5 are among the best for most
            data sets of arXiv 2004.07211, and past and present then weigh alike.
        passes: times that the new batches are seen.
        most_forgetting: largest loss of score on old data.
    """

    severe: float = 0.5
    learning_rate: float = 5e-4
    match: float = 0.5
    rehearse: float = 0.5
    passes: int = 1
    clip: float = 1.0
    most_forgetting: float = 0.02

    def __post_init__(self) -> None:
        if self.severe <= 0.0 or self.learning_rate <= 0.0 or self.clip <= 0.0 or self.passes < 1:
            raise ValueError(f"`severe`, `learning_rate` and `clip` must be > 0 and `passes` >= 1. Received: {self}.")
        if self.match < 0.0 or self.rehearse < 0.0 or self.most_forgetting < 0.0:
            raise ValueError(f"`match`, `rehearse` and `most_forgetting` must be >= 0. Received: {self}.")


class Updater:
    """Errors decide. Inputs that moved while the errors stayed are watched: training would only add risk."""

    def __init__(self, settings: UpdaterSettings | None = None) -> None:
        self.settings = settings or UpdaterSettings()

    def plan(self, report: DriftReport, *, last: UpdateReport | None = None) -> UpdatePlan:
        """None without an error shift; the head first; the whole model when it is severe, when the inputs moved as well
        (the body never saw such inputs), or when the last update of the head was refused."""
        moved = len(report.input_shift)
        if not report.error_shift:
            return UpdatePlan("none", f"{moved} inputs moved, errors did not: watch" if moved else "nothing drifted")
        rise = report.error_after / max(report.error_before, 1e-9) - 1.0
        where = f" in group {report.error_group}" if report.error_group is not None else ""
        why = f"mean error rose by {rise:.0%}{where}"
        if rise >= self.settings.severe:
            return UpdatePlan("full", f"{why}, which is severe")
        if moved:
            return UpdatePlan("full", f"{why}, and {moved} inputs moved")
        if last is not None and last.scope == "head" and not last.kept:
            return UpdatePlan("full", f"{why}, and training the head was no gain")
        return UpdatePlan("head", f"{why}, inputs did not move")

    def apply(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        plan: UpdatePlan,
        *,
        loss_of: Callable[[nn.Module, Any], Tensor],
        replay: Callable[[], tuple[Any, Tensor]] | None,
        logit_of: Callable[[nn.Module, Any], Tensor],
        new_score: Score,
        old_score: Score,
        head: Callable[[nn.Module], nn.Module] = lambda model: model.get_submodule("head"),
        scores_of: Callable[[nn.Module], F64] | None = None,
        gate: Gate | None = None,
    ) -> UpdateReport:
        """Train in place and leave the model in evaluation mode, with its old weights when the update is refused.

        Args:
            loss_of: (model, batch) -> scalar loss.
            replay: a batch of the past and the logits that the model had for it then; drawn twice per new batch, as in
                DER++. None: no replay (a control, or nothing to forget).
            logit_of: (model, batch) -> logits.
            new_score, old_score: on held-out data of now and of before.
            head: the part that the scope "head" trains; all else stays as it is, normalisation statistics included.
            scores_of, gate: scores of held-out samples, and the verdict on them before and after (`core.promotion.decide`
                with targets and units filled in). Without them a higher `new_score` is enough.

        Raises:
            NonFiniteLossError: training diverged. The model has its old weights, as after any other exception.
        """
        if (scores_of is None) != (gate is None):
            raise ValueError("`scores_of` and `gate` belong together. Received: one of them.")
        if plan.scope != "none" and not len(batches):
            raise ValueError(f"an update of scope {plan.scope} needs at least one batch. Received: 0 batches.")
        with measured() as cost:
            before, old_before = _score(new_score, model), _score(old_score, model)
            if plan.scope == "none":
                return UpdateReport("none", before, before, 0.0, False, cost, (plan.why,))
            scores_before = None if scores_of is None else _evaluate(scores_of, model)
            trained = head(model) if plan.scope == "head" else model
            backup = _copy(model)
            try:
                with _only(model, trained):
                    parameters, steps = self._train(model, trained, batches, loss_of, replay, logit_of)
                after, forgetting = _score(new_score, model), old_before - _score(old_score, model)
                reasons, kept = self._judge(before, after, forgetting)
                if gate is not None and scores_of is not None and scores_before is not None:
                    verdict = gate(scores_before, _evaluate(scores_of, model))
                    reasons, kept = (*verdict.reasons, *reasons[1:]), verdict.promote and len(reasons) == 1
            except BaseException:
                _put_back(model, backup)
                raise
            if not kept:
                _put_back(model, backup)
        return UpdateReport(plan.scope, before, after, forgetting, kept, cost, reasons, parameters, steps)

    def _judge(self, before: float, after: float, forgetting: float) -> tuple[tuple[str, ...], bool]:
        """The first reason speaks of the gain, a second one of too much forgetting."""
        most = self.settings.most_forgetting
        reasons = [f"score on new data {before:.4f} -> {after:.4f}"]
        if forgetting > most:
            reasons.append(f"forgetting {forgetting:.4f} exceeds {most:.4f}")
        return tuple(reasons), after > before and forgetting <= most

    def _train(
        self,
        model: nn.Module,
        trained: nn.Module,
        batches: Sequence[Any],
        loss_of: Callable[[nn.Module, Any], Tensor],
        replay: Callable[[], tuple[Any, Tensor]] | None,
        logit_of: Callable[[nn.Module, Any], Tensor],
    ) -> tuple[int, int]:
        options = self.settings
        parameters = [p for p in trained.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError(f"the part to train must have parameters. Received: {type(trained).__name__} without any.")
        optimizer = make_optimizer(trained, TrainingSettings(learning_rate=options.learning_rate))
        steps = 0
        for _ in range(options.passes):
            for batch in batches:
                loss = loss_of(model, batch)
                if replay is not None and options.match > 0.0:
                    past, then = replay()
                    now = logit_of(model, past)
                    if now.shape != then.shape:  # mse_loss would broadcast
                        raise ValueError(
                            f"replayed logits must have the shape of the model's, {tuple(now.shape)}. "
                            f"Received: {tuple(then.shape)}."
                        )
                    loss = loss + options.match * nn.functional.mse_loss(now, then)
                if replay is not None and options.rehearse > 0.0:
                    loss = loss + options.rehearse * loss_of(model, replay()[0])
                if not math.isfinite(float(loss.detach())):
                    raise NonFiniteLossError(f"the loss is {float(loss.detach())} at step {steps} of the update.")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                norm = float(nn.utils.clip_grad_norm_(parameters, options.clip))
                if not math.isfinite(norm):
                    raise NonFiniteLossError(f"the norm of the gradient is {norm} at step {steps} of the update.")
                optimizer.step()
                rebalance_routers(trained)
                steps += 1
        return sum(p.numel() for p in parameters), steps


@contextmanager
def _only(model: nn.Module, trained: nn.Module) -> Iterator[None]:
    """Inside, `trained` alone learns: all else is frozen and in evaluation mode (no dropout, no running statistics)."""
    inside = {id(p) for p in trained.parameters()}
    frozen = [p for p in model.parameters() if id(p) not in inside and p.requires_grad]
    model.eval()
    trained.train()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for parameter in model.parameters():
            parameter.grad = None
        model.eval()


def _copy(model: nn.Module) -> list[Tensor]:
    """All parameters and buffers: a router's counts are not in the state dict, and would count in the next update."""
    return [value.detach().clone() for value in (*model.parameters(), *model.buffers())]


@torch.no_grad()
def _put_back(model: nn.Module, backup: list[Tensor]) -> None:
    for value, then in zip((*model.parameters(), *model.buffers()), backup, strict=True):
        value.copy_(then)


def _evaluate(function: Callable[[nn.Module], Any], model: nn.Module) -> Any:
    model.eval()
    with torch.no_grad():
        return function(model)


def _score(function: Score, model: nn.Module) -> float:
    value = float(_evaluate(function, model))
    if math.isnan(value):
        raise ValueError("a score must be a number: NaN says nothing about an update.")
    return value
