"""The rows of a token's choices brought home and added up, always in one order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..language import tl, triton
from ..tuning import run_best, tile

TILES = (tile(4, 1, BLOCK_D=1024), tile(8, 1, BLOCK_D=2048), tile(4, 1, BLOCK_D=512), tile(2, 1, BLOCK_D=256))


def combine_rows(y_RD: Tensor, choices: int, home_R: Tensor | None = None, factor_R: Tensor | None = None) -> Tensor:
    """The sum of the rows of each token's choices, [T, D], in float32 and then in the dtype of y_RD.

    y_RD lies by choice, or with home_R choice c is its row home_R[c]. factor_R: by choice, what each row is multiplied
    with.
    """
    rows, width = y_RD.shape
    y_TD = torch.empty(rows // choices, width, dtype=y_RD.dtype, device=y_RD.device)
    if not y_TD.numel():
        return y_TD
    dtype = str(y_RD.dtype).removeprefix("torch.")
    key = (triton.next_power_of_2(rows), choices, width, dtype, home_R is not None, factor_R is not None)

    def run(way):  # type: ignore[no-untyped-def]
        grid = (rows // choices, triton.cdiv(width, way["BLOCK_D"]))
        combine_kernel[grid](y_RD, home_R, factor_R, y_TD, width, choices, **way.options)
        return y_TD

    return run_best("experts.combine", key, TILES, run)


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    y_ptr, home_ptr, factor_ptr, sum_ptr, D, K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """See `combine_rows`: a program has a part of one token's row."""
    token = tl.program_id(0).to(tl.int64)
    column_D = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sum_D = tl.zeros((BLOCK_D,), tl.float32)
    for k in tl.static_range(K):
        row = token * K + k
        if home_ptr is not None:
            row = tl.load(home_ptr + row).to(tl.int64)
        y_D = tl.load(y_ptr + row * D + column_D, column_D < D, other=0.0).to(tl.float32)
        if factor_ptr is not None:
            y_D *= tl.load(factor_ptr + token * K + k).to(tl.float32)
        sum_D += y_D
    tl.store(sum_ptr + token * D + column_D, sum_D.to(sum_ptr.dtype.element_ty), column_D < D)


def bias_shares(grad_TD: Tensor, bias_XD: Tensor, offsets_X: Tensor, order_R: Tensor, choices: int) -> Tensor:
    """For each choice its token's gradient times its expert's bias: [R] in float32, what a bias behind the down product
    adds to the gradient of the choice's weight."""
    rows, (experts, width) = order_R.shape[0], bias_XD.shape
    share_R = torch.empty(rows, dtype=torch.float32, device=grad_TD.device)
    if rows:
        block = triton.next_power_of_2(experts)
        bias_share_kernel[(rows,)](
            grad_TD, bias_XD, offsets_X, order_R, share_R, experts, width, grad_TD.stride(0), choices, block, 1024
        )
    return share_R


@triton.jit
def bias_share_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, bias_ptr, offsets_ptr, order_ptr, share_ptr, X, D, stride, choices,
    BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """See `bias_shares`: a program has one row."""
    row = tl.program_id(0)
    expert_X = tl.arange(0, BLOCK_X)
    end_X = tl.load(offsets_ptr + expert_X, expert_X < X, other=2147483647)
    expert = tl.sum((end_X <= row).to(tl.int32), 0).to(tl.int64)
    choice = tl.load(order_ptr + row)
    token = (choice // choices).to(tl.int64)
    product_D = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        column_D = start + tl.arange(0, BLOCK_D)
        grad_D = tl.load(grad_ptr + token * stride + column_D, column_D < D, other=0.0).to(tl.float32)
        product_D += grad_D * tl.load(bias_ptr + expert * D + column_D, column_D < D, other=0.0).to(tl.float32)
    tl.store(share_ptr + choice, tl.sum(product_D, 0))
