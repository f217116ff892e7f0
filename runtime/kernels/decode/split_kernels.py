"""Attention of a few queries over many keys: partial sums over pieces of the keys, and what adds them up.

The keys of a sequence are cut at fixed positions: into chunks of CHUNK keys, and those into pieces of PIECE. A piece is
summed on its own; the pieces of a chunk are folded one after the other, and then the chunks. A program takes a piece or
a chunk and does the same arithmetic in either case, so that how work is spread over a GPU does not change a bit.

Axes: N keys of a tile, R rows of a tile, which are the heads of a group for each query, E key width, F the key's second
part, V value width, C chunks. Scores are held as [N, R]: keys are many and rows few, and Hopper multiplies matrices of
64 rows or more. Probabilities and log-sum-exps are in base 2 within.
"""

from __future__ import annotations

from ..language import tl, triton

CHUNKS = 16  # added up at a time; other values give other last bits


@triton.jit
def split_kernel(  # type: ignore[no-untyped-def]
    q_ptr, q2_ptr, k_ptr, k2_ptr, v_ptr, table_ptr, lengths_ptr, acc_ptr, top_ptr, sum_ptr,
    factor, cap, unit,
    q_batch, q_query, q_head, q2_batch, q2_query, q2_head,
    k_block, k_head, k2_block, k2_head, v_block, v_head, table_row,
    K_ROW: tl.constexpr, K2_ROW: tl.constexpr, V_ROW: tl.constexpr,
    QUERIES: tl.constexpr, GROUP: tl.constexpr, E: tl.constexpr, F: tl.constexpr, V: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_V: tl.constexpr, SHARED: tl.constexpr, PAGE: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Partial sums of one unit of keys, a piece or a chunk, for one block of rows: acc [B, units, S * H, V], and of
    each row the largest score and the sum of exponentials. Units that a sequence does not have are left unwritten.

    SHARED: the value is the key's first part. PAGE: keys of a page, 0 where the cache is contiguous. WINDOW: 0 is none.
    """
    ROW_BLOCKS: tl.constexpr = (QUERIES * GROUP + BLOCK_R - 1) // BLOCK_R
    b, g = tl.program_id(2).to(tl.int64), tl.program_id(0) // ROW_BLOCKS
    length = tl.load(lengths_ptr + b)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - QUERIES - WINDOW + 1, 0)
    begin = (first // unit + tl.program_id(1)) * unit
    stop = tl.minimum(begin + unit, length)
    if begin >= stop:
        return

    row_R = tl.program_id(0) % ROW_BLOCKS * BLOCK_R + tl.arange(0, BLOCK_R)
    query_R, head_R = row_R // GROUP, g * GROUP + row_R % GROUP
    asked_R = row_R < QUERIES * GROUP
    last_R = length - QUERIES + query_R
    n_N = tl.arange(0, BLOCK_N)
    q_ER = _rows(q_ptr + b * q_batch, query_R * q_query + head_R * q_head, asked_R, E, BLOCK_E)
    if F > 0:
        q2_FR = _rows(q2_ptr + b * q2_batch, query_R * q2_query + head_R * q2_head, asked_R, F, BLOCK_F)

    top_R = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    sum_R = tl.zeros((BLOCK_R,), tl.float32)
    acc_VR = tl.zeros((BLOCK_V, BLOCK_R), tl.float32)
    all_top_R, all_sum_R, all_acc_VR = top_R, sum_R, acc_VR
    from_key = tl.maximum(begin, first) // BLOCK_N * BLOCK_N
    page = _page(table_ptr + b * table_row, from_key, stop, PAGE, BLOCK_N)
    for start in range(from_key, stop, BLOCK_N):
        position_N = start + n_N
        there_N = position_N < stop
        # The first row of a tile and the rest relative to it, in 32 bits, unless a tile takes in several pages.
        if PAGE == 0:
            block, place, rest_N = b, b * 0 + start, n_N
        else:
            block = page.to(tl.int64)
            # Asked for one tile ahead: a load whose address comes from another load is pipelined at half the depth.
            page = _page(table_ptr + b * table_row, start + BLOCK_N, stop, PAGE, BLOCK_N)
            if PAGE >= BLOCK_N:
                place, rest_N = start % PAGE, n_N
            else:
                place, rest_N = position_N % PAGE, n_N * 0
        k_NE = _keys(k_ptr + g * k_head, block * k_block + place * K_ROW, rest_N * K_ROW, there_N, E, BLOCK_E)
        k_NE = k_NE.to(q_ER.dtype)
        score_NR = tl.dot(k_NE, q_ER, input_precision="ieee")
        if F > 0:
            k2_NF = _keys(k2_ptr + g * k2_head, block * k2_block + place * K2_ROW, rest_N * K2_ROW, there_N, F, BLOCK_F)
            score_NR = tl.dot(k2_NF.to(q_ER.dtype), q2_FR, score_NR, input_precision="ieee")
        if SHARED:
            v_NV = k_NE
        else:
            v_NV = _keys(v_ptr + g * v_head, block * v_block + place * V_ROW, rest_N * V_ROW, there_N, V, BLOCK_V)
            v_NV = v_NV.to(q_ER.dtype)

        score_NR = score_NR * factor
        if CAPPED:
            score_NR = cap * (1.0 - 2.0 / (tl.exp2(score_NR) + 1.0))  # tanh, of which factor holds 2 and the log
        seen_NR = position_N[:, None] <= last_R[None, :]
        if WINDOW > 0:
            seen_NR = seen_NR & (position_N[:, None] > last_R[None, :] - WINDOW)
        score_NR = tl.where(seen_NR & there_N[:, None], score_NR, float("-inf"))
        new_R = tl.maximum(top_R, tl.max(score_NR, 0))
        base_R = tl.where(new_R == float("-inf"), 0.0, new_R)
        p_NR = tl.exp2(score_NR - base_R[None, :])
        shrink_R = tl.exp2(top_R - base_R)
        sum_R = tl.fma(sum_R, shrink_R, tl.sum(p_NR, 0))
        acc_VR = tl.dot(tl.trans(v_NV), p_NR.to(q_ER.dtype), acc_VR * shrink_R[None, :], input_precision="ieee")
        top_R = new_R
        if CHUNK > PIECE:  # noqa: SIM102 (known when it is compiled)
            if (start + BLOCK_N) % PIECE == 0:
                all_top_R, all_sum_R, all_acc_VR = _fold(all_top_R, all_sum_R, all_acc_VR, top_R, sum_R, acc_VR)
                top_R = tl.full((BLOCK_R,), float("-inf"), tl.float32)
                sum_R = tl.zeros((BLOCK_R,), tl.float32)
                acc_VR = tl.zeros((BLOCK_V, BLOCK_R), tl.float32)
    if CHUNK > PIECE:  # the last piece may end early; if not, this adds nothing
        top_R, sum_R, acc_VR = _fold(all_top_R, all_sum_R, all_acc_VR, top_R, sum_R, acc_VR)

    groups = tl.num_programs(0) // ROW_BLOCKS
    out_R = ((b * tl.num_programs(1) + tl.program_id(1)) * QUERIES + query_R) * groups * GROUP + head_R
    value_V = tl.arange(0, BLOCK_V)
    tl.store(top_ptr + out_R, top_R, asked_R)
    tl.store(sum_ptr + out_R, sum_R, asked_R)
    tl.store(
        acc_ptr + out_R[:, None] * V + value_V[None, :],
        tl.trans(acc_VR),
        asked_R[:, None] & (value_V < V)[None, :],
    )


@triton.jit
def combine_kernel(  # type: ignore[no-untyped-def]
    acc_ptr, top_ptr, sum_ptr, sinks_ptr, lengths_ptr, o_ptr, lse_ptr, v_scale, units,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr, WINDOW: tl.constexpr,
    SINKS: tl.constexpr, CHUNK: tl.constexpr, PIECES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """What the partial sums of one row add up to: o [B, S, H, V], a block of its columns, and lse [B, S, H].

    PIECES: units that a chunk is in, 1 where programs took whole chunks.
    """
    UNIT: tl.constexpr = CHUNK // PIECES
    row = tl.program_id(0).to(tl.int64)
    b, in_batch = row // (QUERIES * HEADS), row % (QUERIES * HEADS)
    length = tl.load(lengths_ptr + b)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(length - QUERIES - WINDOW + 1, 0)
    value_V = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc_V = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(first // CHUNK, (length + CHUNK - 1) // CHUNK, CHUNKS):
        top_C = tl.full((CHUNKS,), float("-inf"), tl.float32)
        sum_C = tl.zeros((CHUNKS,), tl.float32)
        acc_VC = tl.zeros((BLOCK_V, CHUNKS), tl.float32)
        for piece in tl.static_range(PIECES):
            unit_C = (start + tl.arange(0, CHUNKS)) * PIECES + piece
            place_C = unit_C - first // UNIT
            there_C = (unit_C * UNIT < length) & (place_C >= 0) & (place_C < units)
            from_C = (b * units + place_C) * QUERIES * HEADS + in_batch
            top2_C = tl.load(top_ptr + from_C, there_C, other=float("-inf"))
            sum2_C = tl.load(sum_ptr + from_C, there_C, other=0.0)
            there_VC = there_C[None, :] & (value_V < V)[:, None]
            acc2_VC = tl.load(acc_ptr + from_C[None, :] * V + value_V[:, None], there_VC, other=0.0)
            top_C, sum_C, acc_VC = _fold(top_C, sum_C, acc_VC, top2_C, sum2_C, acc2_VC)
        new = tl.maximum(top, tl.max(top_C, 0, keep_dims=True))
        base = tl.where(new == float("-inf"), 0.0, new)
        weight_C, shrink = tl.exp2(top_C - base), tl.exp2(top - base)
        total = tl.fma(total, shrink, tl.sum(weight_C * sum_C, 0, keep_dims=True))
        acc_V = tl.fma(acc_V, tl.broadcast_to(shrink, (BLOCK_V,)), tl.sum(weight_C[None, :] * acc_VC, 1))
        top = new
    if SINKS:
        sink = tl.load(sinks_ptr + in_batch % HEADS).to(tl.float32) * 1.4426950408889634
        new = tl.maximum(top, sink)
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.exp2(sink - new)
        acc_V = acc_V * shrink
        top = new
    total = tl.where(total == 0.0, 1.0, total)  # of a row that sees no key: it is zero, and its logarithm -inf
    o_V = acc_V * (v_scale / total)
    tl.store(o_ptr + row * V + value_V, o_V.to(o_ptr.dtype.element_ty), value_V < V)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + row + tl.arange(0, 1), (top + tl.log2(total)) * 0.6931471805599453)


@triton.jit
def _fold(top_R, sum_R, acc_VR, top2_R, sum2_R, acc2_VR):  # type: ignore[no-untyped-def]
    """Two partial sums as one, exact where one is empty. It says fma, so that no compiler may choose to or not."""
    new_R = tl.maximum(top_R, top2_R)
    base_R = tl.where(new_R == float("-inf"), 0.0, new_R)
    a_R, a2_R = tl.exp2(top_R - base_R), tl.exp2(top2_R - base_R)
    acc_VR = tl.fma(acc_VR, tl.broadcast_to(a_R[None, :], acc_VR.shape), acc2_VR * a2_R[None, :])
    return new_R, tl.fma(sum_R, a_R, sum2_R * a2_R), acc_VR


@triton.jit
def _rows(q_ptr, offset_R, asked_R, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of queries, [BLOCK, R], zero beyond those asked and beyond WIDTH."""
    column_E = tl.arange(0, BLOCK)
    there = asked_R[:, None] & (column_E < WIDTH)[None, :]
    return tl.trans(tl.load(q_ptr + offset_R[:, None] + column_E[None, :], there, other=0.0))


@triton.jit
def _page(row_ptr, start, stop, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The page of a tile from `start` on, or of each of its keys; that of the last key where there are no more."""
    page = start
    if PAGE > 0:
        position = start
        if PAGE < BLOCK_N:
            position = start + tl.arange(0, BLOCK_N)
        page = tl.load(row_ptr + tl.minimum(position, stop - 1) // PAGE)
    return page


@triton.jit
def _keys(ptr, origin, offset_N, there_N, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of keys or values, [N, BLOCK], zero where there are none and beyond WIDTH."""
    column_E = tl.arange(0, BLOCK)
    there = there_N[:, None]
    if WIDTH < BLOCK:
        there = there & (column_E < WIDTH)[None, :]
    return tl.load((ptr + origin + offset_N)[:, None] + column_E[None, :], there, other=0.0)
