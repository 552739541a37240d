"""Mixture of experts after DeepSeekMoE: a router with an aux-loss-free bias, fine-grained experts, one shared expert.

T tokens, D width, E experts, K chosen, H hidden width of one expert.
DeepSeekMoE: arXiv 2401.06066; load balancing by bias: arXiv 2408.15664.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MoESettings:
    """Sizes of a mixture. Active width of a token: top_k * expert_width + shared_width."""

    width: int
    num_experts: int = 8
    top_k: int = 2
    expert_width: int = 32
    shared_width: int = 32
    bias_update_rate: float = 1e-3  # arXiv 2408.15664, section 4.3

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

    @property
    def active_width(self) -> int:
        return self.top_k * self.expert_width + self.shared_width


@dataclass(frozen=True)
class Routing:
    """Where tokens go: weights_TK sum to 1 per token, experts_TK are indices, load_E counts assignments."""

    weights_TK: Tensor
    experts_TK: Tensor
    load_E: Tensor


@dataclass(frozen=True)
class LoadReport:
    """utilisation = mean load / max load = 1 / (1 + max_violation); entropy relative to uniform."""

    utilisation: float
    max_violation: float
    entropy: float


def load_report(load_E: Tensor) -> LoadReport:
    """How evenly the experts are used, from counts (E,) of any scale.

    Raises:
        ValueError: nothing was routed.
    """
    load = load_E.double()
    if float(load.sum()) <= 0.0:
        raise ValueError(f"`load_E` must count at least one token. Received: {load_E.tolist()}.")
    share = load / load.sum()
    violation = float(share.max() * len(share) - 1.0)
    entropy = float(-(share * share.clamp_min(1e-12).log()).sum() / torch.log(torch.tensor(float(max(len(share), 2)))))
    return LoadReport(utilisation=1.0 / (1.0 + violation), max_violation=violation, entropy=entropy)


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

    def forward(self, x_TD: Tensor) -> Routing:
        affinity_TE = torch.sigmoid(self.gate(x_TD))
        experts_TK = torch.topk(affinity_TE + self.bias_E, self.settings.top_k, dim=-1).indices
        chosen_TK = affinity_TE.gather(-1, experts_TK)  # bias picks, it never weighs
        weights_TK = chosen_TK / chosen_TK.sum(-1, keepdim=True).clamp_min(1e-9)
        load_E = F.one_hot(experts_TK, self.settings.num_experts).sum((0, 1)).to(x_TD.dtype)
        if self.training:
            self.seen_E += load_E.detach()
        return Routing(weights_TK, experts_TK, load_E)

    @torch.no_grad()
    def rebalance(self) -> None:
        """Raise the bias of experts below the mean load and lower that of the others (sign update)."""
        if float(self.seen_E.sum()) > 0.0:
            self.bias_E += self.settings.bias_update_rate * torch.sign(self.seen_E.mean() - self.seen_E)
            self.seen_E.zero_()


class Experts(nn.Module):
    """E two-layer experts. Training sorts tokens by expert and multiplies in groups; export loops over the experts."""

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        experts, width, hidden = settings.num_experts, settings.width, settings.expert_width
        self.up_EDH = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down_EHD = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def grouped(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """One grouped matrix product per layer over the tokens sorted by expert."""
        top_k = routing.experts_TK.shape[1]
        expert_N = routing.experts_TK.flatten()
        order_N = torch.argsort(expert_N, stable=True)
        ends_E = torch.bincount(expert_N, minlength=len(self.up_EDH)).cumsum(0).to(torch.int32)
        sorted_ND = x_TD[order_N // top_k].contiguous()
        hidden_NH = F.gelu(F.grouped_mm(sorted_ND, self.up_EDH, offs=ends_E))
        out_ND = F.grouped_mm(hidden_NH, self.down_EHD, offs=ends_E)
        weighted_ND = out_ND * routing.weights_TK.flatten()[order_N].unsqueeze(-1)
        return torch.zeros_like(x_TD).index_add(0, order_N // top_k, weighted_ND)

    def looped(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The slow twin: every expert on every token, zero weight where it was not chosen. Exports to ONNX."""
        out_TD = torch.zeros_like(x_TD)
        for e in range(len(self.up_EDH)):
            weight_T = (routing.weights_TK * (routing.experts_TK == e)).sum(-1, keepdim=True)
            out_TD = out_TD + weight_T * (F.gelu(x_TD @ self.up_EDH[e]) @ self.down_EHD[e])
        return out_TD


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """The dense block: the shared expert, and the control of equal active width."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))


class MoE(nn.Module):
    """(T, D) -> (T, D): shared expert plus the chosen ones. `load_E` holds the last call's assignments."""

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        self.router = Router(settings)
        self.experts = Experts(settings)
        self.shared = feed_forward(settings.width, settings.shared_width) if settings.shared_width else None
        self.load_E = torch.zeros(settings.num_experts)

    def forward(self, x_TD: Tensor) -> Tensor:
        routing = self.router(x_TD)
        self.load_E = routing.load_E.detach()
        exporting = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        out_TD = self.experts.looped(x_TD, routing) if exporting else self.experts.grouped(x_TD, routing)
        return out_TD if self.shared is None else out_TD + self.shared(x_TD)
