"""The network of `network` as one compiled pass over single payments: what serving and replay run.

A payment is computed alone, from its own tokens, so its logit is the same to the bit in any batch; masked mails and
experts that were not chosen cost nothing. `TemporalGraphNetwork` is the slow twin, and the one that trains.

T payments, F aggregates, K mails, C token fields, Q frequencies, D width, S read-outs, N heads, H = D / N, R = S * N,
G aggregate tokens, Z = S + G tokens of the backbone, E experts, W hidden width, L real mails and aggregate tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solutions.fraud.compiled import vector_kernel
from solutions.fraud.graph_state import ROLES
from solutions.fraud.vector_math import exp_, gelu_, product, waves

if TYPE_CHECKING:
    from solutions.fraud.network import TemporalGraphNetwork

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
B8 = NDArray[np.bool_]
NORM_EPS = 1e-5  # torch.nn.LayerNorm
ZERO, ONE, FIVE = np.float32(0.0), np.float32(1.0), np.float32(5.0)


class Weights(NamedTuple):
    """Inputs come first in every matrix (x_X @ w_XD); layers, roles and modalities (roles and aggregates) before them."""

    mean_F: F32
    inverse_scale_F: F32
    rate_3Q: F32
    mail_w: F32  # (3, C + 2Q, D)
    mail_b: F32
    aggregate_w1: F32
    aggregate_b1: F32
    aggregate_w2: F32
    aggregate_b2: F32
    read_in: F32  # (4, D, R + D): scores under every query and head, then values
    gate_w: F32  # (4 D, 4)
    gate_b: F32
    query_SD: F32
    fuse_w: F32
    fuse_b: F32
    norm_w: F32  # (layers, 2, D): before attention, before the mixture
    norm_b: F32
    qkv_w: F32
    out_w: F32
    router_w: F32  # (layers, D, E); E = 0: dense
    router_b: F32
    up_w: F32  # (layers, E, D, W)
    down_w: F32  # (layers, E, W, D)
    shared_up: F32  # (layers, D, width of the shared or dense part)
    shared_down: F32
    head_norm_w: F32
    head_norm_b: F32
    head_w1: F32
    head_b1: F32
    head_w2: F32
    heads: int
    top_k: int
    intercept: float  # bias of the head

    @classmethod
    def of(cls, network: TemporalGraphNetwork) -> Weights:
        """Fold a trained network."""
        return _fold(network)


def _fold(network: TemporalGraphNetwork) -> Weights:
    settings, fuser = network.settings, network.fuser
    state = {name: np.ascontiguousarray(value.detach().numpy()) for name, value in network.state_dict().items()}

    def matrix(name: str) -> F32:
        return np.ascontiguousarray(state[f"{name}.weight"].T)

    def stacked(names: list[str]) -> F32:
        return np.stack([state[name] for name in names])

    layers = [f"backbone.blocks.{layer}" for layer in range(settings.layers)]
    width = settings.width
    mixture = [f"{layer}.mixture" for layer in layers]
    experts = settings.num_experts if settings.moe else 0
    up_w = np.zeros((settings.layers, experts, width, settings.expert_width), np.float32)
    down_w = np.zeros((settings.layers, experts, settings.expert_width, width), np.float32)
    router_w, router_b = np.zeros((settings.layers, width, experts), np.float32), np.zeros((settings.layers, experts))
    if settings.moe:
        for a, name in enumerate(mixture):
            up_w[a] = state[f"{name}.experts.up_EHD"].transpose(0, 2, 1)
            down_w[a] = state[f"{name}.experts.down_EHD"]
            router_w[a], router_b[a] = matrix(f"{name}.router.gate"), state[f"{name}.router.bias_E"]
    shared = [f"{name}.shared" if settings.moe else name for name in mixture]
    if settings.moe and not settings.shared_width:
        shared_up = np.zeros((settings.layers, width, 0), np.float32)
        shared_down = np.zeros((settings.layers, 0, width), np.float32)
    else:
        shared_up = np.stack([matrix(f"{name}.up") for name in shared])
        shared_down = np.stack([matrix(f"{name}.down") for name in shared])
    read_in = [fuser.read_in(name).detach().numpy() for name in (*ROLES, "aggregates")]
    return Weights(
        mean_F=state["mean"],
        inverse_scale_F=(1.0 / state["scale"].astype(np.float64)).astype(np.float32),
        rate_3Q=stacked([f"mails.{role}.rate" for role in ROLES]),
        mail_w=np.stack([matrix(f"mails.{role}.project") for role in ROLES]),
        mail_b=stacked([f"mails.{role}.project.bias" for role in ROLES]),
        aggregate_w1=matrix("aggregates.0"),
        aggregate_b1=state["aggregates.0.bias"],
        aggregate_w2=matrix("aggregates.2"),
        aggregate_b2=state["aggregates.2.bias"],
        read_in=np.ascontiguousarray(np.stack(read_in)),
        gate_w=matrix("fuser.gate"),
        gate_b=state["fuser.gate.bias"],
        query_SD=state["fuser.query_SD"],
        fuse_w=matrix("fuser.out"),
        fuse_b=state["fuser.out.bias"],
        norm_w=np.stack([stacked([f"{x}.norm_attention.weight", f"{x}.norm_mixture.weight"]) for x in layers]),
        norm_b=np.stack([stacked([f"{x}.norm_attention.bias", f"{x}.norm_mixture.bias"]) for x in layers]),
        qkv_w=np.stack([matrix(f"{layer}.attention.qkv") for layer in layers]),
        out_w=np.stack([matrix(f"{layer}.attention.out") for layer in layers]),
        router_w=router_w,
        router_b=router_b.astype(np.float32),
        up_w=up_w,
        down_w=down_w,
        shared_up=shared_up,
        shared_down=shared_down,
        head_norm_w=state["head.0.weight"],
        head_norm_b=state["head.0.bias"],
        head_w1=matrix("head.1"),
        head_b1=state["head.1.bias"],
        head_w2=state["head.3.weight"][0],
        heads=settings.heads,
        top_k=settings.top_k,
        intercept=float(state["head.3.bias"][0]),
    )


@vector_kernel
def _norm(x_n: F32, weight_n: F32, bias_n: F32, out_n: F32) -> None:
    mean, square = 0.0, 0.0
    for i in range(len(x_n)):
        mean += x_n[i]
    mean /= len(x_n)
    for i in range(len(x_n)):
        square += (x_n[i] - mean) * (x_n[i] - mean)
    scale, middle = np.float32(1.0 / np.sqrt(square / len(x_n) + NORM_EPS)), np.float32(mean)
    for i in range(len(x_n)):
        out_n[i] = (x_n[i] - middle) * scale * weight_n[i] + bias_n[i]


@vector_kernel
def _encode(
    token_KC: F32, mask_K: B8, rate_Q: F32, weight: F32, bias_D: F32, start: int, field_LX: F32, mail_LD: F32
) -> int:
    """Encode the real mails of a role from row `start` on; returns the row after them."""
    fields, sines = token_KC.shape[1], token_KC.shape[1] + len(rate_Q)
    end = start
    for k in range(len(mask_K)):
        if mask_K[k]:
            for c in range(fields):
                field_LX[end, c] = token_KC[k, c]
            for c in range(2):
                field_LX[end, c] = np.float32(np.log1p(max(token_KC[k, c], ZERO)))
            waves(token_KC[k, 0], rate_Q, field_LX[end, fields:sines], field_LX[end, sines:])
            for d in range(len(bias_D)):
                mail_LD[end, d] = bias_D[d]
            end += 1
    product(field_LX[start:end], weight, mail_LD[start:end])
    gelu_(mail_LD[start:end].reshape(-1))
    return end


@vector_kernel
def _route(row_LX: F32, columns: int, end_M: I32, gate_w: F32, gate_b: F32, weight_M: F32) -> None:
    """Weights of the modalities, from the mean value of each; mean 1 over the present ones, 0 if absent."""
    modalities, width = len(end_M), row_LX.shape[1] - columns
    mean_1X, score_1M = np.zeros((1, modalities * width), np.float32), np.zeros((1, modalities), np.float32)
    start = 0
    for m in range(modalities):
        for row in range(start, end_M[m]):
            for d in range(width):
                mean_1X[0, m * width + d] += row_LX[row, columns + d]
        share = ONE / np.float32(max(end_M[m] - start, 1))
        for d in range(width):
            mean_1X[0, m * width + d] *= share
        score_1M[0, m] = gate_b[m]
        start = end_M[m]
    product(mean_1X, gate_w, score_1M)
    best, total, present, start = np.float32(-np.inf), ZERO, ZERO, 0
    for m in range(modalities):
        if end_M[m] > start:
            best = max(best, score_1M[0, m])
        start = end_M[m]
    start = 0
    for m in range(modalities):
        weight_M[m] = np.float32(np.exp(score_1M[0, m] - best)) if end_M[m] > start else ZERO
        total += weight_M[m]
        present += ONE if end_M[m] > start else ZERO
        start = end_M[m]
    for m in range(modalities):
        weight_M[m] *= present / total


@vector_kernel
def _weighted_sum(share_L: F32, value_LH: F32, out_H: F32) -> None:
    """out = share @ value, four columns at a time in registers."""
    whole = len(out_H) - len(out_H) % 4
    for h in range(0, whole, 4):
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for row in range(len(share_L)):
            s0 += share_L[row] * value_LH[row, h]
            s1 += share_L[row] * value_LH[row, h + 1]
            s2 += share_L[row] * value_LH[row, h + 2]
            s3 += share_L[row] * value_LH[row, h + 3]
        out_H[h], out_H[h + 1], out_H[h + 2], out_H[h + 3] = s0, s1, s2, s3
    for h in range(whole, len(out_H)):
        s0 = ZERO
        for row in range(len(share_L)):
            s0 += share_L[row] * value_LH[row, h]
        out_H[h] = s0


@vector_kernel
def _read(
    row_LX: F32, columns: int, end_M: I32, weight_M: F32, heads: int, focus_LR: F32, power_n: I32, own_SD: F32
) -> None:
    """What every query and head reads from all modalities; see core.fusion.Fuser."""
    many, size = row_LX.shape[0], own_SD.shape[1] // heads
    top_R, sum_R = np.full(columns, -np.inf, np.float32), np.zeros(columns, np.float32)
    for row in range(many):
        for r in range(columns):
            top_R[r] = max(top_R[r], row_LX[row, r])
    for row in range(many):
        for r in range(columns):
            focus_LR[row, r] = row_LX[row, r] - top_R[r]
    exp_(focus_LR.reshape(-1), power_n[: many * columns])
    start = 0
    for row in range(many):
        for r in range(columns):
            sum_R[r] += focus_LR[row, r]
    for r in range(columns):
        sum_R[r] = ONE / sum_R[r]
    for m in range(len(end_M)):
        for row in range(start, end_M[m]):
            for r in range(columns):
                focus_LR[row, r] *= weight_M[m] * sum_R[r]
        start = end_M[m]
    for r in range(columns):
        first = r % heads * size
        value_LH = row_LX[:, columns + first : columns + first + size]
        _weighted_sum(focus_LR[:, r], value_LH, own_SD[r // heads, first : first + size])


@vector_kernel
def _attend(norm_ZD: F32, qkv_w: F32, out_w: F32, heads: int, x_ZD: F32) -> None:
    """x += attention(norm); see core.attention."""
    tokens, width = x_ZD.shape
    size = width // heads
    scale = np.float32(1.0 / np.sqrt(size))
    qkv_ZX, mixed_ZD = np.zeros((tokens, 3 * width), np.float32), np.empty((tokens, width), np.float32)
    product(norm_ZD, qkv_w, qkv_ZX)
    key_DZ = np.empty((width, tokens), np.float32)
    for z in range(tokens):
        for d in range(width):
            key_DZ[d, z] = qkv_ZX[z, width + d] * scale
    share_NZZ = np.zeros((heads, tokens, tokens), np.float32)
    for n in range(heads):
        product(qkv_ZX[:, n * size : (n + 1) * size], key_DZ[n * size : (n + 1) * size], share_NZZ[n])
        for z in range(tokens):
            top = share_NZZ[n, z].max()
            for y in range(tokens):
                share_NZZ[n, z, y] -= top
    exp_(share_NZZ.reshape(-1), np.empty(heads * tokens * tokens, np.int32))
    for n in range(heads):
        for z in range(tokens):
            total = ZERO
            for y in range(tokens):
                total += share_NZZ[n, z, y]
            for y in range(tokens):
                share_NZZ[n, z, y] /= total
            first = 2 * width + n * size
            value_ZH = qkv_ZX[:, first : first + size]
            _weighted_sum(share_NZZ[n, z], value_ZH, mixed_ZD[z, n * size : (n + 1) * size])
    product(mixed_ZD, out_w, x_ZD)


@vector_kernel
def _shared(norm_ZD: F32, up_w: F32, down_w: F32, x_ZD: F32) -> None:
    """x += down(gelu(up(norm)))."""
    hidden_ZW = np.zeros((len(norm_ZD), up_w.shape[1]), np.float32)
    product(norm_ZD, up_w, hidden_ZW)
    gelu_(hidden_ZW.reshape(-1))
    product(hidden_ZW, down_w, x_ZD)


@vector_kernel
def _experts(
    norm_ZD: F32, router_w: F32, router_b: F32, up_EDW: F32, down_EWD: F32, chosen_K: NDArray[np.int64], x_ZD: F32
) -> None:
    """x += the experts that the router picks, weighted; see core.moe."""
    tokens, experts = len(norm_ZD), len(router_b)
    affinity_ZE = np.zeros((tokens, experts), np.float32)
    product(norm_ZD, router_w, affinity_ZE)
    hidden_1W = np.empty((1, up_EDW.shape[2]), np.float32)
    for z in range(tokens):
        for e in range(experts):
            affinity_ZE[z, e] = ONE / (ONE + np.float32(np.exp(-affinity_ZE[z, e])))
        total = ZERO
        for k in range(len(chosen_K)):
            best = -1
            for e in range(experts):
                taken = False
                for earlier in range(k):
                    taken |= chosen_K[earlier] == e
                value = affinity_ZE[z, e] + router_b[e]  # bias picks, it never weighs
                if not taken and (best < 0 or value > affinity_ZE[z, best] + router_b[best]):
                    best = e
            chosen_K[k] = best
            total += affinity_ZE[z, best]
        scale = ONE / max(total, np.float32(1e-9)) if len(chosen_K) > 1 else ONE
        for e in chosen_K:
            hidden_1W[0] = ZERO
            product(norm_ZD[z : z + 1], up_EDW[e], hidden_1W)
            gelu_(hidden_1W[0])
            for h in range(hidden_1W.shape[1]):
                hidden_1W[0, h] *= affinity_ZE[z, e] * scale
            product(hidden_1W, down_EWD[e], x_ZD[z : z + 1])


@vector_kernel
def network_addition(
    w: Weights,
    x_TF: F32,
    payer_TKC: F32,
    payee_TKC: F32,
    device_TKC: F32,
    payer_TK: B8,
    payee_TK: B8,
    device_TK: B8,
    out_T: NDArray[np.float64],
) -> None:
    """out (T,): what the network adds to the logit of its prior."""
    read_outs, width = w.query_SD.shape
    hidden, wide = w.aggregate_w1.shape[1], w.aggregate_w2.shape[1]
    more = wide // width
    most = payer_TK.shape[1] + payee_TK.shape[1] + device_TK.shape[1] + more
    columns = read_outs * w.heads
    field_LX = np.empty((most, w.mail_w.shape[1]), np.float32)
    mail_LD = np.empty((most, width), np.float32)
    row_LX = np.empty((most, columns + width), np.float32)
    focus_LR, power_n = np.empty((most, columns), np.float32), np.empty(most * columns, np.int32)
    end_M, weight_M, chosen_K = np.empty(4, np.int32), np.empty(4, np.float32), np.empty(w.top_k, np.int64)
    own_SD = np.empty((read_outs, width), np.float32)
    x_1F = np.empty((1, x_TF.shape[1]), np.float32)
    hidden_1X, token_1X = np.empty((1, hidden), np.float32), np.empty((1, wide), np.float32)
    x_ZD, norm_ZD = np.empty((read_outs + more, width), np.float32), np.empty((read_outs + more, width), np.float32)
    flat_1X, last_1X = np.empty((1, x_ZD.size), np.float32), np.empty((1, len(w.head_b1)), np.float32)
    for t in range(x_TF.shape[0]):
        for f in range(x_TF.shape[1]):
            value = x_TF[t, f]
            squashed = np.float32(np.log1p(abs(value)))
            squashed = squashed if value >= ZERO else -squashed
            x_1F[0, f] = min(max((squashed - w.mean_F[f]) * w.inverse_scale_F[f], -FIVE), FIVE)
        hidden_1X[0] = w.aggregate_b1
        product(x_1F, w.aggregate_w1, hidden_1X)
        gelu_(hidden_1X[0])
        token_1X[0] = w.aggregate_b2
        product(hidden_1X, w.aggregate_w2, token_1X)
        end = 0
        for role in range(3):
            token_TKC = payer_TKC if role == 0 else (payee_TKC if role == 1 else device_TKC)
            mask_TK = payer_TK if role == 0 else (payee_TK if role == 1 else device_TK)
            end = _encode(
                token_TKC[t], mask_TK[t], w.rate_3Q[role], w.mail_w[role], w.mail_b[role], end, field_LX, mail_LD
            )
            end_M[role] = end
        end_M[3] = end_M[2] + more
        for g in range(more):
            for d in range(width):
                mail_LD[end_M[2] + g, d] = x_ZD[read_outs + g, d] = token_1X[0, g * width + d]
        row_LX[: end_M[3]] = ZERO
        start = 0
        for m in range(4):
            product(mail_LD[start : end_M[m]], w.read_in[m], row_LX[start : end_M[m]])
            start = end_M[m]
        _route(row_LX, columns, end_M, w.gate_w, w.gate_b, weight_M)
        _read(row_LX[: end_M[3]], columns, end_M, weight_M, w.heads, focus_LR[: end_M[3]], power_n, own_SD)
        for s in range(read_outs):
            for d in range(width):
                x_ZD[s, d] = w.query_SD[s, d] + w.fuse_b[d]
        product(own_SD, w.fuse_w, x_ZD[:read_outs])
        for layer in range(w.qkv_w.shape[0]):
            for z in range(x_ZD.shape[0]):
                _norm(x_ZD[z], w.norm_w[layer, 0], w.norm_b[layer, 0], norm_ZD[z])
            _attend(norm_ZD, w.qkv_w[layer], w.out_w[layer], w.heads, x_ZD)
            for z in range(x_ZD.shape[0]):
                _norm(x_ZD[z], w.norm_w[layer, 1], w.norm_b[layer, 1], norm_ZD[z])
            if w.shared_up.shape[2]:
                _shared(norm_ZD, w.shared_up[layer], w.shared_down[layer], x_ZD)
            if w.router_w.shape[2]:
                _experts(norm_ZD, w.router_w[layer], w.router_b[layer], w.up_w[layer], w.down_w[layer], chosen_K, x_ZD)
        _norm(x_ZD.reshape(-1), w.head_norm_w, w.head_norm_b, flat_1X[0])
        last_1X[0] = w.head_b1
        product(flat_1X, w.head_w1, last_1X)
        gelu_(last_1X[0])
        logit = w.intercept
        for d in range(last_1X.shape[1]):
            logit += last_1X[0, d] * w.head_w2[d]
        out_T[t] = logit
