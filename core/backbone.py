"""The backbone that all solutions share: pre-norm blocks of attention and a mixture of experts, optional early exits.

B batch, S sequence, D width, E experts, O outputs of an exit head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.attention import Attention, Kind
from core.moe import Activation, DenseFeedForward, Gate, Mixed, MoE, MoESettings, Route


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """Sizes of the backbone.

    Args:
        moe: False for the dense control of equal active width.
        kind, window: of attention; kind None chooses by length.
        exit_outputs: outputs of an exit head after every layer but the last (1: a logit, more: classes; 0: no heads).
        exit_confidence: in evaluation an example leaves at the first exit that is this sure; None: never.
        checkpointing: recompute blocks in the backward pass instead of keeping their activations.
    """

    width: int = 32
    layers: int = 2
    heads: int = 4
    moe: bool = True
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 32
    shared_width: int = 32
    gate: Gate = "sigmoid"
    activation: Activation = "gelu"
    bias_update_rate: float = 5e-3
    route: Route = "auto"
    kind: Kind | None = None
    window: int = 128
    dropout: float = 0.0
    exit_outputs: int = 0
    exit_confidence: float | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"`layers` must be >= 1. Received: layers={self.layers}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={self.dropout}.")
        if self.exit_outputs < 0:
            raise ValueError(f"`exit_outputs` must be >= 0. Received: exit_outputs={self.exit_outputs}.")
        if self.exit_confidence is not None and not (self.exit_outputs and 0.0 < self.exit_confidence <= 1.0):
            raise ValueError(
                "`exit_confidence` must be in (0, 1] and needs `exit_outputs` >= 1. Received: "
                f"exit_confidence={self.exit_confidence}, exit_outputs={self.exit_outputs}."
            )
        self.mixture()  # refuses what a mixture refuses

    def mixture(self) -> MoESettings:
        return MoESettings(
            width=self.width,
            num_experts=self.num_experts,
            top_k=self.top_k,
            expert_width=self.expert_width,
            shared_width=self.shared_width,
            gate=self.gate,
            activation=self.activation,
            bias_update_rate=self.bias_update_rate,
            route=self.route,
        )


@dataclass(frozen=True)
class BackboneOutput:
    """What the backbone made of its tokens.

    Args:
        h_BD: mean of the real tokens.
        exit_layer_B: layers that each example passed.
        loads: (E,) assignments per expert, one per MoE layer.
        exit_logits: (B, O), one per exit head, for deep supervision; who left before keeps the logits of that exit.
    """

    h_BD: Tensor
    tokens_BSD: Tensor
    exit_layer_B: Tensor
    loads: tuple[Tensor, ...]
    exit_logits: tuple[Tensor, ...] = ()


class Block(nn.Module):
    """x + attention(norm x), then + mixture(norm x). Masked tokens are neither attended to nor routed."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.norm_attention, self.norm_mixture = nn.LayerNorm(settings.width), nn.LayerNorm(settings.width)
        self.attention = Attention(settings.width, settings.heads, kind=settings.kind, window=settings.window)
        mixture = settings.mixture()
        self.mixture = MoE(mixture) if settings.moe else DenseFeedForward(mixture, mixture.active_width)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor]:
        """The tokens and the load (E,), empty for the dense control."""
        x_BSD = x_BSD + self.dropout(self.attention(self.norm_attention(x_BSD), mask_BS))
        mixed = self.mix(self.norm_mixture(x_BSD).flatten(0, 1), None if mask_BS is None else mask_BS.flatten())
        return x_BSD + self.dropout(mixed.out_TD.view_as(x_BSD)), mixed.load_E

    def mix(self, x_TD: Tensor, mask_T: Tensor | None) -> Mixed:
        if isinstance(self.mixture, MoE):
            return self.mixture.mix(x_TD, mask_T)
        return Mixed(self.mixture(x_TD), x_TD.new_zeros(0))


class Backbone(nn.Module):
    """(B, S, D) tokens and (B, S) mask -> BackboneOutput. Values of masked tokens have no influence, not even NaN."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.settings = settings
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        heads = settings.layers - 1 if settings.exit_outputs else 0
        self.exits = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(settings.width), nn.Linear(settings.width, settings.exit_outputs))
            for _ in range(heads)
        )

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> BackboneOutput:
        if mask_BS is not None and not torch.compiler.is_compiling() and bool(mask_BS.all()):
            mask_BS = None  # attention without a mask is faster
        if mask_BS is not None:
            x_BSD = x_BSD.masked_fill(~mask_BS.unsqueeze(-1), 0.0)
        if self.settings.exit_confidence is not None and not self.training and not torch.compiler.is_compiling():
            return self._leave_early(x_BSD, mask_BS, self.settings.exit_confidence)
        loads: list[Tensor] = []
        logits: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if self.settings.checkpointing and self.training:
                x_BSD, load_E = checkpoint(block, x_BSD, mask_BS, use_reentrant=False)
            else:
                x_BSD, load_E = block(x_BSD, mask_BS)
            loads.append(load_E)
            if layer < len(self.exits):
                logits.append(self.exits[layer](pool(x_BSD, mask_BS)))
        exit_layer_B = torch.full((x_BSD.shape[0],), len(self.blocks), device=x_BSD.device)
        return self._output(x_BSD, mask_BS, exit_layer_B, loads, logits)

    def _leave_early(self, x_BSD: Tensor, mask_BS: Tensor | None, confidence: float) -> BackboneOutput:
        """Blocks only see the examples that have not left. Export runs all layers instead: sizes are fixed there."""
        tokens_BSD = x_BSD.clone()
        exit_layer_B = torch.full((x_BSD.shape[0],), len(self.blocks), device=x_BSD.device)
        going_G = torch.arange(x_BSD.shape[0], device=x_BSD.device)
        loads: list[Tensor] = []
        logits: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if len(going_G) == 0:
                loads.append(torch.zeros_like(loads[-1]))
                logits.extend(logits[-1:] if layer < len(self.exits) else [])
                continue
            mask_GS = None if mask_BS is None else mask_BS[going_G]
            x_GSD, load_E = block(tokens_BSD[going_G], mask_GS)
            tokens_BSD = tokens_BSD.index_copy(0, going_G, x_GSD)
            loads.append(load_E)
            if layer < len(self.exits):
                logit_GO = self.exits[layer](pool(x_GSD, mask_GS))
                last_BO = logits[-1] if logits else logit_GO.new_zeros(len(x_BSD), logit_GO.shape[1])
                logits.append(last_BO.index_copy(0, going_G, logit_GO))
                sure_G = certainty(logit_GO) >= confidence
                exit_layer_B[going_G[sure_G]] = layer + 1
                going_G = going_G[~sure_G]
        return self._output(tokens_BSD, mask_BS, exit_layer_B, loads, logits)

    def _output(
        self, x_BSD: Tensor, mask_BS: Tensor | None, exit_layer_B: Tensor, loads: list[Tensor], logits: list[Tensor]
    ) -> BackboneOutput:
        kept = tuple(loads) if self.settings.moe else ()
        return BackboneOutput(pool(x_BSD, mask_BS), x_BSD, exit_layer_B, kept, tuple(logits))

    def rebalance(self, scale: float = 1.0) -> None:
        """Move every router's bias; once per optimizer step (core.training.fit does it)."""
        for block in self.blocks:
            if isinstance(block, Block) and isinstance(block.mixture, MoE):
                block.mixture.router.rebalance(scale)


def pool(x_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
    """(B, D) mean over real tokens; zeros where there are none."""
    if mask_BS is None:
        return x_BSD.mean(1)
    weight = mask_BS.unsqueeze(-1).to(x_BSD.dtype)
    return (x_BSD * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def certainty(logit_BO: Tensor) -> Tensor:
    """(B,) probability of the most probable class; one output is the logit of the second of two classes."""
    if logit_BO.shape[1] == 1:
        return logit_BO.squeeze(1).abs().sigmoid()
    return logit_BO.softmax(-1).amax(-1)
