"""What kernels of grouped products share: which tile a program has, and the loop over the inner axis.

Rows are sorted by expert. A tile has rows of one expert only: BLOCK_M of them from a row that need not be a multiple of
BLOCK_M, so that the last tile of an expert reaches into the next one's rows; what it reads there is never written.
"""

from __future__ import annotations

from ..language import tl, triton


@triton.jit
def list_tiles_kernel(  # type: ignore[no-untyped-def]
    offsets_ptr, tiles_ptr, X, S, BLOCK_X: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Writes for each tile of BLOCK_M rows its expert, its first row and where the expert's rows end, [3, S], expert by
    expert, and behind them how many there are. A slot beyond those is that of row 0: it may be read, and names nothing
    that is not there.

    A kernel of its own: those that read it need no sums over experts.
    """
    expert_X = tl.arange(0, BLOCK_X)
    end_X = tl.load(offsets_ptr + expert_X, expert_X < X, other=0)
    start_X = tl.load(offsets_ptr + expert_X - 1, (expert_X > 0) & (expert_X < X), other=0)
    count_X = (end_X - start_X + BLOCK_M - 1) // BLOCK_M
    until_X = tl.cumsum(count_X, 0)
    slot_S = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    count = tl.sum(count_X, 0)
    within_SX = (slot_S[:, None] < until_X[None, :]) & (slot_S[:, None] >= (until_X - count_X)[None, :])
    expert_S = tl.sum(tl.where(within_SX, expert_X[None, :], 0), 1)
    first_S = tl.sum(tl.where(within_SX, (start_X - (until_X - count_X) * BLOCK_M)[None, :], 0), 1)
    end_S = tl.sum(tl.where(within_SX, end_X[None, :], 0), 1)
    tl.store(tiles_ptr + slot_S, expert_S, slot_S < S)
    tl.store(tiles_ptr + S + slot_S, tl.where(slot_S < count, first_S + slot_S * BLOCK_M, 0), slot_S < S)
    tl.store(tiles_ptr + 2 * S + slot_S, tl.where(slot_S < count, end_S, 1), slot_S < S)
    if tl.program_id(0) == 0:
        tl.store(tiles_ptr + 3 * S, count)


@triton.jit
def find_tile(number, tiles_ptr, S, columns, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The expert of a tile, its first row, where the expert's rows end, and which of `columns` tiles across it is.

    GROUP tiles of rows by all columns, rows first: an expert's weights and rows stay in the L2 cache meanwhile.
    """
    first = number // (GROUP * columns) * GROUP
    # Loops whose iterations overlap may ask for a tile behind the last: that is some slot too.
    high = tl.maximum(tl.minimum(GROUP, tl.load(tiles_ptr + 3 * S) - first), 1)
    within = number % (GROUP * columns)
    place = tiles_ptr + tl.minimum(first + within % high, S - 1)
    return tl.load(place), tl.load(place + S), tl.load(place + 2 * S), within // high


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
    FLIPPED: tl.constexpr, TMA_X: tl.constexpr, TMA: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, INEXACT: tl.constexpr,
):  # fmt: skip
    """sum_MN plus a tile's rows times its columns of its expert's weight.

    INEXACT: how many products of fp8 numbers are summed in the tensor cores' own precision, fewer bits than fp32 has.
    """
    for k in tl.range(0, K, BLOCK_K):
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
