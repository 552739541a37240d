"""One training loop: schedule, clipping, mixed precision, early stopping, and an exact resume after a kill.

A batch source is a function of the epoch, so that a resumed run sees the batches that the interrupted one would have seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batches = Callable[[int], Sequence[Any]]  # epoch -> its batches, the same for the same epoch
LossFunction = Callable[[nn.Module, Any], Tensor]


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite: training stops where it happened instead of going on with ruined weights."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """patience: epochs without a better validation score before stopping (None: never). bf16: autocast forward passes."""

    epochs: int = 5
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: float = 0.1  # share of the steps
    clip: float = 1.0
    patience: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0.0 or self.clip <= 0.0:
            raise ValueError(
                "`epochs` must be >= 1, `learning_rate` and `clip` > 0. Received: "
                f"epochs={self.epochs}, learning_rate={self.learning_rate}, clip={self.clip}."
            )
        if not 0.0 <= self.warm_up < 1.0:
            raise ValueError(f"`warm_up` must be in [0, 1). Received: warm_up={self.warm_up}.")


@dataclass(frozen=True)
class TrainingReport:
    """losses: mean loss of each epoch; scores: validation score of each epoch (empty without validation)."""

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best_epoch: int
    steps: int


def learning_rate_factor(step: int, steps: int, warm_up: float) -> float:
    """Linear warm-up, then cosine to zero."""
    first = max(int(warm_up * steps), 1)
    if step < first:
        return (step + 1) / first
    return float(0.5 * (1.0 + np.cos(np.pi * (step - first) / max(steps - first, 1))))


def fit(
    model: nn.Module,
    batches: Batches,
    loss_of: LossFunction,
    settings: TrainingSettings,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[int, float, float | None], None] | None = None,
) -> TrainingReport:
    """Train in place; with `validate` (higher is better) the weights of the best epoch are kept.

    Args:
        checkpoint: written after every epoch (atomically) and resumed from when it exists.
        progress: called with (epoch, mean loss, score) after every epoch.

    Raises:
        NonFiniteLossError: with the epoch and the step.
    """
    per_epoch = len(batches(0))
    steps = settings.epochs * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    losses: list[float] = []
    scores: list[float] = []
    best = {name: value.clone() for name, value in model.state_dict().items()}
    if checkpoint is not None and checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["rng"])
        losses, scores, best = stored["losses"], stored["scores"], stored["best"]
    for epoch in range(len(losses), settings.epochs):
        model.train()
        total = 0.0
        for i, batch in enumerate(batches(epoch)):
            step = epoch * per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(step, steps, settings.warm_up)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
                loss = loss_of(model, batch)
            if not bool(torch.isfinite(loss)):
                raise NonFiniteLossError(f"the loss is {float(loss)} at epoch {epoch}, step {step}. Check the inputs.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            rebalance_routers(model)
            total += float(loss.detach())
        losses.append(total / max(per_epoch, 1))
        if validate is not None:
            model.eval()
            scores.append(validate(model))
            if scores[-1] >= max(scores):
                best = {name: value.clone() for name, value in model.state_dict().items()}
        if progress is not None:
            progress(epoch, losses[-1], scores[-1] if scores else None)
        if checkpoint is not None:
            _save(checkpoint, model, optimizer, losses, scores, best)
        if settings.patience is not None and scores and len(scores) - 1 - int(np.argmax(scores)) >= settings.patience:
            break
    if scores:
        model.load_state_dict(best)
    model.eval()
    best_epoch = int(np.argmax(scores)) if scores else len(losses) - 1
    return TrainingReport(tuple(losses), tuple(scores), best_epoch, len(losses) * per_epoch)


def rebalance_routers(model: nn.Module) -> None:
    """Move the balancing bias of every router in the model."""
    from core.moe import Router

    for module in model.modules():
        if isinstance(module, Router):
            module.rebalance()


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float], scores: list[float], best: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    torch.save({**content, "losses": losses, "scores": scores, "best": best}, temporary)
    os.replace(temporary, path)
