"""Self-attention with one switch for its kind, chosen by the length of the sequence.

Plain attention wins on CPUs up to a thousand tokens and more; the window pays beyond. A new kind (hash buckets, top-k)
is one function and one name in ATTEND.

B batch, S sequence, D width, N heads, H width of a head, W window, C = ceil(S / W) chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["full", "sliding"]
# full / sliding with W = 128, D = 64, one thread: 2.2 / 3.6 ms at 512 tokens, 7.7 / 6.8 at 1,024, 31 / 15 at 2,048
LONG = 1024


def choose_attention(length: int) -> Kind:
    """The fastest kind for a sequence of this length."""
    return "full" if length <= LONG else "sliding"


def attend_full(q_BNSH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask_BS: Tensor | None, window: int) -> Tensor:
    """Every query sees every real key; an example without any gives zeros. `window` has no meaning here."""
    if mask_BS is None:
        return F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH)
    some_B111 = mask_BS.any(-1)[:, None, None, None]
    allowed = mask_BS[:, None, None, :] | ~some_B111  # a softmax over nothing is NaN, also in the backward pass
    return F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, attn_mask=allowed) * some_B111


def attend_sliding(q_BNSH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask_BS: Tensor | None, window: int) -> Tensor:
    """Query i sees the real keys i - window .. i + window; chunks of queries against three chunks of keys: O(S * W)."""
    batch, heads, length, size = q_BNSH.shape
    if window >= length - 1:
        return attend_full(q_BNSH, k_BNSH, v_BNSH, mask_BS, window)
    chunks = -(-length // window)
    short = chunks * window - length
    mask_BS = torch.ones(batch, length, dtype=torch.bool, device=q_BNSH.device) if mask_BS is None else mask_BS
    q = F.pad(q_BNSH, (0, 0, 0, short)).view(batch, heads, chunks, window, size)
    # key chunk c with its neighbours: positions (c - 1) * W .. (c + 2) * W - 1
    k, v = (F.pad(x, (0, 0, window, short + window)).unfold(2, 3 * window, window) for x in (k_BNSH, v_BNSH))
    real_BC = F.pad(mask_BS, (window, short + window)).unfold(1, 3 * window, window)
    place = torch.arange(3 * window, device=q_BNSH.device)
    near = (place[None, :] - place[:window, None] - window).abs() <= window
    allowed = real_BC[:, :, None, :] & near  # (B, C, W, 3W)
    some = allowed.any(-1, keepdim=True)
    mixed = F.scaled_dot_product_attention(
        q.transpose(1, 2).flatten(0, 1),
        k.permute(0, 2, 1, 4, 3).flatten(0, 1),
        v.permute(0, 2, 1, 4, 3).flatten(0, 1),
        attn_mask=(allowed | ~some).flatten(0, 1).unsqueeze(1),
    )
    mixed = mixed * some.flatten(0, 1).unsqueeze(1)
    mixed = mixed.view(batch, chunks, heads, window, size).transpose(1, 2)
    return mixed.reshape(batch, heads, chunks * window, size)[:, :, :length]


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor]
ATTEND: dict[Kind, Attend] = {"full": attend_full, "sliding": attend_sliding}


class Attention(nn.Module):
    """(B, S, D), mask (B, S) or None -> (B, S, D). A query without any real key in reach gives zeros.

    Args:
        kind: one of ATTEND, or None to choose by length.
        window: tokens to each side that "sliding" sees.
    """

    def __init__(self, width: int, heads: int, *, kind: Kind | None = None, window: int = 128) -> None:
        super().__init__()
        if heads < 1 or width < 1 or width % heads:
            raise ValueError(f"`width` must be a multiple of `heads` >= 1. Received: width={width}, heads={heads}.")
        if kind is not None and kind not in ATTEND:
            raise ValueError(f"`kind` must be one of {get_args(Kind)} or None. Received: kind={kind!r}.")
        if window < 1:
            raise ValueError(f"`window` must be >= 1. Received: window={window}.")
        self.heads, self.kind, self.window = heads, kind, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor | None = None) -> Tensor:
        batch, length, width = x_BSD.shape
        kind = self.kind or choose_attention(length)
        q, k, v = self.qkv(x_BSD).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed_BNSH = ATTEND[kind](q, k, v, mask_BS, self.window)
        out: Tensor = self.out(mixed_BNSH.transpose(1, 2).flatten(2))
        return out
