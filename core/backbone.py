"""The backbone all solutions share: pre-norm blocks of attention and a mixture of experts, with optional early exit.

B batch, S sequence, D width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.attention import Attention, Pattern
from core.moe import MoE, MoESettings, feed_forward


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """moe=False: the dense control of equal active width. exit_confidence: leave once this sure (None: never)."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    moe: bool = True
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 32
    shared_width: int = 32
    bias_update_rate: float = 1e-3
    pattern: Pattern | None = None
    window: int = 128
    exit_confidence: float | None = None
    checkpointing: bool = False  # trade compute for memory in training

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"`layers` must be >= 1. Received: layers={self.layers}.")
        if self.exit_confidence is not None and not 0.5 < self.exit_confidence <= 1.0:
            raise ValueError(f"`exit_confidence` must be in (0.5, 1]. Received: {self.exit_confidence}.")

    def mixture(self) -> MoESettings:
        return MoESettings(
            width=self.width,
            num_experts=self.num_experts,
            top_k=self.top_k,
            expert_width=self.expert_width,
            shared_width=self.shared_width,
            bias_update_rate=self.bias_update_rate,
        )


@dataclass(frozen=True)
class BackboneOutput:
    """h_BD masked mean of the tokens; exit_layer_B how many layers each example used; loads one (E,) per MoE layer."""

    h_BD: Tensor
    tokens_BSD: Tensor
    exit_layer_B: Tensor
    loads: tuple[Tensor, ...]


class Block(nn.Module):
    """x + attention(norm x), then + mixture(norm x). Masked tokens are neither attended to nor routed."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(settings.width), nn.LayerNorm(settings.width)
        self.attention = Attention(settings.width, settings.heads, pattern=settings.pattern, window=settings.window)
        self.moe = MoE(settings.mixture()) if settings.moe else None
        self.dense = None if settings.moe else feed_forward(settings.width, settings.mixture().active_width)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        x_BSD = x_BSD + self.attention(self.norm1(x_BSD), mask_BS)
        normed = self.norm2(x_BSD)
        if self.dense is not None:
            return x_BSD + self.dense(normed)
        assert self.moe is not None
        if torch.compiler.is_compiling() or bool(mask_BS.all()):
            return x_BSD + self.moe(normed.flatten(0, 1)).view_as(x_BSD)
        update = torch.zeros_like(x_BSD)
        update[mask_BS] = self.moe(normed[mask_BS])
        return x_BSD + update


class Backbone(nn.Module):
    """(B, S, D) tokens and (B, S) mask -> BackboneOutput."""

    def __init__(self, settings: BackboneSettings) -> None:
        super().__init__()
        self.settings = settings
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        early = settings.layers - 1 if settings.exit_confidence is not None else 0
        self.exits = nn.ModuleList(nn.Linear(settings.width, 1) for _ in range(early))

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> BackboneOutput:
        batch = x_BSD.shape[0]
        exit_layer_B = torch.full((batch,), len(self.blocks), device=x_BSD.device)
        going_B = torch.ones(batch, dtype=torch.bool, device=x_BSD.device)
        for layer, block in enumerate(self.blocks):
            if self.settings.checkpointing and self.training:
                new = checkpoint(block, x_BSD, mask_BS, use_reentrant=False)
            else:
                new = block(x_BSD, mask_BS)
            x_BSD = new if bool(going_B.all()) else torch.where(going_B[:, None, None], new, x_BSD)
            if self.exits and layer < len(self.exits) and not self.training:
                sure_B = torch.sigmoid(self.exits[layer](pool(x_BSD, mask_BS)).squeeze(-1).abs())
                leaving_B = going_B & (sure_B >= self.settings.exit_confidence)
                exit_layer_B = torch.where(leaving_B, layer + 1, exit_layer_B)
                going_B = going_B & ~leaving_B
                if not bool(going_B.any()):
                    break
        loads = tuple(block.moe.load_E for block in self.blocks if isinstance(block, Block) and block.moe is not None)
        return BackboneOutput(pool(x_BSD, mask_BS), x_BSD, exit_layer_B, loads)

    def exit_logits(self, x_BSD: Tensor, mask_BS: Tensor) -> list[Tensor]:
        """(B,) logit of every early exit, for deep supervision while training."""
        logits = []
        for block, head in zip(self.blocks, self.exits, strict=False):
            x_BSD = block(x_BSD, mask_BS)
            logits.append(head(pool(x_BSD, mask_BS)).squeeze(-1))
        return logits

    def rebalance(self) -> None:
        """Move every router's bias; once per optimizer step."""
        for block in self.blocks:
            if isinstance(block, Block) and block.moe is not None:
                block.moe.router.rebalance()


def pool(x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """(B, D) mean over real tokens."""
    weight = mask_BS.unsqueeze(-1).to(x_BSD.dtype)
    return (x_BSD * weight).sum(1) / weight.sum(1).clamp_min(1.0)
