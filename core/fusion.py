"""Fusion of modalities into a few read-out tokens: shared and private projections, presence mask, cross-modal routing.

Every token is seen through a projection that all modalities share (after a width adapter) and one of its own (Domain
Separation Networks, arXiv 1608.06019); S learnt queries attend to all of them at once (Perceiver, arXiv 2103.03206), and a
gate over the modalities weighs each modality per example. What is absent contributes nothing.

B batch, L tokens of a modality, D width, M modalities, S read-outs, N heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attention import attend


class Fuser(nn.Module):
    """(tokens, mask, present_BM) -> (B, S, D).

    Args:
        widths: token width of each modality, in the order of present_BM's columns.
        width: D. read_outs: S. heads: N.
    """

    def __init__(self, widths: dict[str, int], *, width: int, read_outs: int = 4, heads: int = 4) -> None:
        super().__init__()
        if not widths:
            raise ValueError("`widths` must name at least one modality. Received: {}.")
        if width % heads:
            raise ValueError(f"`width` must be a multiple of `heads`. Received: width={width}, heads={heads}.")
        self.names, self.heads = tuple(widths), heads
        self.shared = nn.Linear(width, 2 * width, bias=False)  # keys and values
        self.adapt = nn.ModuleDict(
            {n: nn.Identity() if w == width else nn.Linear(w, width, bias=False) for n, w in widths.items()}
        )
        self.private = nn.ModuleDict({name: nn.Linear(w, 2 * width) for name, w in widths.items()})
        self.query_SD = nn.Parameter(torch.randn(read_outs, width) * width**-0.5)
        self.gate = nn.Linear(len(widths) * width, len(widths))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, tokens: dict[str, Tensor], mask: dict[str, Tensor], present_BM: Tensor) -> Tensor:
        """Fuse.

        Shapes:
            tokens[name]: (B, L, widths[name]); mask[name]: (B, L) True for real tokens; present_BM: (B, M) bool.
        """
        unknown = set(self.names) ^ set(tokens)
        if unknown:
            raise ValueError(f"`tokens` must have the modalities {self.names}. Missing or unknown: {sorted(unknown)}.")
        masks = [mask[name] & present_BM[:, i : i + 1] for i, name in enumerate(self.names)]
        key_value = [self.shared(self.adapt[n](tokens[n])) + self.private[n](tokens[n]) for n in self.names]
        weight_BM = self.route(key_value, masks)
        keys, values = [], []
        for i, kv in enumerate(key_value):
            key, value = kv.chunk(2, dim=-1)
            keys.append(key)
            values.append(value * weight_BM[:, i, None, None])
        key, value, seen = torch.cat(keys, 1), torch.cat(values, 1), torch.cat(masks, 1)
        batch, length, width = key.shape
        q = self.query_SD.expand(batch, -1, -1).view(batch, -1, self.heads, width // self.heads).transpose(1, 2)
        k = key.view(batch, length, self.heads, -1).transpose(1, 2)
        v = value.view(batch, length, self.heads, -1).transpose(1, 2)
        read = attend(q, k, v, seen[:, None, None, :].expand(-1, 1, q.shape[2], -1))
        out: Tensor = self.out(read.transpose(1, 2).reshape(batch, -1, width)) + self.query_SD
        return out

    def route(self, key_value: list[Tensor], masks: list[Tensor]) -> Tensor:
        """(B, M) weights of the modalities, with mean 1 over the present ones; absent ones get 0."""
        means, present = [], []
        for kv, seen in zip(key_value, masks, strict=True):
            value = kv.chunk(2, dim=-1)[1]
            count = seen.sum(1, keepdim=True)
            means.append(torch.where(seen[..., None], value, 0.0).sum(1) / count.clamp_min(1))
            present.append(count > 0)
        present_BM = torch.cat(present, 1)
        score_BM = self.gate(torch.cat(means, -1)).masked_fill(~present_BM, -1e9)
        weights = F.softmax(score_BM, -1) * present_BM
        return weights * present_BM.sum(-1, keepdim=True)
