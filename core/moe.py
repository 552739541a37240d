"""Mixture of experts after DeepSeekMoE: a router balanced by a bias, fine-grained experts, one shared expert.

T tokens, D width, E experts, K chosen, H hidden width of one expert, N = T * K assignments.
DeepSeekMoE: arXiv 2401.06066. Balance without an auxiliary loss: arXiv 2408.15664.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = Literal["sigmoid", "softmax"]
Activation = Literal["gelu", "swiglu"]
Route = Literal["auto", "grouped", "dense", "looped"]

# Up to this many superfluous multiplications, every expert on every token in two products beats sorting. Measured on
# one thread at (D, H, E, K) = (32, 16, 8, 2), (64, 32, 8, 2), (128, 64, 16, 4): they cross at 6, 6 and 9 million.
DENSE_LIMIT = 5_000_000
ALIGNMENT = 16  # bytes that a row must be a multiple of in grouped_mm


@dataclass(frozen=True, kw_only=True)
class MoESettings:
    """Sizes of a mixture and how it routes.

    Args:
        shared_width: hidden width of the expert that every token passes; 0 for none.
        gate: affinity of a token to an expert. Weights are the affinities of the chosen, summing to 1 (for top_k=1 the
            affinity itself: a sum of 1 would leave the gate without a gradient).
        bias_update_rate: step of the balancing bias per optimizer step; 0 switches balancing off. arXiv 2408.15664,
            section 4.3, takes 1e-3 for long training. After 128 steps that left held-out utilisation at .53 to .73;
            5e-3, fading at the end, reached .95 and more at no larger error. Steps in proportion to the violation
            instead of its sign were no better.
        route: how experts are computed; "auto" takes the fastest for the size, and "dense" in an exported model.
    """

    width: int
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 32
    shared_width: int = 32
    gate: Gate = "sigmoid"  # DeepSeek-V3, arXiv 2412.19437, section 2.1.2
    activation: Activation = "gelu"
    bias_update_rate: float = 5e-3
    route: Route = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"`top_k` must be in [1, num_experts]. Received: top_k={self.top_k}, num_experts={self.num_experts}."
            )
        if min(self.width, self.expert_width) < 1 or self.shared_width < 0:
            raise ValueError(
                "`width` and `expert_width` must be >= 1 and `shared_width` >= 0. Received: "
                f"width={self.width}, expert_width={self.expert_width}, shared_width={self.shared_width}."
            )
        if not 0.0 <= self.bias_update_rate < math.inf:
            raise ValueError(f"`bias_update_rate` must be >= 0. Received: bias_update_rate={self.bias_update_rate}.")
        for name, choices in (("gate", Gate), ("activation", Activation), ("route", Route)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"`{name}` must be one of {get_args(choices)}. Received: {getattr(self, name)!r}.")
        if self.route == "grouped" and not self.can_group(torch.float32):
            raise ValueError(
                "`width` and `expert_width` must be multiples of 4 for route='grouped'. Received: "
                f"width={self.width}, expert_width={self.expert_width}."
            )

    def can_group(self, dtype: torch.dtype) -> bool:
        return all(size * dtype.itemsize % ALIGNMENT == 0 for size in (self.width, self.expert_width))

    @property
    def active_width(self) -> int:
        """Hidden units that one token passes."""
        return self.top_k * self.expert_width + self.shared_width


@dataclass(frozen=True)
class Routing:
    """Where tokens go: weights_TK, experts_TK (indices), load_E (assignments per expert, float)."""

    weights_TK: Tensor
    experts_TK: Tensor
    load_E: Tensor


@dataclass(frozen=True)
class Mixed:
    """What a mixture makes of its tokens, and how many assignments each expert got."""

    out_TD: Tensor
    load_E: Tensor


@dataclass(frozen=True)
class LoadReport:
    """utilisation = mean load / max load = 1 / (1 + max_violation); entropy as a share of the uniform one."""

    utilisation: float
    max_violation: float
    entropy: float


def load_report(load_E: Tensor) -> LoadReport:
    """How evenly the experts are used, from counts (E,) of any scale.

    Raises:
        ValueError: nothing was routed, or a count is negative or not finite.
    """
    load = load_E.detach().double()
    if load.ndim != 1 or not bool(((load >= 0) & load.isfinite()).all()) or float(load.sum()) <= 0.0:
        raise ValueError(f"`load_E` must be counts (E,) of at least one token. Received: {load_E.tolist()}.")
    share = load / load.sum()
    utilisation = 1.0 / (float(share.max()) * len(share))
    entropy = float(-torch.special.xlogy(share, share).sum()) / math.log(len(share)) if len(share) > 1 else 1.0
    return LoadReport(utilisation=utilisation, max_violation=1.0 / utilisation - 1.0, entropy=entropy)


class Router(nn.Module):
    """(T, D) -> Routing. The bias picks, it never weighs; `rebalance` moves it once per optimizer step."""

    bias_E: Tensor
    seen_E: Tensor

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        self.gate = nn.Linear(settings.width, settings.num_experts, bias=False)
        self.register_buffer("bias_E", torch.zeros(settings.num_experts))
        self.register_buffer("seen_E", torch.zeros(settings.num_experts), persistent=False)

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Routing:
        """Choose top_k experts per token. Tokens outside mask_T (T,) weigh nothing and do not count as load."""
        with torch.autocast(x_TD.device.type, enabled=False):  # a rounded gate sends tokens elsewhere
            logit_TE = F.linear(x_TD.float(), self.gate.weight.float())
            affinity_TE = logit_TE.sigmoid() if self.settings.gate == "sigmoid" else logit_TE.softmax(-1)
            experts_TK = torch.topk(affinity_TE + self.bias_E, self.settings.top_k, dim=-1, sorted=False).indices
            weights_TK = affinity_TE.gather(-1, experts_TK)  # bias picks, it never weighs
            if self.settings.top_k > 1:
                weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp_min(1e-9)
            if mask_T is not None:
                weights_TK = weights_TK * mask_T.unsqueeze(-1)
            load_E = self.count(experts_TK, mask_T)
        if self.training:
            # Recomputing a block (activation checkpointing) counts its tokens twice, all of them: shares stay.
            self.seen_E += load_E
        return Routing(weights_TK, experts_TK, load_E)

    def count(self, experts_TK: Tensor, mask_T: Tensor | None) -> Tensor:
        """(E,) assignments of the tokens in the mask."""
        if mask_T is None and not torch.compiler.is_compiling():
            return torch.bincount(experts_TK.flatten(), minlength=len(self.seen_E)).to(self.seen_E.dtype)
        one_T = torch.ones_like(experts_TK[:, 0], dtype=self.seen_E.dtype)
        counted_T = one_T if mask_T is None else one_T * mask_T
        return torch.zeros_like(self.seen_E).index_add(
            0, experts_TK.flatten(), counted_T.unsqueeze(-1).expand_as(experts_TK).flatten()
        )

    @torch.no_grad()
    def rebalance(self, scale: float = 1.0) -> None:
        """Raise the bias of experts with less than the mean load since the last call, lower that of the others."""
        mean = self.seen_E.mean()
        if float(mean) > 0.0 and self.settings.bias_update_rate > 0.0:
            self.bias_E += scale * self.settings.bias_update_rate * torch.sign(mean - self.seen_E)
            self.bias_E -= self.bias_E.mean()  # only differences pick
        self.seen_E.zero_()


class Experts(nn.Module):
    """E two-layer experts without biases, computed in one of three ways that agree in value and gradient.

    `grouped` sorts tokens by expert: fastest for many tokens; in fp32 it can not be exported.
    `dense` runs every expert on every token in two products: fastest for few tokens, and exports.
    `looped` is the definition, one expert at a time.
    """

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        experts, width, hidden = settings.num_experts, settings.width, settings.expert_width
        inner = 2 * hidden if settings.activation == "swiglu" else hidden
        self.up_EHD = nn.Parameter(torch.randn(experts, inner, width) * width**-0.5)
        self.down_EHD = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        route = self.settings.route
        if route == "auto":
            route = "dense" if torch.compiler.is_compiling() else self.fastest(len(x_TD))
        if route == "grouped":
            return self.grouped(x_TD, routing)
        return self.dense(x_TD, routing) if route == "dense" else self.looped(x_TD, routing)

    def fastest(self, tokens: int) -> Route:
        idle = self.settings.num_experts - self.settings.top_k
        few = tokens * idle * self.up_EHD[0].numel() * 2 <= DENSE_LIMIT
        return "dense" if few or not self.settings.can_group(torch.float32) else "grouped"

    def grouped(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """One grouped matrix product per layer over the tokens sorted by expert."""
        top_k = routing.experts_TK.shape[1]
        expert_N = routing.experts_TK.flatten()
        order_N = torch.argsort(expert_N)
        ends_E = torch.bincount(expert_N, minlength=len(self.up_EHD)).cumsum(0).to(torch.int32)
        token_N = order_N // top_k
        kind = self.product_type(x_TD)
        sorted_ND = x_TD.index_select(0, token_N).to(kind)
        hidden_NH = _activate(F.grouped_mm(sorted_ND, self.up_EHD.to(kind).transpose(1, 2), offs=ends_E), self.settings)
        out_ND = F.grouped_mm(hidden_NH, self.down_EHD.to(kind), offs=ends_E)
        weight_N1 = routing.weights_TK.flatten()[order_N].unsqueeze(-1)
        weighted_ND = (out_ND * weight_N1).to(x_TD.dtype)
        return torch.zeros_like(x_TD).index_add(0, token_N, weighted_ND)

    def product_type(self, x: Tensor) -> torch.dtype:
        """grouped_mm is not on autocast's list: cast as the other products are cast, where rows stay aligned."""
        if not torch.is_autocast_enabled(x.device.type):
            return x.dtype
        cast = torch.get_autocast_dtype(x.device.type)
        return cast if self.settings.can_group(cast) else x.dtype

    def dense(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Every expert on every token, weight zero where it was not chosen."""
        experts, inner, width = self.up_EHD.shape
        zeros_TE = torch.zeros_like(routing.weights_TK[:, :1]).expand(-1, experts)
        weight_TE = zeros_TE.scatter(1, routing.experts_TK, routing.weights_TK)
        up_TEH = F.linear(x_TD, self.up_EHD.view(experts * inner, width)).view(-1, experts, inner)
        hidden_TEH = _activate(up_TEH, self.settings) * weight_TE.unsqueeze(-1).to(up_TEH.dtype)
        return (hidden_TEH.flatten(1) @ self.down_EHD.flatten(0, 1)).to(x_TD.dtype)

    def looped(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Expert after expert: the slow twin."""
        out_TD = torch.zeros_like(x_TD)
        for e in range(len(self.up_EHD)):
            weight_T1 = (routing.weights_TK * (routing.experts_TK == e)).sum(-1, keepdim=True)
            out_TD = out_TD + weight_T1 * (_activate(x_TD @ self.up_EHD[e].T, self.settings) @ self.down_EHD[e])
        return out_TD


def _activate(x: Tensor, settings: MoESettings) -> Tensor:
    if settings.activation == "gelu":
        return F.gelu(x)
    gate, value = x.chunk(2, dim=-1)  # SwiGLU, arXiv 2002.05202
    return F.silu(gate) * value


class DenseFeedForward(nn.Module):
    """(..., D) -> (..., D): feed-forward; the shared expert, and at `active_width` the control of a mixture."""

    def __init__(self, settings: MoESettings, hidden: int) -> None:
        super().__init__()
        self.settings = settings
        inner = 2 * hidden if settings.activation == "swiglu" else hidden
        self.up = nn.Linear(settings.width, inner, bias=False)
        self.down = nn.Linear(hidden, settings.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(_activate(self.up(x), self.settings))
        return out


class MoE(nn.Module):
    """(T, D) -> (T, D): the shared expert plus the chosen ones; zeros for tokens outside the mask."""

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        self.router = Router(settings)
        self.experts = Experts(settings)
        self.shared = DenseFeedForward(settings, settings.shared_width) if settings.shared_width else None

    def forward(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Tensor:
        return self.mix(x_TD, mask_T).out_TD

    def mix(self, x_TD: Tensor, mask_T: Tensor | None = None) -> Mixed:
        """As forward, with the load."""
        if mask_T is None:
            return self._mix(x_TD, None)
        if torch.compiler.is_compiling():  # sizes must not depend on values
            mixed = self._mix(x_TD, mask_T)
            return Mixed(mixed.out_TD * mask_T.unsqueeze(-1), mixed.load_E)
        real_N = mask_T.nonzero().squeeze(-1)
        mixed = self._mix(x_TD.index_select(0, real_N), None)
        return Mixed(torch.zeros_like(x_TD).index_copy(0, real_N, mixed.out_TD), mixed.load_E)

    def _mix(self, x_TD: Tensor, mask_T: Tensor | None) -> Mixed:
        routing = self.router(x_TD, mask_T)
        out_TD = self.experts(x_TD, routing)
        return Mixed(out_TD if self.shared is None else out_TD + self.shared(x_TD).to(out_TD.dtype), routing.load_E)
