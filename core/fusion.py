"""Fusion of modalities into a few read-out tokens: shared and private subspaces, presence mask, cross-modal routing.

Half of the heads read a subspace that all modalities share, the other half one of each modality's own (Domain
Separation Networks, arXiv 1608.06019). S learnt queries attend to all tokens of all modalities at once (Perceiver,
arXiv 2103.03206), so cost is S * L. A gate weighs the modalities per example. What is absent contributes nothing.

B batch, L tokens (of a modality, or of all), D width, M modalities, S read-outs, N heads, H = D / N, R = S * N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fused:
    """Read-outs, and the weight that each example gave to each modality (mean 1 over the present ones, 0 if absent)."""

    read_BSD: Tensor
    route_BM: Tensor


class Fuser(nn.Module):
    """(tokens, mask, present_BM) -> (B, S, D).

    Args:
        widths: token width of each modality, in the order of present_BM's columns.
        width: D, a multiple of heads. read_outs: S. heads: N, even.
    """

    def __init__(self, widths: Mapping[str, int], *, width: int, read_outs: int = 4, heads: int = 4) -> None:
        super().__init__()
        if not widths or min(widths.values()) < 1:
            raise ValueError(f"`widths` must name modalities with widths >= 1. Received: {dict(widths)}.")
        if heads < 2 or heads % 2 or width % heads:
            raise ValueError(f"`heads` must be even and divide `width`. Received: width={width}, heads={heads}.")
        if read_outs < 1:
            raise ValueError(f"`read_outs` must be >= 1. Received: read_outs={read_outs}.")
        self.names, self.widths = tuple(widths), dict(widths)
        self.width, self.heads, self.read_outs = width, heads, read_outs
        half = width // 2
        self.adapt = nn.ModuleDict(
            {n: nn.Identity() if w == width else nn.Linear(w, width, bias=False) for n, w in widths.items()}
        )
        self.shared = nn.Linear(width, 2 * half, bias=False)  # keys and values
        self.private = nn.ModuleDict({name: nn.Linear(w, 2 * half, bias=False) for name, w in widths.items()})
        self.query_SD = nn.Parameter(torch.randn(read_outs, width) * width**-0.5)
        self.gate = nn.Linear(len(widths) * width, len(widths))
        nn.init.zeros_(self.gate.weight)  # start with equal weights
        nn.init.zeros_(self.gate.bias)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Mapping[str, Tensor], mask: Mapping[str, Tensor], present_BM: Tensor) -> Tensor:
        """Fuse.

        Shapes:
            tokens[name]: (B, L, widths[name]); mask[name]: (B, L) True for real tokens; present_BM: (B, M) bool.

        Raises:
            ValueError: a modality is missing or unknown, or a shape differs.
        """
        return self.fuse(tokens, mask, present_BM).read_BSD

    def fuse(self, tokens: Mapping[str, Tensor], mask: Mapping[str, Tensor], present_BM: Tensor) -> Fused:
        """As forward, with the routing weights."""
        self.check(tokens, mask, present_BM)
        seen = [mask[name] & present_BM[:, m : m + 1] for m, name in enumerate(self.names)]
        seen_BL = torch.cat(seen, 1)
        lengths = [s.shape[1] for s in seen]
        rows_BLX = torch.cat(
            [
                torch.where(s.unsqueeze(-1), tokens[name], 0.0) @ self.read_in(name)
                for name, s in zip(self.names, seen, strict=True)
            ],
            dim=1,
        )
        score_BLR, value_BLD = torch.split(rows_BLX, [self.read_outs * self.heads, self.width], dim=-1)
        # (M, L) one-hot: which modality a token belongs to
        member_ML = torch.eye(len(self.names), dtype=value_BLD.dtype, device=value_BLD.device).repeat_interleave(
            torch.tensor(lengths, device=value_BLD.device), dim=1
        )
        real_BL = seen_BL.to(value_BLD.dtype)
        route_BM = self.route(value_BLD, real_BL.unsqueeze(1) * member_ML)
        weight_BL = real_BL * (route_BM @ member_ML)
        focus_BLR = (score_BLR + (real_BL.unsqueeze(-1) - 1.0) * 1e9).softmax(1) * weight_BL.unsqueeze(-1)
        # every head reads all D values in one product, and keeps its own H of them: fewer, larger kernels
        read_BRD = focus_BLR.transpose(1, 2) @ value_BLD
        read_BSNNH = read_BRD.view(-1, self.read_outs, self.heads, self.heads, self.width // self.heads)
        own_BSHN = read_BSNNH.diagonal(dim1=2, dim2=3)
        return Fused(self.out(own_BSHN.transpose(-1, -2).flatten(2)) + self.query_SD, route_BM)

    def check(self, tokens: Mapping[str, Tensor], mask: Mapping[str, Tensor], present_BM: Tensor) -> None:
        wrong = set(self.names) ^ set(tokens) or set(self.names) ^ set(mask)
        if wrong:
            raise ValueError(
                f"`tokens` and `mask` must have the modalities {self.names}. Missing or unknown: {sorted(wrong)}."
            )
        for name, token in tokens.items():
            if token.ndim != 3 or token.shape[-1] != self.widths[name] or token.shape[:2] != mask[name].shape:
                raise ValueError(
                    f"`tokens[{name!r}]` must be (B, L, {self.widths[name]}) and its mask (B, L). "
                    f"Received: {tuple(token.shape)} and {tuple(mask[name].shape)}."
                )
        if present_BM.ndim != 2 or present_BM.shape[1] != len(self.names):
            raise ValueError(
                f"`present_BM` must have one column for each of {self.names}. Received: {tuple(present_BM.shape)}."
            )

    def read_in(self, name: str) -> Tensor:
        """(D_in, R + D): from a modality's tokens to their scores under every query and head, and to their values.

        Queries do not depend on the example, so they are folded into the key projection.
        """
        half, adapt, private = self.width // 2, self.adapt[name], self.private[name]
        assert isinstance(private, nn.Linear)
        shared = self.shared.weight if not isinstance(adapt, nn.Linear) else self.shared.weight @ adapt.weight
        key_DX = torch.cat([shared[:half], private.weight[:half]])
        value_DX = torch.cat([shared[half:], private.weight[half:]])
        size = self.width // self.heads
        query_NSH = self.query_SD.view(-1, self.heads, size).transpose(0, 1) * size**-0.5
        score_RX = (query_NSH @ key_DX.view(self.heads, size, -1)).transpose(0, 1).flatten(0, 1)
        return torch.cat([score_RX, value_DX]).T

    def route(self, value_BLD: Tensor, member_BML: Tensor) -> Tensor:
        """(B, M) weights of the modalities, from the mean value of each; mean 1 over the present ones, 0 if absent."""
        count_BM = member_BML.sum(-1)
        mean_BMD = (member_BML @ value_BLD) / count_BM.clamp_min(1.0).unsqueeze(-1)
        here_BM = (count_BM > 0).to(value_BLD.dtype)
        score_BM = self.gate(mean_BMD.flatten(1)) + (here_BM - 1.0) * 1e9
        route_BM: Tensor = score_BM.softmax(-1) * here_BM.sum(-1, keepdim=True)
        return route_BM
