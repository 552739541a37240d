"""Which sensors stand behind a risk: what they read against what the others say they should, and a test that removes them.

A network that was trained to fill in masked sensors from the others, on normal operation only, expects what a healthy
machine would read in this condition; the residual is in deviations of normal operation. PCA is the linear twin.

N rows, S sensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.training import TrainingSettings, fit, shuffled
from solutions.maintenance.windows import rolling_mean

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
WINDOW = 12  # steps that are averaged before they are compared
MASKED = 0.35  # share of sensors hidden in training
MOST_ROWS = 20_000


class Reconstruction(nn.Module):
    """(N, S) windows and (N, S) known -> (N, S) what each sensor should read, from the others."""

    spread_S: Tensor

    def __init__(self, sensors: int, width: int = 48) -> None:
        super().__init__()
        self.sensors, self.width = sensors, width
        self.register_buffer("spread_S", torch.ones(sensors))
        self.linear = nn.Linear(2 * sensors, sensors)
        self.body = nn.Sequential(
            nn.Linear(2 * sensors, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, sensors)
        )

    def forward(self, x_NS: Tensor, known_NS: Tensor) -> Tensor:
        seen = torch.cat([torch.where(known_NS, x_NS, 0.0), known_NS.to(x_NS.dtype)], dim=1)
        out: Tensor = self.linear(seen) + self.body(seen)
        return out

    @torch.inference_mode()
    def expected(self, x_NS: F64) -> F64:
        """Each sensor with itself hidden: what the others say."""
        self.eval()
        x = torch.from_numpy(np.nan_to_num(x_NS).astype(np.float32))
        known = torch.from_numpy(np.isfinite(x_NS))
        columns = []
        for s in range(self.sensors):
            others = known.clone()
            others[:, s] = False
            columns.append(self(x, others)[:, s])
        return torch.stack(columns, dim=1).numpy().astype(np.float64)

    def residual(self, x_NS: F64) -> F64:
        """Reading less expectation, in deviations of normal operation; 0 for a missing sensor."""
        gap = (x_NS - self.expected(x_NS)) / self.spread_S.numpy()
        return np.where(np.isfinite(gap), gap, 0.0)

    def save(self, path: Path) -> None:
        torch.save({"sensors": self.sensors, "width": self.width, "weights": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> Reconstruction:
        stored = torch.load(path, weights_only=True)
        made = cls(stored["sensors"], stored["width"])
        made.load_state_dict(stored["weights"])
        return made.eval()


def windowed(z_RS: NDArray[Any], start_R: I64) -> F64:
    """What is compared: the mean of the newest steps of every z-score."""
    return rolling_mean(z_RS.astype(np.float64), start_R, WINDOW)


def fit_reconstruction(normal_NS: F64, *, seed: int, epochs: int = 8) -> Reconstruction:
    """Train on windows of normal operation; the last fifth of them gives the spread of the residuals."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    usable = normal_NS[np.isfinite(normal_NS).any(axis=1)]
    if len(usable) < 10:
        raise ValueError(f"a reconstruction needs at least 10 rows of normal operation. Received: {len(usable)}.")
    usable = usable[np.sort(rng.choice(len(usable), min(MOST_ROWS, len(usable)), replace=False))]
    split = max(int(0.8 * len(usable)), 1)
    train, held = usable[:split], usable[split:]
    model = Reconstruction(usable.shape[1])
    x_NS = torch.from_numpy(np.nan_to_num(train).astype(np.float32))
    known_NS = torch.from_numpy(np.isfinite(train))

    def loss_of(network: nn.Module, chosen: Tensor) -> Tensor:
        x, known = x_NS[chosen], known_NS[chosen]
        shown = known & (torch.rand(x.shape) >= MASKED)
        hidden = known & ~shown
        error = (network(x, shown) - x).square() * hidden
        return torch.sum(error) / hidden.sum().clamp(min=1)

    fit(model, shuffled(len(train), 256, seed), loss_of, TrainingSettings(epochs=epochs, learning_rate=3e-3))
    gap = held - model.expected(held)
    model.spread_S.copy_(torch.from_numpy(np.maximum(np.nanstd(gap, axis=0), 1e-3).astype(np.float32)))
    return model


@dataclass(frozen=True)
class Principal:
    """The linear twin: residual outside the leading components of normal operation (Jackson and Mudholkar 1979)."""

    mean_S: F64
    axes_CS: F64
    spread_S: F64

    @classmethod
    def fit(cls, normal_NS: F64, share: float = 0.8) -> Principal:
        x = np.nan_to_num(normal_NS)
        mean = x.mean(0)
        values, vectors = np.linalg.eigh(np.cov((x - mean).T))
        falling = np.cumsum(values[::-1]) / max(values.sum(), 1e-12)
        count = min(int(np.searchsorted(falling, share)) + 1, x.shape[1] - 1)
        axes = vectors[:, ::-1][:, :count].T
        rest = (x - mean) - (x - mean) @ axes.T @ axes
        return cls(mean, axes, np.maximum(rest.std(0), 1e-3))

    def residual(self, x_NS: F64) -> F64:
        gap = np.nan_to_num(x_NS) - self.mean_S
        rest = (gap - gap @ self.axes_CS.T @ self.axes_CS) / self.spread_S
        return np.asarray(np.where(np.isfinite(x_NS), rest, 0.0))


def rank(residual_S: F64, names: Sequence[str]) -> list[tuple[str, float]]:
    """Sensors by the size of their residual, largest first."""
    order = np.argsort(-np.abs(residual_S), kind="stable")
    return [(names[s], float(residual_S[s])) for s in order]


@dataclass(frozen=True)
class Signatures:
    """Mean residual of past failures by their finding: a new case is compared with them, few examples are enough.

    codes_G: findings; mean_GS: their mean residuals; count_G: examples behind each.
    """

    codes_G: tuple[str, ...]
    mean_GS: F64
    count_G: tuple[int, ...]

    @classmethod
    def fit(cls, residual_NS: F64, codes: Sequence[str]) -> Signatures:
        """One residual per past failure, and what was found."""
        names = tuple(sorted(set(codes)))
        found = np.asarray(codes, object)
        mean = np.stack([residual_NS[found == name].mean(axis=0) for name in names]) if names else residual_NS[:0]
        return cls(names, mean, tuple(int((found == name).sum()) for name in names))

    def suspects(self, residual_S: F64) -> list[tuple[str, float]]:
        """Findings by cosine similarity, shrunk for few examples; empty without a past failure."""
        length = np.linalg.norm(self.mean_GS, axis=1) * np.linalg.norm(residual_S)
        cosine = self.mean_GS @ residual_S / np.maximum(length, 1e-9)
        trust = np.asarray(self.count_G, float) / (np.asarray(self.count_G, float) + 1.0)
        order = np.argsort(-(cosine * trust), kind="stable")
        return [(self.codes_G[g], float(cosine[g])) for g in order]
