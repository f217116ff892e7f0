"""Tokens sorted by expert, and what the experts made of them brought home (arXiv:2211.15841, section 5)."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from .context import Context
from .routing import expert_counts


class Rows(NamedTuple):
    """One row for each choice of each token, sorted by expert; R = B * S * K."""

    x_RD: Tensor
    offsets_X: Tensor  # int32: where the rows of each expert end
    order_R: Tensor  # int64: row r is choice order_R[r] of [B, S, K], flattened
    home_R: Tensor  # int64: the inverse, where each choice's row is


def dispatch(x_BSD: Tensor, chosen_BSK: Tensor, experts: int) -> Rows:
    """The rows of x_BSD [B, S, D] once for each expert chosen, sorted by expert, by position within an expert.

    chosen_BSK holds indices below `experts` (int64). Nothing here waits for the device: all shapes are known before.
    """
    index_R = chosen_BSK.flatten()
    order_R = torch.sort(index_R, stable=True).indices
    home_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(order_R.shape[0], device=order_R.device))
    offsets_X = expert_counts(chosen_BSK, experts).cumsum(0).to(torch.int32)
    x_RD = _Spread.apply(x_BSD.flatten(0, -2), order_R, home_R, chosen_BSK.shape[-1])
    return Rows(x_RD, offsets_X, order_R, home_R)


def combine(y_RD: Tensor, rows: Rows, weight_BSK: Tensor) -> Tensor:
    """What the experts made of `dispatch`'s rows, summed for each token with its weights: [B, S, D], in the dtype of
    y_RD.

    The sum runs in float32 at least.
    """
    y_BSKD = y_RD.index_select(0, rows.home_R).view(*weight_BSK.shape, y_RD.shape[-1])
    weight_BSK = weight_BSK.to(torch.promote_types(weight_BSK.dtype, torch.float32))
    return (y_BSKD * weight_BSK.unsqueeze(-1)).sum(-2).to(y_RD.dtype)


def within_capacity(chosen_BSK: Tensor, experts: int, factor: float) -> Tensor:
    """Which choices (indices below `experts`, int64 [B, S, K]) their experts have room for: bool [B, S, K].

    Each takes the first `ceil(factor * B * S * K / experts)`, in the order in which they lie: by sequence, then by
    position, then a token's better choice (Switch Transformer, arXiv:2101.03961, equation 3).
    """
    index_R = chosen_BSK.flatten()
    share = Fraction(str(factor)) / experts
    room = -(-share.numerator * index_R.shape[0] // share.denominator)  # rounded up, also where sizes are symbols
    order_R = torch.sort(index_R, stable=True).indices
    count_X = expert_counts(chosen_BSK, experts)
    before_X = count_X.cumsum(0) - count_X
    place_R = torch.arange(index_R.shape[0], device=index_R.device) - before_X[index_R[order_R]]
    kept_R = torch.empty_like(place_R, dtype=torch.bool).scatter_(0, order_R, place_R < room)
    return kept_R.view(chosen_BSK.shape)


class _Spread(torch.autograd.Function):
    """Row order_R[r] // k of x_TD as row r. Its gradient gathers by the inverse and sums the k choices of a token: the
    same bits each time, which the atomic additions of `index_select`'s own gradient are not on CUDA."""

    @staticmethod
    def forward(x_TD: Tensor, order_R: Tensor, home_R: Tensor, k: int) -> Tensor:
        return x_TD.index_select(0, order_R // k)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        home_R, k = inputs[2:]
        ctx.save_for_backward(home_R.view(-1, k))

    @staticmethod
    def backward(ctx: Context, gradient_RD: Tensor) -> tuple[Tensor, None, None, None]:
        (home_TK,) = ctx.saved_tensors
        return gradient_RD[home_TK].sum(1), None, None, None
