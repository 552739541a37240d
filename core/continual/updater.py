"""Plan an update from a drift report, apply it with replay, and take it back when it does not help.

Replay with logit matching is dark experience replay, DER++ (arXiv 2004.07211).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.continual.drift import DriftReport

Scope = Literal["none", "head", "full"]


@dataclass(frozen=True)
class UpdatePlan:
    scope: Scope
    why: str


@dataclass(frozen=True)
class UpdateReport:
    """Score on new data before and after, what was lost on old data (positive is forgetting), and the cost."""

    scope: Scope
    before: float
    after: float
    forgetting: float
    kept: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class UpdaterSettings:
    """severe: rise of the mean error, relative, from which the whole model is trained and not its head alone."""

    severe: float = 0.5
    learning_rate: float = 5e-4
    match: float = 0.5  # weight of the logit matching term, DER++ section 4
    most_forgetting: float = 0.02

    def __post_init__(self) -> None:
        if self.severe <= 0.0 or self.learning_rate <= 0.0 or self.match < 0.0:
            raise ValueError(f"`severe` and `learning_rate` must be > 0 and `match` >= 0. Received: {self}.")


class Updater:
    """Errors decide: an input shift alone, with errors as before, is watched and changes nothing."""

    def __init__(self, settings: UpdaterSettings | None = None) -> None:
        self.settings = settings or UpdaterSettings()

    def plan(self, report: DriftReport) -> UpdatePlan:
        if not report.error_shift:
            if report.input_shift:
                return UpdatePlan("none", f"{len(report.input_shift)} inputs moved, errors did not: watch")
            return UpdatePlan("none", "nothing drifted")
        rise = report.error_after / max(report.error_before, 1e-9) - 1.0
        if rise >= self.settings.severe or report.input_shift:
            return UpdatePlan("full", f"mean error rose by {rise:.0%}, {len(report.input_shift)} inputs moved")
        return UpdatePlan("head", f"mean error rose by {rise:.0%}, inputs did not move")

    def apply(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        plan: UpdatePlan,
        *,
        loss_of: Callable[[nn.Module, Any], Tensor],
        replay: Callable[[], tuple[Any, Tensor]] | None,
        logit_of: Callable[[nn.Module, Any], Tensor],
        new_score: Callable[[nn.Module], float],
        old_score: Callable[[nn.Module], float],
        head: Callable[[nn.Module], nn.Module] = lambda model: model.get_submodule("head"),
    ) -> UpdateReport:
        """Train in place on new batches; weights return to what they were when the update is no gain or forgets too much.

        Args:
            replay: a batch of the past and the logits that the model had for it, drawn for every new batch.
            new_score, old_score: higher is better, on held-out data of now and of before.
        """
        start = time.perf_counter()
        before, old_before = new_score(model), old_score(model)
        if plan.scope == "none":
            return UpdateReport("none", before, before, 0.0, False, time.perf_counter() - start)
        backup = copy.deepcopy(model.state_dict())
        trained = head(model) if plan.scope == "head" else model
        optimizer = torch.optim.AdamW(trained.parameters(), lr=self.settings.learning_rate)
        model.train()
        for batch in batches:
            loss = loss_of(model, batch)
            if replay is not None:
                past, logits = replay()
                loss = loss + loss_of(model, past)
                loss = loss + self.settings.match * nn.functional.mse_loss(logit_of(model, past), logits)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        model.eval()
        after, forgetting = new_score(model), old_before - old_score(model)
        kept = after > before and forgetting <= self.settings.most_forgetting
        if not kept:
            model.load_state_dict(backup)
        return UpdateReport(plan.scope, before, after, forgetting, kept, time.perf_counter() - start)
