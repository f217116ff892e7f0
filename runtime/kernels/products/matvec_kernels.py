"""Products of a few rows with a weight, bound by reading it: by multiplying and adding, and by tensor cores.

Axes: N rows of x, F rows of the weight, D columns, W words of eight 4-bit columns, J groups of columns.
"""

from __future__ import annotations

from ..language import tl, triton

# What a weight is in memory.
FLOAT, INT8, INT4 = 0, 1, 2
# Whether x is normalised: not, by a factor of the sums, or before it is multiplied, which takes a pass over x first.
PLAIN, AFTER, BEFORE = 0, 1, 2
_FLOAT, _INT8, _INT4 = tl.constexpr(FLOAT), tl.constexpr(INT8), tl.constexpr(INT4)
_PLAIN, _AFTER, _BEFORE = tl.constexpr(PLAIN), tl.constexpr(AFTER), tl.constexpr(BEFORE)
_FIRST = tl.constexpr(
    528
)  # programs that may wait for the kernel before, 4 for each multiprocessor: others ask in vain
MAGIC = 0x4B000000  # 2 ** 23 as a float32: its last bits count. Given as an argument, one instruction masks and adds.
_CENTRE, _CENTRE_BITS = tl.constexpr(12582912.0), tl.constexpr(0x4B400000)  # 1.5 * 2 ** 23: so for signed numbers


@triton.jit
def silu_gate(gate, up):  # type: ignore[no-untyped-def]
    """`silu(gate) * up` (SwiGLU, arXiv:2002.05202)."""
    return gate / (1 + tl.exp(-gate)) * up


@triton.jit
def gelu_tanh_gate(gate, up):  # type: ignore[no-untyped-def]
    """`gelu_tanh(gate) * up` (GeGLU, arXiv:2002.05202)."""
    inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)  # twice sqrt(2 / pi) times it
    return gate / (1 + tl.exp(-inner)) * up


@triton.jit
def _ask_for(pointer, mask):  # type: ignore[no-untyped-def]
    """Has a line of memory brought into the cache that all multiprocessors share."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [pointer, mask.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _ask_for_rows(pointer_F1, columns, itemsize: tl.constexpr, LINES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Asks for the first LINES lines of 128 bytes of each row."""
    column_L = tl.arange(0, LINES)[None, :] * (128 // itemsize)
    _ask_for(pointer_F1 + column_L, (column_L < columns) & (pointer_F1.to(tl.int64) != 0))


@triton.jit
def _nibble(packed, magic, s: tl.constexpr):  # type: ignore[no-untyped-def]
    """Column s of eight in a word of 4-bit values, less 8, times 16 ** (s, or s - 3 from 5 on), as float32.

    Bits go where those of a float32's fraction are, which spares a conversion: there are fewer units for those.
    """
    if s < 5:
        bits = (packed & (15 << (4 * s))) | magic
        value = bits.to(tl.float32, bitcast=True) - (8388608 + 8 * 16**s)
    else:
        bits = ((packed >> 12) & (15 << (4 * s - 12))) | magic
        value = bits.to(tl.float32, bitcast=True) - (8388608 + 8 * 16 ** (s - 3))
    return value


@triton.jit
def _wide(w, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights as float32, those of 8 bits without a conversion."""
    if KIND == _INT8:
        wide = (w.to(tl.int32) + _CENTRE_BITS).to(tl.float32, bitcast=True) - _CENTRE
    else:
        wide = w.to(tl.float32)
    return wide


@triton.jit
def _narrow(nibble, zero, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """4-bit values (uint8) less their zero points (uint8) in a dtype, those of 16 bits without a conversion."""
    if dtype == tl.float32:
        value = nibble.to(tl.float32) - zero.to(tl.float32)
    else:
        bits: tl.constexpr = 0x4300 if dtype == tl.bfloat16 else 0x6400  # 128 and 1024: their last bits count
        value = (nibble.to(tl.int16) | bits).to(dtype, bitcast=True) - (zero.to(tl.int16) | bits).to(
            dtype, bitcast=True
        )
    return value


@triton.jit
def _grouped(sums_FW, scale_ptr, zero_ptr, row_F, j_J, J, x_J, GROUP_WORDS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums over words to scaled sums over groups [F, J]; x_J are the sums of x, used with zero points."""
    sums_FJ = tl.sum(tl.reshape(sums_FW, (sums_FW.shape[0], j_J.shape[0], GROUP_WORDS)), 2)
    offset_FJ = row_F[:, None] * J + j_J[None, :]
    mask_FJ = j_J[None, :] < J
    if zero_ptr is not None:
        zero_FJ = tl.load(zero_ptr + offset_FJ, mask_FJ, other=8).to(tl.float32) - 8
        sums_FJ -= x_J[None, :] * zero_FJ
    return sums_FJ * tl.load(scale_ptr + offset_FJ, mask_FJ, other=0.0).to(tl.float32)


@triton.jit
def _finished(gate, up, f, n, mask, bias_ptr, residual_ptr, stride_residual, ACTIVATION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The epilogue, at columns f and rows n of the result, which broadcast to the shape of the sums."""
    if bias_ptr is not None:
        gate += tl.load(bias_ptr + f, mask, other=0.0).to(tl.float32)
    if ACTIVATION is not None:
        gate = ACTIVATION(gate, up)
    if residual_ptr is not None:
        gate += tl.load(residual_ptr + n * stride_residual + f, mask, other=0.0).to(tl.float32)
    return gate


@triton.jit
def multiply_add_kernel(  # type: ignore[no-untyped-def]
    x_ptr, norm_ptr, weight_ptr, scale_ptr, zero_ptr, up_ptr, up_scale_ptr, up_zero_ptr, bias_ptr, residual_ptr, y_ptr,
    stride_w, stride_up, F, D, W, J, magic, eps, offset,
    KIND: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, EARLY: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [F] of one row x [D]: products in float32 where they fall, summed across threads at the end.

    W, J: words and groups of a row of 4-bit weights.
    """
    f_F = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    row_F = tl.minimum(f_F, F - 1).to(tl.int64)
    weight_F1 = weight_ptr + row_F[:, None] * stride_w
    up_F1 = weight_F1
    if ACTIVATION is not None:
        up_F1 = up_ptr + row_F[:, None] * stride_up
    if EARLY:
        itemsize: tl.constexpr = weight_ptr.dtype.element_ty.primitive_bitwidth // 8
        lines: tl.constexpr = BLOCK_D * itemsize // (1024 if KIND == _INT4 else 128)
        columns = W if KIND == _INT4 else D
        if tl.program_id(0) < _FIRST:
            _ask_for_rows(weight_F1, columns, itemsize, lines)
            if ACTIVATION is not None:
                _ask_for_rows(up_F1, columns, itemsize, lines)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    if KIND == _INT4:
        GROUP_WORDS: tl.constexpr = GROUP // 8
        squares_D = tl.zeros((BLOCK_D // 8,), tl.float32)
        gate = tl.zeros((BLOCK_F, BLOCK_D // GROUP), tl.float32)
        up = tl.zeros((BLOCK_F, BLOCK_D // GROUP), tl.float32)
        for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            w_W = start // 8 + tl.arange(0, BLOCK_D // 8)
            fits_W = w_W < W
            packed_FW = tl.load(weight_F1 + w_W[None, :], fits_W[None, :], other=0, eviction_policy="evict_first")
            sums_FW = tl.zeros((BLOCK_F, BLOCK_D // 8), tl.float32)
            up_packed_FW = packed_FW
            up_sums_FW = sums_FW
            if ACTIVATION is not None:
                up_packed_FW = tl.load(up_F1 + w_W[None, :], fits_W[None, :], other=0, eviction_policy="evict_first")
            x_sums_W = tl.zeros((BLOCK_D // 8,), tl.float32)
            for s in tl.static_range(8):
                x_W = tl.load(x_ptr + w_W * 8 + s, fits_W, other=0.0).to(tl.float32)
                if NORM != _PLAIN:
                    squares_D += x_W * x_W
                    x_W *= tl.load(norm_ptr + w_W * 8 + s, fits_W, other=0.0).to(tl.float32) + offset
                x_sums_W += x_W
                x_W *= 16.0 ** -(s if s < 5 else s - 3)
                sums_FW += x_W[None, :] * _nibble(packed_FW, magic, s)
                if ACTIVATION is not None:
                    up_sums_FW += x_W[None, :] * _nibble(up_packed_FW, magic, s)
            x_J = tl.sum(tl.reshape(x_sums_W, (BLOCK_D // GROUP, GROUP_WORDS)), 1)
            j_J = start // GROUP + tl.arange(0, BLOCK_D // GROUP)
            gate += _grouped(sums_FW, scale_ptr, zero_ptr, row_F, j_J, J, x_J, GROUP_WORDS)
            if ACTIVATION is not None:
                up += _grouped(up_sums_FW, up_scale_ptr, up_zero_ptr, row_F, j_J, J, x_J, GROUP_WORDS)
    else:
        squares_D = tl.zeros((BLOCK_D,), tl.float32)
        gate = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
        up = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
        for start in tl.range(0, D, BLOCK_D, num_stages=STAGES):
            d_D = start + tl.arange(0, BLOCK_D)
            fits_D = d_D < D
            w_FD = tl.load(weight_F1 + d_D[None, :], fits_D[None, :], other=0, eviction_policy="evict_first")
            x_D = tl.load(x_ptr + d_D, fits_D, other=0.0).to(tl.float32)
            if NORM != _PLAIN:
                squares_D += x_D * x_D
                x_D *= tl.load(norm_ptr + d_D, fits_D, other=0.0).to(tl.float32) + offset
            gate += x_D[None, :] * _wide(w_FD, KIND)
            if ACTIVATION is not None:
                w_FD = tl.load(up_F1 + d_D[None, :], fits_D[None, :], other=0, eviction_policy="evict_first")
                up += x_D[None, :] * _wide(w_FD, KIND)

    gate_F = tl.sum(gate, 1)
    up_F = tl.sum(up, 1)
    if KIND == _INT8:
        gate_F *= tl.load(scale_ptr + row_F).to(tl.float32)
        if ACTIVATION is not None:
            up_F *= tl.load(up_scale_ptr + row_F).to(tl.float32)
    if NORM != _PLAIN:
        factor = tl.rsqrt(tl.sum(squares_D, 0) / D + eps)
        gate_F *= factor
        up_F *= factor
    y_F = _finished(gate_F, up_F, f_F, 0, f_F < F, bias_ptr, residual_ptr, 0, ACTIVATION)
    tl.store(y_ptr + f_F, y_F.to(y_ptr.dtype.element_ty), f_F < F)


@triton.jit
def _dotted(w_FC, x_DN, low_CN, high_CN, acc_FN, scale_F, zero_F, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """`acc + w @ x` of one block of columns; of 4 bits a block is a group, and x comes as even and odd columns."""
    if KIND == _INT4:
        dtype: tl.constexpr = low_CN.dtype
        sums_FN = tl.dot(_narrow(w_FC & 15, zero_F[:, None], dtype), low_CN, input_precision="ieee")
        sums_FN = tl.dot(_narrow(w_FC >> 4, zero_F[:, None], dtype), high_CN, sums_FN, input_precision="ieee")
        acc_FN += sums_FN * scale_F[:, None]
    else:
        acc_FN = tl.dot(w_FC.to(x_DN.dtype), x_DN, acc_FN, input_precision="ieee")
    return acc_FN


@triton.jit
def _group(scale_ptr, zero_ptr, row_F, j, J, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales float32 and zero points uint8 of group j of each row. Loaded a group ahead, which hides that they wait."""
    scale_F = tl.full(row_F.shape, 0, tl.float32)
    zero_F = tl.full(row_F.shape, 8, tl.uint8)
    if KIND == _INT4:
        fits_F = row_F * 0 + j < J
        scale_F = tl.load(scale_ptr + row_F * J + j, fits_F, other=0.0).to(tl.float32)
        if zero_ptr is not None:
            zero_F = tl.load(zero_ptr + row_F * J + j, fits_F, other=8)
    return scale_F, zero_F


@triton.jit
def _rows_of_x(  # type: ignore[no-untyped-def]
    x_ptr, norm_ptr, stride_x, n_N, d_C, N, D, factor_N, squares_N, offset, NORM: tl.constexpr
):  # fmt: skip
    """x [columns, N] at columns d_C in its own dtype, normalised as far as it is here, and the sums of squares."""
    mask_CN = (d_C[:, None] < D) & (n_N[None, :] < N)
    x_CN = tl.load(x_ptr + n_N[None, :] * stride_x + d_C[:, None], mask_CN, other=0.0)
    if NORM != _PLAIN:
        y_CN = x_CN.to(tl.float32)
        if NORM == _AFTER:
            squares_N += tl.sum(y_CN * y_CN, 0)
        else:
            y_CN *= factor_N[None, :]
        y_CN *= tl.load(norm_ptr + d_C, d_C < D, other=0.0).to(tl.float32)[:, None] + offset
        x_CN = y_CN.to(x_CN.dtype)
    return x_CN, squares_N


@triton.jit
def tensor_core_kernel(  # type: ignore[no-untyped-def]
    x_ptr, norm_ptr, weight_ptr, scale_ptr, zero_ptr, up_ptr, up_scale_ptr, up_zero_ptr, bias_ptr, residual_ptr, y_ptr,
    stride_x, stride_w, stride_up, stride_residual, N, F, D, eps, offset, parts_ptr, span,
    KIND: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, EARLY: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [N, F] of x [N, D], N at most ROWS: the weight's rows are those of the tensor cores' tiles, x their columns.

    Where parts_ptr is given, program (i, j) leaves its sums over columns from `j * span` there instead:
    [parts, 1 or 2 weights, ROWS, F]. What a row comes to depends on neither N nor other rows.
    """
    f_F = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    row_F = tl.minimum(f_F, F - 1).to(tl.int64)
    n_N = tl.arange(0, ROWS)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, D)
    weight_F1 = weight_ptr + row_F[:, None] * stride_w
    up_F1 = weight_F1
    if ACTIVATION is not None:
        up_F1 = up_ptr + row_F[:, None] * stride_up
    if EARLY:
        itemsize: tl.constexpr = weight_ptr.dtype.element_ty.primitive_bitwidth // 8
        width: tl.constexpr = BLOCK_D // 2 if KIND == _INT4 else BLOCK_D
        first = begin // 2 if KIND == _INT4 else begin
        columns = (D // 2 if KIND == _INT4 else D) - first
        lines: tl.constexpr = 4 * width * itemsize // 128 if width * itemsize >= 32 else 1
        _ask_for_rows(weight_F1 + first, columns, itemsize, lines)
        if ACTIVATION is not None:
            _ask_for_rows(up_F1 + first, columns, itemsize, lines)
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()

    squares_N = tl.zeros((ROWS,), tl.float32)
    factor_N = squares_N
    if NORM == _BEFORE:
        for start in range(0, D, BLOCK_D):
            d_D = start + tl.arange(0, BLOCK_D)
            mask_DN = (d_D[:, None] < D) & (n_N[None, :] < N)
            x_DN = tl.load(x_ptr + n_N[None, :] * stride_x + d_D[:, None], mask_DN, other=0.0).to(tl.float32)
            squares_N += tl.sum(x_DN * x_DN, 0)
        factor_N = tl.rsqrt(squares_N / D + eps)

    gate_FN = tl.zeros((BLOCK_F, ROWS), tl.float32)
    up_FN = tl.zeros((BLOCK_F, ROWS), tl.float32)
    J = D // GROUP
    scale_F, zero_F = _group(scale_ptr, zero_ptr, row_F, begin // GROUP, J, KIND)
    up_scale_F, up_zero_F = scale_F, zero_F
    if ACTIVATION is not None:
        up_scale_F, up_zero_F = _group(up_scale_ptr, up_zero_ptr, row_F, begin // GROUP, J, KIND)
    for start in tl.range(begin, end, BLOCK_D, num_stages=STAGES):
        if KIND == _INT4:
            c_C = tl.arange(0, BLOCK_D // 2)
            low, squares_N = _rows_of_x(
                x_ptr, norm_ptr, stride_x, n_N, start + 2 * c_C, N, D, factor_N, squares_N, offset, NORM
            )
            high, squares_N = _rows_of_x(
                x_ptr, norm_ptr, stride_x, n_N, start + 2 * c_C + 1, N, D, factor_N, squares_N, offset, NORM
            )
            x = low
            w_C = start // 2 + c_C
            w_FC = tl.load(weight_F1 + w_C[None, :], eviction_policy="evict_first")
        else:
            d_D = start + tl.arange(0, BLOCK_D)
            x, squares_N = _rows_of_x(x_ptr, norm_ptr, stride_x, n_N, d_D, N, D, factor_N, squares_N, offset, NORM)
            low = x
            high = x
            w_C = d_D
            w_FC = tl.load(weight_F1 + w_C[None, :], w_C[None, :] < D, other=0, eviction_policy="evict_first")
        j = start // GROUP + 1
        next_scale_F, next_zero_F = _group(scale_ptr, zero_ptr, row_F, j, J, KIND)
        gate_FN = _dotted(w_FC, x, low, high, gate_FN, scale_F, zero_F, KIND)
        scale_F, zero_F = next_scale_F, next_zero_F
        if ACTIVATION is not None:
            limit = D // 2 if KIND == _INT4 else D
            w_FC = tl.load(up_F1 + w_C[None, :], w_C[None, :] < limit, other=0, eviction_policy="evict_first")
            next_scale_F, next_zero_F = _group(up_scale_ptr, up_zero_ptr, row_F, j, J, KIND)
            up_FN = _dotted(w_FC, x, low, high, up_FN, up_scale_F, up_zero_F, KIND)
            up_scale_F, up_zero_F = next_scale_F, next_zero_F

    if KIND == _INT8:
        gate_FN *= tl.load(scale_ptr + row_F).to(tl.float32)[:, None]
        if ACTIVATION is not None:
            up_FN *= tl.load(up_scale_ptr + row_F).to(tl.float32)[:, None]
    mask_FN = (f_F[:, None] < F) & (n_N[None, :] < N)
    if parts_ptr is not None:
        WEIGHTS: tl.constexpr = 1 if ACTIVATION is None else 2
        part = tl.program_id(1).to(tl.int64) * WEIGHTS * ROWS * F
        tl.store(parts_ptr + part + n_N[None, :] * F + f_F[:, None], gate_FN, mask_FN)
        if ACTIVATION is not None:
            tl.store(parts_ptr + part + (ROWS + n_N[None, :]) * F + f_F[:, None], up_FN, mask_FN)
    else:
        if NORM == _AFTER:
            factor_N = tl.rsqrt(squares_N / D + eps)
            gate_FN *= factor_N[None, :]
            up_FN *= factor_N[None, :]
        y_FN = _finished(
            gate_FN, up_FN, f_F[:, None], n_N[None, :], mask_FN, bias_ptr, residual_ptr, stride_residual, ACTIVATION
        )
        tl.store(y_ptr + n_N[None, :] * F + f_F[:, None], y_FN.to(y_ptr.dtype.element_ty), mask_FN)


@triton.jit
def finish_kernel(  # type: ignore[no-untyped-def]
    parts_ptr, bias_ptr, residual_ptr, y_ptr, stride_residual, F,
    PARTS: tl.constexpr, ACTIVATION: tl.constexpr, EARLY: tl.constexpr, ROWS: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """y [N, F] from sums over parts of the columns, added in one order; program (i, n) does row n."""
    f_F = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    n = tl.program_id(1)
    mask_F = f_F < F
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    WEIGHTS: tl.constexpr = 1 if ACTIVATION is None else 2
    gate_F = tl.zeros((BLOCK_F,), tl.float32)
    up_F = tl.zeros((BLOCK_F,), tl.float32)
    for part in tl.static_range(PARTS):
        place_F = parts_ptr + (part * WEIGHTS * ROWS + n).to(tl.int64) * F + f_F
        gate_F += tl.load(place_F, mask_F, other=0.0)
        if ACTIVATION is not None:
            up_F += tl.load(place_F + ROWS * F, mask_F, other=0.0)
    y_F = _finished(gate_F, up_F, f_F, n, mask_F, bias_ptr, residual_ptr, stride_residual, ACTIVATION)
    tl.store(y_ptr + n * F + f_F, y_F.to(y_ptr.dtype.element_ty), mask_F)
