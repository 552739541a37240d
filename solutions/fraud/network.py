"""The temporal graph network: attention over both endpoints' mailboxes, fused with the streaming aggregates.

A mail becomes a token with a learnt encoding of its age (TGAT, arXiv 2002.07962); the Fuser reads the mailboxes of payer,
payee and device into S read-out tokens; together with the tokens of the aggregates they pass the Backbone. As in APAN
(arXiv 2011.11545) the payment is scored from mailboxes as they are, and propagates afterwards.

B payments, F aggregates, K mails, D width, S read-outs, G aggregate tokens, C token fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.backbone import Backbone, BackboneSettings
from core.fusion import Fuser
from core.training import TrainingSettings, fit
from solutions.fraud.features import AGGREGATES
from solutions.fraud.graph_state import ROLES
from solutions.fraud.prior import Prior
from solutions.fraud.tokens import TOKEN

F32 = NDArray[np.float32]
Mailboxes = dict[str, tuple[F32, NDArray[np.bool_]]]
INFERENCE_BATCH = 2048


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Sizes and training of the network. Token width and batch chosen on the handbook's validation folds.

    bias_update_rate: held-out utilisation at 0 / 5e-4 / 1e-3 / 2e-3 / 5e-3 / 1e-2 / 2e-2 was .29 / .70 / .88 / .90 / .93 /
    .89 / .89, and average precision .759 to .761 at all of them (handbook, first validation fold, one seed; measured
    before the network started from the prior).
    """

    width: int = 32
    read_outs: int = 4
    aggregate_tokens: int = 4
    heads: int = 4
    layers: int = 1
    moe: bool = True
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 16
    shared_width: int = 32
    bias_update_rate: float = 5e-3
    frequencies: int = 8
    epochs: int = 5
    batch_size: int = 512
    least_steps: int = 600  # a small stream is passed more often, at most 30 times
    learning_rate: float = 2e-3
    weight_decay: float = 0.02

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(
                f"`width` must be a multiple of `heads`. Received: width={self.width}, heads={self.heads}."
            )
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"`epochs` must be >= 1 and `batch_size` >= 2. Received: epochs={self.epochs}, batch_size={self.batch_size}."
            )

    def backbone(self) -> BackboneSettings:
        names = ("width", "layers", "heads", "moe", "num_experts", "top_k", "expert_width", "shared_width")
        return BackboneSettings(**{name: getattr(self, name) for name in names}, bias_update_rate=self.bias_update_rate)


def squash(x: Tensor) -> Tensor:
    """Signed log: ages and amounts span nine orders of magnitude."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


class MailEncoder(nn.Module):
    """(B, K, C) fields of mails -> (B, K, D): ages as logarithm and as learnt waves."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        # periods from four months to a day
        self.rate = nn.Parameter(torch.logspace(-1.5, 0.8, settings.frequencies))
        self.project = nn.Linear(len(TOKEN) + 2 * settings.frequencies, settings.width)

    def forward(self, token_BKC: Tensor) -> Tensor:
        waves = token_BKC[..., :1] * self.rate
        ages = torch.log1p(token_BKC[..., :2].clamp(min=0.0))
        fields = torch.cat([ages, token_BKC[..., 2:], torch.cos(waves), torch.sin(waves)], dim=-1)
        out: Tensor = F.gelu(self.project(fields))
        return out


class TemporalGraphNetwork(nn.Module):
    """(B, F) aggregates and mailbox tokens -> (B,) logit of fraud: the prior's, and what the network adds to it."""

    mean: Tensor
    scale: Tensor
    prior_shift: Tensor

    def __init__(self, settings: NetworkSettings, prior: Prior) -> None:
        super().__init__()
        self.settings, self.prior = settings, prior
        width, tokens = settings.width, settings.aggregate_tokens
        self.register_buffer("mean", torch.zeros(len(AGGREGATES)))
        self.register_buffer("scale", torch.ones(len(AGGREGATES)))
        self.register_buffer("prior_shift", torch.zeros(()))  # log of the share of genuine payments seen in training
        self.mails = nn.ModuleDict({role: MailEncoder(settings) for role in ROLES})
        self.aggregates = nn.Sequential(
            nn.Linear(len(AGGREGATES), 3 * width), nn.GELU(), nn.Linear(3 * width, tokens * width)
        )
        self.fuser = Fuser(
            {**dict.fromkeys(ROLES, width), "aggregates": width},
            width=width,
            read_outs=settings.read_outs,
            heads=settings.heads,
        )
        self.backbone = Backbone(settings.backbone())
        flat = (settings.read_outs + tokens) * width
        last = nn.Linear(2 * width, 1)
        nn.init.zeros_(last.weight)  # training starts at the prior
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.LayerNorm(flat), nn.Linear(flat, 2 * width), nn.GELU(), last)

    def standardise_by(self, x_TF: F32) -> None:
        """Set mean and scale from training aggregates."""
        x = squash(torch.from_numpy(x_TF))
        self.mean.copy_(x.mean(0))
        self.scale.copy_(x.std(0).clamp(min=1e-3))

    def forward(self, x_BF: Tensor, token_BKC: dict[str, Tensor], mask_BK: dict[str, Tensor]) -> Tensor:
        batch = x_BF.shape[0]
        x = ((squash(x_BF) - self.mean) / self.scale).clamp(-5.0, 5.0)
        aggregates = self.aggregates(x).view(batch, self.settings.aggregate_tokens, self.settings.width)
        tokens = {role: self.mails[role](token_BKC[role]) for role in ROLES} | {"aggregates": aggregates}
        masks = {**mask_BK, "aggregates": torch.ones(aggregates.shape[:2], dtype=torch.bool)}
        present_BM = torch.stack([m.any(dim=1) for m in masks.values()], dim=1)
        read = torch.cat([self.fuser(tokens, masks, present_BM), aggregates], dim=1)
        output = self.backbone(read, torch.ones(read.shape[:2], dtype=torch.bool))
        added_B: Tensor = self.head(output.tokens_BSD.flatten(1)).squeeze(-1)
        logit_B: Tensor = self.prior.logit(x_BF) + added_B - self.prior_shift
        return logit_B

    @torch.inference_mode()
    def logit(self, x_TF: F32, mailboxes: Mailboxes) -> NDArray[np.float64]:
        """Logits of many payments, corrected for the share of genuine payments left out of training."""
        self.eval()
        parts = []
        for begin in range(0, len(x_TF), INFERENCE_BATCH):
            chosen = slice(begin, begin + INFERENCE_BATCH)
            parts.append(
                self(*to_tensors(x_TF[chosen], {r: (t[chosen], m[chosen]) for r, (t, m) in mailboxes.items()}))
            )
        logit_T = torch.cat(parts) if parts else torch.zeros(0)
        return (logit_T + self.prior_shift).numpy().astype(np.float64)

    def save(self, path: Path) -> None:
        torch.save({"settings": asdict(self.settings), "prior": asdict(self.prior), "weights": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> TemporalGraphNetwork:
        stored = torch.load(path, weights_only=True)
        network = cls(NetworkSettings(**stored["settings"]), Prior(**stored["prior"]))
        network.load_state_dict(stored["weights"])
        return network


@dataclass(frozen=True)
class Held:
    """Payments that are not trained on: aggregates, mailboxes and truth (T,)."""

    x_TF: F32
    mailboxes: Mailboxes
    fraud_T: NDArray[np.bool_]


def to_tensors(x_TF: F32, mailboxes: Mailboxes) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The network's arguments, without a copy."""
    tokens = {role: torch.from_numpy(token) for role, (token, _) in mailboxes.items()}
    masks = {role: torch.from_numpy(mask) for role, (_, mask) in mailboxes.items()}
    return torch.from_numpy(x_TF), tokens, masks


def train_network(
    x_TF: F32,
    mailboxes: Mailboxes,
    fraud_T: NDArray[np.bool_],
    prior: Prior,
    *,
    keep_genuine: float,
    settings: NetworkSettings,
    seed: int,
    progress: Callable[[str], None],
    held: Held | None = None,
) -> TemporalGraphNetwork:
    """Train on all frauds and a share `keep_genuine` of the genuine payments.

    Args:
        held: later payments; a stream so small that it is passed more than `epochs` times keeps the pass that is best there.
    """
    torch.manual_seed(seed)
    network = TemporalGraphNetwork(settings, prior)
    network.standardise_by(x_TF)
    network.prior_shift.fill_(float(np.log(keep_genuine)))
    target_T = torch.from_numpy(fraud_T.astype(np.float32))
    size = min(settings.batch_size, len(x_TF))

    def batches(epoch: int) -> list[NDArray[np.int64]]:
        shuffled = np.random.default_rng((seed, epoch)).permutation(len(x_TF))
        return [shuffled[i : i + size] for i in range(0, len(shuffled) - size + 1, size)]

    def loss_of(model: nn.Module, chosen: NDArray[np.int64]) -> Tensor:
        batch = to_tensors(x_TF[chosen], {role: (t[chosen], m[chosen]) for role, (t, m) in mailboxes.items()})
        return F.binary_cross_entropy_with_logits(model(*batch), target_T[chosen])

    epochs = max(settings.epochs, min(math.ceil(settings.least_steps * size / len(x_TF)), 30))

    def watch(epoch: int, loss: float, _: float | None) -> None:
        progress(f"network epoch {epoch + 1}/{epochs}: loss {loss:.4f}")

    def held_out(_: nn.Module) -> float:
        assert held is not None
        logit_T = torch.from_numpy(network.logit(held.x_TF, held.mailboxes))
        return -float(F.binary_cross_entropy_with_logits(logit_T, torch.from_numpy(held.fraud_T).double()))

    options = TrainingSettings(epochs=epochs, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    small = held is not None and epochs > settings.epochs
    fit(network, batches, loss_of, options, validate=held_out if small else None, progress=watch)
    return network
