"""The network: patches of sensors, newest log entries and the asset's record, fused, through the backbone to one hazard.

Each modality brings its tokens in time and a few tokens that summarise its as-of features. Absent modalities are masked,
and sensors go missing in training, so that a dead sensor or an empty log is nothing new when it comes.

B rows, W steps of the window, S sensors, P steps of a patch, L log entries, F features, D width, K intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.backbone import Backbone, BackboneSettings
from core.fusion import Fuser
from core.moe import load_report
from core.training import TrainingSettings, fit
from solutions.maintenance.features import GROUPS, Features
from solutions.maintenance.hazard import person_periods
from solutions.maintenance.labels import Labels
from solutions.maintenance.task import NetworkSettings, Task

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
INFERENCE_BATCH = 2048
DEAD_SENSOR, DEAD_MODALITY = 0.1, 0.1  # how often one goes missing in training


@dataclass(frozen=True)
class Inputs:
    """Rows of a panel as the network sees them. start_R: first row of the row's asset."""

    features: Features
    start_R: I64

    def batch(self, rows: I64, settings: NetworkSettings) -> dict[str, Tensor]:
        index = rows[:, None] - np.arange(settings.window - 1, -1, -1)
        inside = index >= self.start_R[rows][:, None]
        z = self.features.z_RS[np.maximum(index, 0)]
        known = np.isfinite(z) & inside[..., None]
        return {
            "z_BWS": torch.from_numpy(np.where(known, z, 0.0).astype(np.float32)),
            "known_BWS": torch.from_numpy(known),
            "x_BF": torch.from_numpy(self.features.x_RF[rows]),
            "log_BL": torch.from_numpy(self.features.log_RL[rows]),
            "age_BL": torch.from_numpy(self.features.log_age_RL[rows]),
        }


class HazardNetwork(nn.Module):
    """A batch of `Inputs` -> logits (B, K) of the hazards."""

    mean_F: Tensor
    scale_F: Tensor

    def __init__(
        self,
        settings: NetworkSettings,
        *,
        sensors: int,
        codes: int,
        groups: tuple[str, ...],
        arms: tuple[str, ...],
        edges: tuple[float, ...],
    ) -> None:
        """groups: of each feature. arms: the modalities that are used; the record always is."""
        super().__init__()
        self.settings, self.sensors, self.codes, self.groups, self.arms = settings, sensors, codes, groups, arms
        self.edges = edges
        width, tokens = settings.width, settings.summary_tokens
        self.register_buffer("mean_F", torch.zeros(len(groups)))
        self.register_buffer("scale_F", torch.ones(len(groups)))
        self.columns = {g: torch.tensor([i for i, own in enumerate(groups) if own == g]) for g in GROUPS}
        self.used = tuple(g for g in GROUPS if g in (*arms, "asset") and len(self.columns[g]))
        size = settings.patch * sensors
        self.patch = nn.Sequential(nn.Linear(size + sensors, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.place = nn.Parameter(torch.randn(settings.window // settings.patch, width) * 0.1)
        self.entry = nn.Embedding(codes + 1, width)
        self.age = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
        self.summary = nn.ModuleDict(
            {
                g: nn.Sequential(
                    nn.Linear(len(self.columns[g]), 3 * width),
                    nn.GELU(),
                    nn.Dropout(settings.dropout),
                    nn.Linear(3 * width, tokens * width),
                )
                for g in self.used
            }
        )
        self.fuser = Fuser(
            dict.fromkeys(self.used, width), width=width, read_outs=settings.read_outs, heads=settings.heads
        )
        self.backbone = Backbone(
            BackboneSettings(
                width=width,
                layers=settings.layers,
                heads=settings.heads,
                moe=settings.moe,
                num_experts=settings.num_experts,
                top_k=settings.top_k,
                expert_width=settings.expert_width,
                shared_width=settings.shared_width,
                dropout=settings.dropout / 2.0,
            )
        )
        flat = (settings.read_outs + tokens * len(self.used)) * width
        self.head = nn.Sequential(
            nn.LayerNorm(flat),
            nn.Dropout(settings.dropout),
            nn.Linear(flat, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, len(edges) - 1),
        )

    def standardise_by(self, x_RF: F32) -> None:
        """Set mean and scale of the features from training rows, missing values left out."""
        known = np.isfinite(x_RF)
        mean = np.nansum(x_RF, axis=0) / np.maximum(known.sum(0), 1)
        scale = np.sqrt(np.nansum((x_RF - mean) ** 2, axis=0) / np.maximum(known.sum(0), 1))
        self.mean_F.copy_(torch.from_numpy(mean.astype(np.float32)))
        self.scale_F.copy_(torch.from_numpy(np.maximum(scale, 1e-3).astype(np.float32)))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.run(batch)[0]

    def run(self, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, K), and the load of the experts."""
        rows, width = len(batch["x_BF"]), self.settings.width
        z_BWS, known_BWS = batch["z_BWS"], batch["known_BWS"]
        x_BF = (batch["x_BF"] - self.mean_F) / self.scale_F
        if self.training and self.sensors:
            dead = torch.randint(self.sensors, (rows, 1, 1)) == torch.arange(self.sensors)
            dead = dead & (torch.rand(rows, 1, 1) < DEAD_SENSOR)
            z_BWS, known_BWS = z_BWS.masked_fill(dead, 0.0), known_BWS & ~dead
        x_BF = torch.where(x_BF.isfinite(), x_BF, 0.0).clamp(-5.0, 5.0)
        tokens: dict[str, Tensor] = {}
        masks: dict[str, Tensor] = {}
        summaries: dict[str, Tensor] = {}
        for g in self.used:
            parts, seen = [], []
            if g == "sensors":
                patches, there = self._patches(z_BWS, known_BWS)
                parts.append(patches)
                seen.append(there)
            if g == "logs":
                parts.append(self.entry(batch["log_BL"]) + self.age(ages(batch["age_BL"])))
                seen.append(batch["log_BL"] > 0)
            summaries[g] = self.summary[g](x_BF[:, self.columns[g]]).view(rows, -1, width)
            parts.append(summaries[g])
            seen.append(torch.ones(summaries[g].shape[:2], dtype=torch.bool))
            tokens[g], masks[g] = torch.cat(parts, dim=1), torch.cat(seen, dim=1)
        present_BM = torch.stack([m.any(dim=1) for m in masks.values()], dim=1)
        if self.training and len(self.used) > 1:
            gone = torch.randint(len(self.used), (rows, 1)) == torch.arange(len(self.used))
            present_BM = present_BM & ~(gone & (torch.rand(rows, 1) < DEAD_MODALITY))
        kept = [s * present_BM[:, [self.used.index(g)], None] for g, s in summaries.items()]
        read_BSD = torch.cat([self.fuser(tokens, masks, present_BM), *kept], dim=1)
        output = self.backbone(read_BSD)
        logit_BK: Tensor = self.head(output.tokens_BSD.flatten(1))
        return logit_BK, output.loads

    def _patches(self, z_BWS: Tensor, known_BWS: Tensor) -> tuple[Tensor, Tensor]:
        rows, count, size = len(z_BWS), self.settings.window // self.settings.patch, self.settings.patch
        known = known_BWS.view(rows, count, size, self.sensors)
        values = torch.cat([z_BWS.view(rows, count, -1), known.float().mean(2)], dim=-1)
        return self.patch(values) + self.place, known.flatten(2).any(-1)

    @torch.inference_mode()
    def logit(self, inputs: Inputs, rows: I64) -> F64:
        """Logits (N, K) of many rows."""
        self.eval()
        parts = [
            self(inputs.batch(rows[i : i + INFERENCE_BATCH], self.settings))
            for i in range(0, len(rows), INFERENCE_BATCH)
        ]
        found = torch.cat(parts) if parts else torch.zeros(0, len(self.edges) - 1)
        return found.numpy().astype(np.float64)

    @torch.inference_mode()
    def utilisation(self, inputs: Inputs, rows: I64) -> float:
        """Mean over largest load of the experts on given rows, averaged over layers; NaN for the dense control."""
        self.eval()
        loads = self.run(inputs.batch(rows, self.settings))[1]
        return float(np.mean([load_report(load).utilisation if len(load) else np.nan for load in loads]))

    def save(self, path: Path) -> None:
        shape = {name: getattr(self, name) for name in ("sensors", "codes", "groups", "arms", "edges")}
        torch.save({"settings": asdict(self.settings), "shape": shape, "weights": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> HazardNetwork:
        stored = torch.load(path, weights_only=True)
        shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored["shape"].items()}
        network = cls(NetworkSettings(**stored["settings"]), **shape)
        network.load_state_dict(stored["weights"])
        return network.eval()


def ages(age_BL: Tensor) -> Tensor:
    """Ages in hours on three scales: day, week, months."""
    return torch.stack([torch.exp(-age_BL / scale) for scale in (24.0, 168.0, 1440.0)], dim=-1)


def expected_life(logit_BK: Tensor, width_K: Tensor) -> Tensor:
    """Area under the survival curve, as `Curves.life`."""
    survival = torch.exp(-F.softplus(logit_BK).cumsum(1))
    before = torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], dim=1)
    return ((survival + before) / 2.0 * width_K).sum(1)


def train_network(
    inputs: Inputs,
    rows: I64,
    labels: Labels,
    task: Task,
    *,
    arms: tuple[str, ...] = ("sensors", "logs"),
    codes: int,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> HazardNetwork:
    """Train on the rows; `labels` are those of the whole panel. Loss: likelihood of the hazard + error of the life."""
    torch.manual_seed(seed)
    options = task.network
    network = HazardNetwork(
        options,
        sensors=inputs.features.z_RS.shape[1],
        codes=codes,
        groups=inputs.features.groups,
        arms=arms,
        edges=task.edges,
    )
    network.standardise_by(inputs.features.x_RF[rows])
    at_risk, fails = person_periods(labels.life_R, labels.failed_R, task.edges)
    life_R = torch.from_numpy(np.minimum(labels.life_R, task.cap).astype(np.float32))
    whole_R = torch.from_numpy(labels.failed_R | (labels.life_R >= task.cap))
    at_risk_RK, fails_RK = torch.from_numpy(at_risk), torch.from_numpy(fails)
    width_K = torch.from_numpy(np.diff(np.asarray(task.edges)).astype(np.float32))
    unit = task.cap / 5.0
    size = min(options.batch_size, len(rows))
    drawn = max(min(options.rows, len(rows)), size)

    def batches(epoch: int) -> list[I64]:
        shuffled = np.random.default_rng((seed, epoch)).permutation(rows)[:drawn]
        return [shuffled[i : i + size] for i in range(0, len(shuffled) - size + 1, size)]

    def loss_of(model: nn.Module, chosen: I64) -> Tensor:
        assert isinstance(model, HazardNetwork)
        logit = model(inputs.batch(chosen, options))
        index = torch.from_numpy(chosen)
        risk, fail = at_risk_RK[index], fails_RK[index]
        likelihood = torch.where(fail, F.softplus(-logit), torch.where(risk, F.softplus(logit), 0.0)).sum(1).mean()
        error = ((expected_life(logit, width_K) - life_R[index]) / unit).square() * whole_R[index]
        return likelihood + options.life_weight * error.mean()

    def watch(epoch: int, loss: float, _: float | None) -> None:
        progress(f"network epoch {epoch + 1}/{options.epochs}: loss {loss:.4f}")

    training = TrainingSettings(
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    fit(network, batches, loss_of, training, progress=watch)
    return network
