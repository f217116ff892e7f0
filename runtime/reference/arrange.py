"""Operations that only move values: split, concat, gather, shift."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """x [..., sum(sizes)] cut along the last axis into [..., size] each; views, not copies."""
    return torch.split(x, list(sizes), dim=-1)


def concat(*parts: Tensor) -> Tensor:
    """Parts [..., A], [..., B], ... joined along the last axis: [..., A + B + ...]."""
    return torch.cat(parts, dim=-1)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """`x[..., index[..., k]]`: x [..., X], index (int64) [..., K], result [..., K]."""
    return x.gather(-1, index)


def shift(x: Tensor, n: int, fill: float = 0) -> Tensor:
    """`y[:, s] = x[:, s + n]`, and `fill` where that lies outside: x [B, S, ...], result of the same shape and dtype.

    `shift(tokens, 1)` holds at each position the token that follows it; a negative n looks back.
    """
    size = x.shape[1]
    n = max(-size, min(size, n))
    kept = x[:, n:] if n >= 0 else x[:, :n]
    blank = x.new_full((x.shape[0], abs(n), *x.shape[2:]), fill)
    return torch.cat((kept, blank) if n >= 0 else (blank, kept), dim=1)
