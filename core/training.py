"""One training loop: schedule, clipping, mixed precision, early stopping, and an exact resume after a kill.

A source of batches is a function of the epoch, so that a resumed run sees what the interrupted one would have seen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.moe import Router


class SizedIterable(Protocol):
    """A list of batches, or anything as long and as repeatable as one (a DataLoader with a generator of its own)."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...


Batches = Callable[[int], SizedIterable]  # epoch -> its batches: the same for the same epoch, equally many for all
LossFunction = Callable[[nn.Module, Any], Tensor]
Progress = Callable[[int, float, float | None], None]  # epoch, mean loss, validation score


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite: training stops there instead of going on with ruined weights."""


class CheckpointMismatchError(RuntimeError):
    """A checkpoint was written by a run with other settings or other batches."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train.

    Args:
        warm_up: share of the steps over which the learning rate rises; it falls to zero as a cosine afterwards.
        clip: largest norm of the gradient.
        patience: epochs without a better validation score before stopping; None: never.
        bf16: autocast forward passes (weights and router stay in fp32).
        ema_decay: average the weights over steps, validate and return the average; None: off.
        balance_decay: share of the steps, at the end, over which the routers' bias updates fade to zero.
        checkpoint_steps: also write the checkpoint every so many steps, not only after every epoch.
    """

    epochs: int = 5
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warm_up: float = 0.1
    clip: float = 1.0
    patience: int | None = None
    bf16: bool = False
    ema_decay: float | None = None
    balance_decay: float = 0.5
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.learning_rate > 0.0 or not self.clip > 0.0 or not self.weight_decay >= 0.0:
            raise ValueError(
                "`epochs` must be >= 1, `learning_rate` and `clip` > 0, `weight_decay` >= 0. Received: "
                f"epochs={self.epochs}, learning_rate={self.learning_rate}, clip={self.clip}, "
                f"weight_decay={self.weight_decay}."
            )
        for name in ("warm_up", "balance_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={getattr(self, name)}.")
        for name in ("patience", "checkpoint_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1 or None. Received: {name}={getattr(self, name)}.")
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ValueError(f"`ema_decay` must be in (0, 1) or None. Received: ema_decay={self.ema_decay}.")


@dataclass(frozen=True)
class TrainingReport:
    """losses: mean loss of each epoch; scores: validation score of each epoch (empty without validation)."""

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best_epoch: int
    steps: int


@dataclass
class _State:
    """All that changes while training, next to the model and the optimizer."""

    epoch: int = 0
    done: int = 0  # steps of the current epoch
    total: float = 0.0  # loss summed over them
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    average: dict[str, Tensor] | None = None
    best: dict[str, Tensor] | None = None


def learning_rate_factor(step: int, steps: int, warm_up: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    first = max(int(warm_up * steps), 1)
    if step < first:
        return (step + 1) / first
    return 0.5 * (1.0 + math.cos(math.pi * (step - first) / max(steps - first, 1)))


def fade(step: int, steps: int, share: float) -> float:
    """1, and over the last `share` of the steps linearly to 0."""
    return min(1.0, (steps - step) / max(share * steps, 1.0))


def fit(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    settings: TrainingSettings,
    *,
    validate: Callable[[nn.Module], float] | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train in place and leave the model in evaluation mode, with the weights of the best epoch when validating.

    Args:
        loss_fn: (model, batch) -> scalar loss. Randomness comes from torch's CPU generator or from the batch.
        validate: (model) -> score, higher is better. After each epoch, in evaluation mode, without gradients.
        checkpoint: written atomically, resumed from when it exists. Interrupted and resumed equals uninterrupted.
        progress: called with (epoch, mean loss, score or None) after each epoch; `progress_bar` makes one.

    Raises:
        NonFiniteLossError: with epoch and step.
        CheckpointMismatchError: the checkpoint belongs to another run.
    """
    per_epoch = len(batches(0))
    if per_epoch < 1:
        raise ValueError("`batches` must give at least one batch per epoch. Received: 0 for epoch 0.")
    steps = settings.epochs * per_epoch
    device = next(model.parameters()).device.type
    optimizer = make_optimizer(model, settings)
    state = _State(average=_copy(model) if settings.ema_decay is not None else None)
    if checkpoint is not None and checkpoint.exists():
        state = _restore(checkpoint, model, optimizer, settings, per_epoch)
    while state.epoch < settings.epochs and not _out_of_patience(state.scores, settings.patience):
        model.train()
        random = torch.get_rng_state()
        source = batches(state.epoch)
        if len(source) != per_epoch:
            raise ValueError(
                f"`batches` must be equally many in all epochs. Expected: {per_epoch}, as in epoch 0. "
                f"Received: {len(source)} for epoch {state.epoch}."
            )
        remaining = iter(source)
        if state.done:
            for _ in range(state.done):
                next(remaining)
            torch.set_rng_state(random)  # as it was at this step, whatever making the batches drew
        for batch in remaining:
            step = state.epoch * per_epoch + state.done
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * learning_rate_factor(step, steps, settings.warm_up)
            with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.bf16):
                loss = loss_fn(model, batch)
            _check_finite(loss.detach(), "loss", state.epoch, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            _check_finite(norm, "norm of the gradient", state.epoch, step)
            optimizer.step()
            rebalance_routers(model, fade(step, steps, settings.balance_decay))
            if state.average is not None and settings.ema_decay is not None:
                _update_average(state.average, model, settings.ema_decay, step)
            state.total += float(loss.detach())
            state.done += 1
            on_time = settings.checkpoint_steps is not None and (step + 1) % settings.checkpoint_steps == 0
            if checkpoint is not None and on_time and state.done < per_epoch:
                _save(checkpoint, model, optimizer, settings, per_epoch, state)
        _finish_epoch(model, state, validate, per_epoch)
        if checkpoint is not None:
            _save(checkpoint, model, optimizer, settings, per_epoch, state)
        if progress is not None:
            progress(state.epoch - 1, state.losses[-1], state.scores[-1] if state.scores else None)
    chosen = state.best if state.best is not None else state.average
    if chosen is not None:
        model.load_state_dict(chosen)
    model.eval()
    best_epoch = _best(state.scores) if state.scores else len(state.losses) - 1
    return TrainingReport(tuple(state.losses), tuple(state.scores), best_epoch, len(state.losses) * per_epoch)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW; only matrices decay, not biases, norms and other vectors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def rebalance_routers(model: nn.Module, scale: float = 1.0) -> None:
    """Move the balancing bias of every router in the model."""
    for module in model.modules():
        if isinstance(module, Router):
            module.rebalance(scale)


@contextmanager
def progress_bar(epochs: int, description: str = "training") -> Iterator[Progress]:
    """A rich bar for the `progress` of fit."""
    from rich.progress import Progress as Bar

    with Bar(transient=True) as bar:
        task = bar.add_task(description, total=epochs)

        def show(epoch: int, loss: float, score: float | None) -> None:
            suffix = "" if score is None else f", score {score:.4f}"
            bar.update(task, completed=epoch + 1, description=f"{description}: loss {loss:.4f}{suffix}")

        yield show


def shuffled(count: int, batch_size: int, seed: int) -> Batches:
    """Batches of indices (N,) into `count` examples, in an order of their own for each epoch; the last may be short."""
    if count < 1 or batch_size < 1:
        raise ValueError(f"`count` and `batch_size` must be >= 1. Received: count={count}, batch_size={batch_size}.")

    def batches(epoch: int) -> Sequence[Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.split(torch.randperm(count, generator=generator), batch_size)

    return batches


def _finish_epoch(
    model: nn.Module, state: _State, validate: Callable[[nn.Module], float] | None, per_epoch: int
) -> None:
    state.losses.append(state.total / per_epoch)
    if validate is not None:
        trained = _copy(model) if state.average is not None else None
        if state.average is not None:
            model.load_state_dict(state.average)
        model.eval()
        with torch.no_grad():
            state.scores.append(float(validate(model)))
        if _best(state.scores) == len(state.scores) - 1:
            state.best = _copy(model)
        if trained is not None:
            model.load_state_dict(trained)
    state.epoch, state.done, state.total = state.epoch + 1, 0, 0.0


def _best(scores: list[float]) -> int:
    """The first epoch with the highest score; NaN is never best."""
    return max(range(len(scores)), key=lambda i: (-math.inf if math.isnan(scores[i]) else scores[i], -i))


def _out_of_patience(scores: list[float], patience: int | None) -> bool:
    return patience is not None and bool(scores) and len(scores) - 1 - _best(scores) >= patience


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    share = 1.0 - min(decay, (1.0 + step) / (10.0 + step))  # forget the random start faster
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, share)
        else:
            average[name].copy_(value)


def _check_finite(value: Tensor, what: str, epoch: int, step: int) -> None:
    if not math.isfinite(float(value)):
        raise NonFiniteLossError(
            f"The {what} is {float(value)} at epoch {epoch}, step {step}. Expected: a finite number. "
            "Check the inputs of this batch, or lower `learning_rate`."
        )


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    per_epoch: int,
    state: _State,
) -> None:
    content = {
        "settings": asdict(settings),
        "per_epoch": per_epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "state": vars(state),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings, per_epoch: int
) -> _State:
    stored = torch.load(path, weights_only=True)
    expected = {**asdict(settings), "batches per epoch": per_epoch}
    received = {**stored["settings"], "batches per epoch": stored["per_epoch"]}
    differing = [name for name in expected if expected[name] != received.get(name)]
    if differing:
        raise CheckpointMismatchError(
            f"The checkpoint {path.name} was written by another run. Expected: "
            + ", ".join(f"{name}={expected[name]}" for name in differing)
            + ". Received: "
            + ", ".join(f"{name}={received.get(name)}" for name in differing)
            + ". Remove it, or train with its settings."
        )
    model.load_state_dict(stored["model"])
    optimizer.load_state_dict(stored["optimizer"])
    torch.set_rng_state(stored["random"])
    return _State(**stored["state"])
