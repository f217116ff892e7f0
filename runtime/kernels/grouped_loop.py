"""What kernels of grouped products share: which tile a program has, and the loop over the inner axis.

Rows are sorted by expert. A tile has rows of one expert only: BLOCK_M of them from a row that need not be a multiple of
BLOCK_M, so that the last tile of an expert reaches into the next one's rows; what it reads there is never written.
"""

from __future__ import annotations

from .language import tl, triton


@triton.jit
def tiles_of_experts(offsets_ptr, X, BLOCK_X: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many tiles of BLOCK_M rows each expert has: [BLOCK_X]."""
    expert_X = tl.arange(0, BLOCK_X)
    end_X = tl.load(offsets_ptr + expert_X, expert_X < X, other=0)
    start_X = tl.load(offsets_ptr + expert_X - 1, (expert_X > 0) & (expert_X < X), other=0)
    return (end_X - start_X + BLOCK_M - 1) // BLOCK_M


@triton.jit
def find_tile(  # type: ignore[no-untyped-def]
    tile, tiles_X, columns, offsets_ptr, BLOCK_M: tl.constexpr, GROUP: tl.constexpr
):
    """The expert of a tile, its first row, where the expert's rows end, and which of `columns` tiles across it is.

    Expert by expert, so that one's weights are read once; within one GROUP tiles of rows by all columns, rows first.
    """
    until_X = tl.cumsum(tiles_X, 0)
    passed_X = until_X <= tile // columns
    expert = tl.sum(passed_X.to(tl.int32), 0)
    tile -= tl.sum(tl.where(passed_X, tiles_X, 0), 0) * columns
    end = tl.load(offsets_ptr + expert)
    start = tl.load(offsets_ptr + expert - 1, expert > 0, other=0)
    first = tile // (GROUP * columns) * GROUP
    high = min(GROUP, (end - start + BLOCK_M - 1) // BLOCK_M - first)
    within = tile % (GROUP * columns)
    return expert, start + (first + within % high) * BLOCK_M, end, within // high


@triton.jit
def rows_to_read(  # type: ignore[no-untyped-def]
    row, end, order_ptr, choices, GATHER: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Where a tile's rows are read: themselves, or with GATHER the tokens that they are choices of."""
    row_M = tl.minimum(row + tl.arange(0, BLOCK_M), end - 1)
    if GATHER:
        row_M = tl.load(order_ptr + row_M) // choices
    return row_M.to(tl.int64)


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    x, row, read_M, k, K, x_stride, TMA: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr
):
    """[BLOCK_M, BLOCK_K] of rows x [R, K], from inner index k on; zeros beyond K."""
    if TMA:
        x_MK = x.load([row, k])
    else:
        inner_K = k + tl.arange(0, BLOCK_K)[None, :]
        place_MK = x + read_M[:, None] * x_stride + inner_K
        x_MK = tl.load(place_MK) if EVEN_K else tl.load(place_MK, inner_K < K, other=0.0)
    return x_MK


@triton.jit
def load_weight(  # type: ignore[no-untyped-def]
    weight, expert, column, k, N, K, stride_X, stride,
    FLIPPED: tl.constexpr, TMA: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_N] of an expert's weight [X, N, K], or with FLIPPED [X, K, N]; zeros beyond N and K."""
    if TMA:
        if FLIPPED:
            weight_KN = tl.reshape(weight.load([expert, k, column]), (BLOCK_K, BLOCK_N))
        else:
            weight_KN = tl.reshape(weight.load([expert, column, k]), (BLOCK_N, BLOCK_K)).T
    else:
        inner_K = (k + tl.arange(0, BLOCK_K)[:, None]).to(tl.int64)
        column_N = (column + tl.arange(0, BLOCK_N)[None, :]).to(tl.int64)
        place = weight + expert.to(tl.int64) * stride_X
        place_KN = place + (inner_K * stride + column_N if FLIPPED else column_N * stride + inner_K)
        mask_KN = column_N < N if EVEN_K else (column_N < N) & (inner_K < K)
        weight_KN = tl.load(place_KN, mask_KN, other=0.0)
    return weight_KN


@triton.jit
def accumulate(  # type: ignore[no-untyped-def]
    sum_MN, x, row, read_M, x_stride, weight, expert, column, N, K, stride_X, stride,
    FLIPPED: tl.constexpr, TMA_X: tl.constexpr, TMA: tl.constexpr, EVEN_K: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, INEXACT: tl.constexpr,
):  # fmt: skip
    """sum_MN plus a tile's rows times its columns of its expert's weight.

    INEXACT: how many products of fp8 numbers are summed in the tensor cores' own precision, fewer bits than fp32 has.
    """
    for k in tl.range(0, K, BLOCK_K, warp_specialize=SPLIT):
        x_MK = load_rows(x, row, read_M, k, K, x_stride, TMA_X, EVEN_K, BLOCK_K)
        weight_KN = load_weight(
            weight, expert, column, k, N, K, stride_X, stride, FLIPPED, TMA, EVEN_K, BLOCK_N, BLOCK_K
        )
        sum_MN = tl.dot(x_MK, weight_KN, sum_MN, input_precision=PRECISION, max_num_imprecise_acc=INEXACT)
    return sum_MN


@triton.jit
def accumulate_two(  # type: ignore[no-untyped-def]
    one_MN, two_MN, x, row, read_M, x_stride, one, two, expert, column, N, K,
    one_stride_X, one_stride, two_stride_X, two_stride,
    TMA_X: tl.constexpr, TMA: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`accumulate` with two weights [X, N, K] at once, the rows read once."""
    for k in tl.range(0, K, BLOCK_K):
        x_MK = load_rows(x, row, read_M, k, K, x_stride, TMA_X, EVEN_K, BLOCK_K)
        one_KN = load_weight(
            one, expert, column, k, N, K, one_stride_X, one_stride, False, TMA, EVEN_K, BLOCK_N, BLOCK_K
        )
        two_KN = load_weight(
            two, expert, column, k, N, K, two_stride_X, two_stride, False, TMA, EVEN_K, BLOCK_N, BLOCK_K
        )
        one_MN = tl.dot(x_MK, one_KN, one_MN, input_precision=PRECISION)
        two_MN = tl.dot(x_MK, two_KN, two_MN, input_precision=PRECISION)
    return one_MN, two_MN


@triton.jit
def halves(x_MN, BLOCK_M: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(x_MN, (BLOCK_M, 2, HALF)), (0, 2, 1)))
