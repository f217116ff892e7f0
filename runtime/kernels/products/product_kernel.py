"""A product of 8-bit numbers, `x @ w.T`, with its scales: persistent, through TMA where the GPU and the widths allow.

Axes: N rows of x, F rows of w, D columns of both, K columns of a block.
"""

from __future__ import annotations

from ..language import tl, triton

# What the numbers are: int8 with a zero point of x, 8-bit floats with a scale a row, or with scales in blocks of 128.
INT8, ROWS, BLOCKS = 0, 1, 2
_INT8, _ROWS, _BLOCKS = tl.constexpr(INT8), tl.constexpr(ROWS), tl.constexpr(BLOCKS)
_SCALED = tl.constexpr(128)


@triton.jit
def _place(tile, tiles_n, tiles_f, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row and column of a tile: down GROUP rows, then a column on, so that what runs at once shares its operands."""
    in_group = GROUP * tiles_f
    first = tile // in_group * GROUP
    rows = tl.minimum(tiles_n - first, GROUP)
    return first + tile % in_group % rows, tile % in_group // rows


@triton.jit
def _tile_of(source, row_R, stride, column, rows, D, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block [R, D] of a matrix at rows from row_R[0] on, zero beyond it."""
    if TMA:
        block_RD = source.load([row_R, column])
    else:
        r_R = row_R + tl.arange(0, BLOCK_R)
        d_D = column + tl.arange(0, BLOCK_D)
        mask_RD = (r_R[:, None] < rows) & (d_D[None, :] < D)
        block_RD = tl.load(source + r_R.to(tl.int64)[:, None] * stride + d_D[None, :], mask_RD, other=0.0)
    return block_RD


@triton.jit
def _dot(x_ND, w_FD, acc_NF, KIND: tl.constexpr, IMPRECISE: tl.constexpr, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    if UPCAST:  # where the tensor cores have no 8-bit floats, as in Triton's interpreter
        acc_NF = tl.dot(x_ND.to(tl.float32), w_FD.to(tl.float32).T, acc_NF, input_precision="ieee")
    elif KIND == _INT8:
        acc_NF = tl.dot(x_ND, w_FD.T, acc_NF, out_dtype=tl.int32)
    elif IMPRECISE == 0:
        acc_NF = tl.dot(x_ND, w_FD.T, acc_NF)
    else:
        acc_NF = tl.dot(x_ND, w_FD.T, acc_NF, max_num_imprecise_acc=IMPRECISE)
    return acc_NF


@triton.jit
def product_kernel(  # type: ignore[no-untyped-def]
    x, w, y_ptr, x_scale_ptr, w_scale_ptr, zero_ptr, sums_ptr, bias_ptr, stride_x, stride_w, N, F, D, tiles_n, tiles_f,
    J, KIND: tl.constexpr, IMPRECISE: tl.constexpr, UPCAST: tl.constexpr, TMA: tl.constexpr, FLAT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [N, F] of x [N, D] and w [F, D]: descriptors with TMA, else pointers.

    INT8: `x_scale * w_scale_F * (x @ w.T - (zero - 128) * sums_F)`, x_scale and zero scalars, sums_F of rows of w.
    ROWS: `x_scale_N * w_scale_F * (x @ w.T)`, added up in tensor cores for IMPRECISE columns before it goes to float32,
    or altogether if that is 0. BLOCKS: the sum over blocks j of 128 columns, J in all, of
    `x_scale_jN * w_scale_(F / 128)j * (x_j @ w_j.T)` in float32 (DeepSeek-V3, arXiv:2412.19437, section 3.3.2).
    """
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_f, tl.num_programs(0), flatten=FLAT):
        i, j = _place(tile, tiles_n, tiles_f, GROUP)
        n_N = i * BLOCK_N + tl.arange(0, BLOCK_N)
        f_F = j * BLOCK_F + tl.arange(0, BLOCK_F)
        acc_NF = tl.zeros((BLOCK_N, BLOCK_F), tl.int32 if KIND == _INT8 else tl.float32)
        for block in tl.range(0, tl.cdiv(D, BLOCK_D), num_stages=STAGES):
            column = block * BLOCK_D
            x_ND = _tile_of(x, i * BLOCK_N, stride_x, column, N, D, BLOCK_N, BLOCK_D, TMA)
            w_FD = _tile_of(w, j * BLOCK_F, stride_w, column, F, D, BLOCK_F, BLOCK_D, TMA)
            if KIND == _BLOCKS:
                part_NF = _dot(x_ND, w_FD, tl.zeros((BLOCK_N, BLOCK_F), tl.float32), KIND, IMPRECISE, UPCAST)
                x_scale_N = tl.load(x_scale_ptr + block * N + n_N, n_N < N, other=0.0)
                tl.static_assert(BLOCK_F <= _SCALED, "a tile has one scale of w")
                part_NF *= tl.load(w_scale_ptr + j * BLOCK_F // _SCALED * J + block)
                acc_NF += part_NF * x_scale_N[:, None]
            else:
                acc_NF = _dot(x_ND, w_FD, acc_NF, KIND, IMPRECISE, UPCAST)

        y_NF = acc_NF
        if KIND == _INT8:
            # Whole numbers wrap around, so that only the difference has to fit 32 bits.
            y_NF = (acc_NF - (tl.load(zero_ptr) - 128) * tl.load(sums_ptr + f_F, f_F < F, other=0)[None, :]).to(
                tl.float32
            )
            y_NF *= (tl.load(x_scale_ptr) * tl.load(w_scale_ptr + f_F, f_F < F, other=0.0))[None, :]
        if KIND == _ROWS:
            y_NF *= tl.load(w_scale_ptr + f_F, f_F < F, other=0.0)[None, :]
            y_NF *= tl.load(x_scale_ptr + n_N, n_N < N, other=0.0)[:, None]
        if bias_ptr is not None:
            y_NF += tl.load(bias_ptr + f_F, f_F < F, other=0.0).to(tl.float32)[None, :]
        mask_NF = (n_N[:, None] < N) & (f_F[None, :] < F)
        tl.store(y_ptr + n_N.to(tl.int64)[:, None] * F + f_F[None, :], y_NF.to(y_ptr.dtype.element_ty), mask_NF)
