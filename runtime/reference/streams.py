"""Hyper-connections: streams of a residual summed by weights, and matrices whose rows and columns add up to 1."""

from __future__ import annotations

from torch import Tensor

from .linear import map_heads
from .precision import wide


def mix(x: Tensor, weight: Tensor) -> Tensor:
    """`sum_n weight[..., n, m] * x[..., n, :]`: x [..., N, D], weight [..., N, M] or [..., N], result [..., M, D] or
    [..., D].

    Weights are cast to the dtype of x, which the result has.
    """
    weight = weight.to(x.dtype)
    if weight.ndim == x.ndim:
        return weight.transpose(-2, -1) @ x
    return (weight.unsqueeze(-2) @ x).squeeze(-2)


def outer(x: Tensor, weight: Tensor) -> Tensor:
    """`weight[..., n] * x[..., :]`: x [..., D], weight [..., N], result [..., N, D] in the dtype of x."""
    return weight.to(x.dtype).unsqueeze(-1) * x.unsqueeze(-2)


def sinkhorn(x: Tensor, iterations: int, eps: float = 1e-6) -> Tensor:
    """x [..., N, M], over 0, its columns divided by their sums, then `iterations - 1` times its rows and its columns.

    What it nears is doubly stochastic (Sinkhorn and Knopp, 1967; DeepSeek-V4, section 2.2); `eps` is added to every
    sum. Computed in float32 at least; the result has the shape and dtype of x.
    """
    assert iterations >= 1, f"{iterations} iterations"
    y = wide(x)
    y = y / (y.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        y = y / (y.sum(-1, keepdim=True) + eps)
        y = y / (y.sum(-2, keepdim=True) + eps)
    return y.to(x.dtype)


def block_linear(x: Tensor, weight: Tensor, blocks: int) -> Tensor:
    """`blocks` linear maps side by side, each of its part of x: x [B, S, I], weight [O, I / blocks], result [B, S, O].

    The first O / blocks rows of the weight belong to the first I / blocks numbers of x, and so on: a block-diagonal
    matrix of which only the blocks are stored. x is [B, S, I]; the weight is cast to its dtype.
    """
    return map_heads(x.unflatten(-1, (blocks, -1)), weight.unflatten(0, (blocks, -1))).flatten(-2)
