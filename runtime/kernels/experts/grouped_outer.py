"""Gradients of grouped products' weights: for each expert a product over its rows, and sums of its rows for biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..language import tl, triton
from ..tuning import Key, Tile, Way, run_best
from .grouped_product import blocks, descriptor, fitting, precision, takes_grouped_mm

# BLOCK_K counts rows here.
OUTER = (
    blocks(8, 4, (128, 256, 64), tma=True),
    blocks(8, 3, (128, 256, 64), tma=True),
    blocks(8, 3, (128, 256, 64), tma=False),
    blocks(8, 3, (256, 128, 64), tma=True),
    blocks(4, 3, (128, 128, 64), tma=True),
    blocks(4, 3, (128, 128, 64), tma=False),
    blocks(8, 3, (128, 128, 64), tma=False),
    blocks(8, 3, (128, 128, 32), tma=False),
)
# Where rows are gathered, half of the stages wait to know where they are.
GATHERED = (
    blocks(8, 5, (128, 256, 64), tma=False),
    blocks(8, 5, (128, 256, 64), tma=True),
    blocks(8, 5, (256, 128, 64), tma=False),
    blocks(4, 5, (128, 128, 64), tma=False),
    blocks(8, 5, (128, 128, 64), tma=False),
    blocks(8, 7, (128, 128, 64), tma=False),
    blocks(8, 3, (128, 128, 64), tma=False),
    blocks(8, 3, (128, 128, 32), tma=False),
)


@dataclass(frozen=True, eq=False)
class Outer:
    """For each expert y.T @ x over its rows: [X, F, D], zeros where it has none.

    y: [R, F] and x: [R, D], sorted by expert. What is gathered is [T, .] instead, and row r is token
    order_R[r] // choices. dtype: of the result.
    """

    y: Tensor
    x: Tensor
    offsets_X: Tensor
    dtype: torch.dtype
    order_R: Tensor | None = None
    choices: int = 0
    gather_y: bool = False
    gather_x: bool = False

    @property
    def rows(self) -> int:
        return self.y.shape[0] if self.order_R is None else self.order_R.shape[0]

    @property
    def key(self) -> Key:
        rows, dtype = triton.next_power_of_2(self.rows), str(self.x.dtype).removeprefix("torch.")
        shape = (self.offsets_X.shape[0], self.y.shape[1], self.x.shape[1])
        return (rows, *shape, dtype, precision(self.x.dtype), self.gather_y, self.gather_x)

    def ways(self) -> list[Way]:
        ways = fitting(GATHERED if self.order_R is not None else OUTER, [self.y, self.x])
        if takes_grouped_mm(self.y, self.x) and self.dtype == self.x.dtype:
            ways.insert(0 if self.order_R is None else len(ways), Way("torch grouped_mm"))
        return ways


def grouped_outer(call: Outer) -> Tensor:
    """[X, F, D]: see `Outer`."""
    return run_best("grouped.outer", call.key, call.ways(), lambda way: _outer(way, call))


def _outer(way: Way, call: Outer) -> Tensor:
    experts, height, width = call.offsets_X.shape[0], call.y.shape[1], call.x.shape[1]
    if not call.rows:
        return torch.zeros(experts, height, width, dtype=call.dtype, device=call.x.device)
    if not isinstance(way, Tile):
        y, x = call.y, call.x
        if call.order_R is not None:
            token_R = call.order_R // call.choices
            y = y.index_select(0, token_R) if call.gather_y else y
            x = x.index_select(0, token_R) if call.gather_x else x
        return F.grouped_mm(y.T, x, offs=call.offsets_X)
    product_XFD = torch.empty(experts, height, width, dtype=call.dtype, device=call.x.device)
    programs = experts * triton.cdiv(height, way["BLOCK_M"]) * triton.cdiv(width, way["BLOCK_N"])
    tma_y, tma_x = (bool(way["TMA"]) and not gathered for gathered in (call.gather_y, call.gather_x))
    outer_kernel[(programs,)](
        descriptor(call.y, (way["BLOCK_K"], way["BLOCK_M"])) if tma_y else call.y,
        descriptor(call.x, (way["BLOCK_K"], way["BLOCK_N"])) if tma_x else call.x,
        product_XFD, call.offsets_X, call.order_R, height, width, call.choices, call.y.stride(0), call.x.stride(0),
        GATHER_Y=call.gather_y, GATHER_X=call.gather_x, TMA_Y=tma_y, TMA_X=tma_x,
        EVEN_M=height % way["BLOCK_M"] == 0, EVEN_N=width % way["BLOCK_N"] == 0, PRECISION=precision(call.x.dtype),
        **way.options,
    )  # fmt: skip
    return product_XFD


@triton.jit
def outer_kernel(  # type: ignore[no-untyped-def]
    y, x, product_ptr, offsets_ptr, order_ptr, F, D, choices, y_stride, x_stride,
    GATHER_Y: tl.constexpr, GATHER_X: tl.constexpr, TMA_Y: tl.constexpr, TMA_X: tl.constexpr,
    EVEN_M: tl.constexpr, EVEN_N: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """See `Outer`. A program has one tile of one expert, and goes through the expert's rows."""
    down, across = tl.cdiv(F, BLOCK_M), tl.cdiv(D, BLOCK_N)
    expert, tile = tl.program_id(0) // (down * across), tl.program_id(0) % (down * across)
    first = tile // (GROUP * across) * GROUP
    high = min(GROUP, down - first)
    tile %= GROUP * across
    line, column = (first + tile % high) * BLOCK_M, tile // high * BLOCK_N
    start, end = tl.load(offsets_ptr + expert - 1, expert > 0, other=0), tl.load(offsets_ptr + expert)
    # The TMA unit knows nothing of an expert's end: what it copies of the last rows is masked, which takes registers.
    whole = start + (end - start) // BLOCK_K * BLOCK_K if TMA_Y or TMA_X else end
    sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for row in tl.range(start, whole, BLOCK_K):
        y_KM = _rows(
            y, row, end, line, F, y_stride, order_ptr, choices, GATHER_Y, TMA_Y, False, EVEN_M, BLOCK_K, BLOCK_M
        )
        x_KN = _rows(
            x, row, end, column, D, x_stride, order_ptr, choices, GATHER_X, TMA_X, False, EVEN_N, BLOCK_K, BLOCK_N
        )
        sum_MN = tl.dot(y_KM.T, x_KN, sum_MN, input_precision=PRECISION)
    if TMA_Y or TMA_X:  # noqa: SIM102
        if whole < end:
            y_KM = _rows(
                y, whole, end, line, F, y_stride, order_ptr, choices, GATHER_Y, TMA_Y, True, EVEN_M, BLOCK_K, BLOCK_M
            )
            x_KN = _rows(
                x, whole, end, column, D, x_stride, order_ptr, choices, GATHER_X, TMA_X, True, EVEN_N, BLOCK_K, BLOCK_N
            )
            sum_MN = tl.dot(y_KM.T, x_KN, sum_MN, input_precision=PRECISION)
    line_M, column_N = line + tl.arange(0, BLOCK_M)[:, None], column + tl.arange(0, BLOCK_N)[None, :]
    place_MN = product_ptr + (expert.to(tl.int64) * F + line_M) * D + column_N
    tl.store(place_MN, sum_MN.to(product_ptr.dtype.element_ty), (line_M < F) & (column_N < D))


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    x, row, end, column, width, stride, order_ptr, choices,
    GATHER: tl.constexpr, TMA: tl.constexpr, LAST: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK] of rows and columns of x, zeros from `end` on (by TMA: with LAST) and beyond the width."""
    row_K = row + tl.arange(0, BLOCK_K)
    if TMA:
        x_KN = x.load([row, column])
        if LAST:
            x_KN = tl.where((row_K < end)[:, None], x_KN, 0.0)
    else:
        read_K = tl.load(order_ptr + row_K, row_K < end, other=0) // choices if GATHER else row_K
        column_N = column + tl.arange(0, BLOCK)[None, :]
        mask_KN = (row_K < end)[:, None] if EVEN else (row_K < end)[:, None] & (column_N < width)
        x_KN = tl.load(x + read_K.to(tl.int64)[:, None] * stride + column_N, mask_KN, other=0.0)
    return x_KN


# --- biases


def expert_sums(
    y: Tensor, offsets_X: Tensor, dtype: torch.dtype, order_R: Tensor | None = None, choices: int = 0,
    factor_R: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The sum of each expert's rows: [X, N], zeros where it has none; summed in float32.

    y: [R, N] sorted by expert; or with `choices` [T, N], row r being factor_R[order_R[r]] times token
    order_R[r] // choices.
    """
    experts, width = offsets_X.shape[0], y.shape[1]
    if not y.shape[0]:
        return torch.zeros(experts, width, dtype=dtype, device=y.device)
    sum_XN = torch.empty(experts, width, dtype=dtype, device=y.device)
    expert_sums_kernel[(experts, triton.cdiv(width, 64))](
        y, offsets_X, order_R, factor_R, sum_XN, width, y.stride(0), choices, GATHER=choices > 0, BLOCK_R=64, BLOCK_N=64
    )
    return sum_XN


@triton.jit
def expert_sums_kernel(  # type: ignore[no-untyped-def]
    y_ptr, offsets_ptr, order_ptr, factor_ptr, sum_ptr, N, stride, choices,
    GATHER: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """See `expert_sums`: a program has some columns of one expert."""
    expert = tl.program_id(0)
    start, end = tl.load(offsets_ptr + expert - 1, expert > 0, other=0), tl.load(offsets_ptr + expert)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sum_RN = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for row in range(start, end, BLOCK_R):
        row_R = row + tl.arange(0, BLOCK_R)
        mask_RN = (row_R < end)[:, None] & (column_N < N)[None, :]
        if GATHER:
            choice_R = tl.load(order_ptr + row_R, row_R < end, other=0)
            place_RN = y_ptr + (choice_R // choices).to(tl.int64)[:, None] * stride + column_N[None, :]
            sum_RN += (
                tl.load(place_RN, mask_RN, other=0.0).to(tl.float32)
                * tl.load(factor_ptr + choice_R, row_R < end, other=0.0).to(tl.float32)[:, None]
            )
        else:
            place_RN = y_ptr + row_R.to(tl.int64)[:, None] * stride + column_N[None, :]
            sum_RN += tl.load(place_RN, mask_RN, other=0.0).to(tl.float32)
    place_N = sum_ptr + expert.to(tl.int64) * N + column_N
    tl.store(place_N, tl.sum(sum_RN, 0).to(sum_ptr.dtype.element_ty), column_N < N)
