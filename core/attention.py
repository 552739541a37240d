"""Self-attention with one switch for its pattern, chosen by the length of the sequence.

Below about a thousand tokens plain attention wins on CPUs; the window only pays beyond. New patterns (hash buckets, top-k)
are new names in the same switch.

B batch, S sequence, D width, N heads.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pattern = Literal["full", "sliding"]
LONG = 1024  # measured: sparse patterns lose below 1,000 to 2,000 tokens


def choose_pattern(length: int) -> Pattern:
    return "full" if length <= LONG else "sliding"


def allowed(mask_BS: Tensor, pattern: Pattern, window: int) -> Tensor:
    """(B, 1, S, S) True where a query may look at a key: real keys, and within the window for "sliding"."""
    length = mask_BS.shape[1]
    keys = mask_BS[:, None, None, :].expand(-1, 1, length, -1)
    if pattern == "full":
        return keys
    place = torch.arange(length, device=mask_BS.device)
    return keys & ((place[:, None] - place[None, :]).abs() <= window)


class Attention(nn.Module):
    """(B, S, D) -> (B, S, D). A row whose keys are all masked gives zeros before the output projection.

    Args:
        pattern: "full", "sliding", or None to choose by length.
        window: tokens to each side that "sliding" sees.
    """

    def __init__(self, width: int, heads: int, *, pattern: Pattern | None = None, window: int = 128) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"`width` must be a multiple of `heads`. Received: width={width}, heads={heads}.")
        if pattern is not None and pattern not in get_args(Pattern):
            raise ValueError(f"`pattern` must be one of {get_args(Pattern)} or None. Received: pattern={pattern!r}.")
        if window < 1:
            raise ValueError(f"`window` must be >= 1. Received: window={window}.")
        self.heads, self.pattern, self.window = heads, pattern, window
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        batch, length, width = x_BSD.shape
        pattern = self.pattern or choose_pattern(length)
        q, k, v = self.qkv(x_BSD).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, allowed(mask_BS, pattern, self.window))
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Scaled dot-product attention; a query without any allowed key gets zeros instead of NaN."""
    some = allowed.any(-1, keepdim=True)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | ~some)
    return mixed * some
