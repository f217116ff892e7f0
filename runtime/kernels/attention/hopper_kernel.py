# mypy: allow-untyped-defs
"""Attention forward for Hopper: the template of `forward.py` with its pipeline laid out by hand, in Gluon.

One warp copies keys and values into shared memory; two groups of four warps take half of the queries each. A group
has the scores of one tile multiplied, then at once the probabilities of the last with their values, and exponentiates
the one while the other still runs (arXiv:2407.08608, section 3.2). Groups meet nobody but the copying warp, so that
one multiplies while the other exponentiates.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# What Triton 3.6 calls otherwise than later ones: a barrier of a group's threads, and the copying engine's copy.
meet = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
LOG2E: gl.constexpr = gl.constexpr(1.4426950408889634)


@gluon.jit
def place(program, tiles, heads, together):
    """The tile and the head of a program: see `forward.py`."""
    group = program // (together * tiles)
    rest = program % (together * tiles)
    members = gl.minimum(together, heads - group * together)
    return rest // members, group * together + rest % members


@gluon.jit
def tile_at(t, high, partial, partial_count, whole, LISTED: gl.constexpr):
    """The t-th tile of keys that is gone through: from the last to the first, or those of the lists."""
    if LISTED:
        if t < partial_count:
            tile = gl.load(partial + t)
        else:
            tile = gl.load(whole + (t - partial_count))
    else:
        tile = high - 1 - t
    return tile


@gluon.jit
def copy_tiles(k, k2, v, q, q2, q1_tiles, q2_tiles, k1_tiles, k2_tiles, v_tiles, q_full, k_full, k_empty, v_full,
               v_empty, b, h, g, first, count, high, partial, partial_count, whole,
               LISTED: gl.constexpr, E1: gl.constexpr, E2: gl.constexpr, BLOCK_V: gl.constexpr, ROWS: gl.constexpr,
               BLOCK_N: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """What the copying warp does: queries once, then keys and values as places fall empty."""
    mbarrier.expect(q_full, 2 * ROWS * (E1 + E2) * 2)
    for i in gl.static_range(2):
        load_tile(q, [b, h, first + i * ROWS, 0], q_full, q1_tiles.index(i))
        if E2 > 0:
            load_tile(q2, [b, h, first + i * ROWS, E1], q_full, q2_tiles.index(i))
    for t in range(count):
        stage = t % STAGES
        phase = (t // STAGES) & 1
        row = tile_at(t, high, partial, partial_count, whole, LISTED) * BLOCK_N
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), BLOCK_N * (E1 + E2) * 2)
        load_tile(k, [b, g, row, 0], k_full.index(stage), k1_tiles.index(stage))
        if E2 > 0:
            load_tile(k2, [b, g, row, E1], k_full.index(stage), k2_tiles.index(stage))
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), BLOCK_N * BLOCK_V * 2)
        load_tile(v, [b, g, row, 0], v_full.index(stage), v_tiles.index(stage))


@gluon.jit
def matrix(tile):
    """A tile [1, 1, rows, columns] as a matrix."""
    return tile.reshape([tile.shape[2], tile.shape[3]])


@gluon.jit
def start_scores(q1, q2, k1_tiles, k2_tiles, stage, ROWS: gl.constexpr, BLOCK_N: gl.constexpr, E2: gl.constexpr,
                 layout: gl.constexpr):  # fmt: skip
    s_MN = gl.zeros([ROWS, BLOCK_N], gl.float32, layout)
    s_MN = warpgroup_mma(q1, matrix(k1_tiles.index(stage)).permute([1, 0]), s_MN, use_acc=False, is_async=True)
    if E2 > 0:
        s_MN = warpgroup_mma(q2, matrix(k2_tiles.index(stage)).permute([1, 0]), s_MN, is_async=True)
    return s_MN


@gluon.jit
def soften(s_MN, m, total, row, query_M1, query_document, documents, b, keys, scale, SOFTCAP: gl.constexpr,
           ALLOWS: gl.constexpr, DOCUMENTS: gl.constexpr, MASKED: gl.constexpr, BLOCK_N: gl.constexpr,
           layout: gl.constexpr):  # fmt: skip
    """Probabilities of a tile, by how much the sums before it shrink, and the new state."""
    c = scale * LOG2E
    if SOFTCAP > 0:
        bent = 1.0 - 2.0 / (gl.exp2(s_MN * (scale * (2.0 * LOG2E / SOFTCAP))) + 1.0)
        s_MN = bent * (SOFTCAP * LOG2E)
        c = 1.0
    if MASKED:
        key_1N = (row + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout)))[None, :]
        seen = key_1N < keys
        if ALLOWS is not None:
            key_document = key_1N * 0
            if DOCUMENTS:
                key_document = gl.load(documents + b.to(gl.int64) * keys + key_1N, key_1N < keys, other=-1)
            seen = seen & ALLOWS(query_M1, key_1N, query_document, key_document)
        s_MN = gl.where(seen, s_MN, float("-inf"))
    most = gl.maximum(m, gl.max(s_MN, 1) * c)
    p_MN = gl.exp2(s_MN * c - most[:, None])
    shrink = gl.exp2(m - most)
    total = total * shrink + gl.sum(p_MN, 1)
    return p_MN, shrink, most, total


@gluon.jit
def some_tiles(acc, p_MN, m, total, begin, end, q1, q2, k1_tiles, k2_tiles, v_tiles, k_full, k_empty, v_full, v_empty,
               high, partial, partial_count, whole, query_M1, query_document, documents, b, keys, scale,
               SOFTCAP: gl.constexpr, ALLOWS: gl.constexpr, DOCUMENTS: gl.constexpr, LISTED: gl.constexpr,
               MASKED: gl.constexpr, ROWS: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_V: gl.constexpr,
               E2: gl.constexpr, STAGES: gl.constexpr, layout: gl.constexpr, o_layout: gl.constexpr):  # fmt: skip
    """Goes through tiles, each time with the values of the tile before."""
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)
    for t in range(begin, end):
        stage, phase = t % STAGES, (t // STAGES) & 1
        before, before_phase = (t - 1) % STAGES, ((t - 1) // STAGES) & 1
        mbarrier.wait(k_full.index(stage), phase)
        s_MN = start_scores(q1, q2, k1_tiles, k2_tiles, stage, ROWS, BLOCK_N, E2, layout)
        mbarrier.wait(v_full.index(before), before_phase)
        acc = warpgroup_mma(p_MN, matrix(v_tiles.index(before)), acc, is_async=True)
        s_MN = warpgroup_mma_wait(1, deps=[s_MN])
        meet()
        mbarrier.arrive(k_empty.index(stage))
        row = tile_at(t, high, partial, partial_count, whole, LISTED) * BLOCK_N
        next_MN, shrink, m, total = soften(s_MN, m, total, row, query_M1, query_document, documents, b, keys, scale,
                                           SOFTCAP, ALLOWS, DOCUMENTS, MASKED, BLOCK_N, layout)  # fmt: skip
        acc, p_MN = warpgroup_mma_wait(0, deps=[acc, p_MN])
        meet()
        mbarrier.arrive(v_empty.index(before))
        acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, o_layout))[:, None]
        p_MN = gl.convert_layout(next_MN.to(v_tiles.dtype), p_layout)
    return acc, p_MN, m, total


@gluon.jit
def attend_rows(q1_tiles, q2_tiles, k1_tiles, k2_tiles, v_tiles, q_full, k_full, k_empty, v_full, v_empty,
                o, lse, sinks, documents, b, h, first, ob, oh, os, queries, keys, scale,
                count, masked_count, whole_count, high, partial, partial_count, whole, GROUP: gl.constexpr,
                SOFTCAP: gl.constexpr, ALLOWS: gl.constexpr, SINKS: gl.constexpr, DOCUMENTS: gl.constexpr,
                LISTED: gl.constexpr, HEADS: gl.constexpr, V: gl.constexpr, E2: gl.constexpr, ROWS: gl.constexpr,
                BLOCK_N: gl.constexpr, BLOCK_V: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """What one group of warps does: all keys for its queries."""
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    o_layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_V, 16]
    )
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)
    rows: gl.constexpr = gl.SliceLayout(1, layout)
    first += GROUP * ROWS
    row_M = first + gl.arange(0, ROWS, rows)
    query_M1 = (row_M + (keys - queries))[:, None]
    query_document = query_M1 * 0
    if DOCUMENTS:
        query_document = gl.load(documents + b.to(gl.int64) * keys + query_M1, query_M1 < keys, other=-1)
    if SINKS:
        m = gl.full([ROWS], 0.0, gl.float32, rows) + gl.load(sinks + h).to(gl.float32) * LOG2E
        total = gl.full([ROWS], 1.0, gl.float32, rows)
    else:
        m = gl.full([ROWS], -1e38, gl.float32, rows)
        total = gl.full([ROWS], 0.0, gl.float32, rows)
    acc = gl.zeros([ROWS, BLOCK_V], gl.float32, o_layout)
    q1 = matrix(q1_tiles.index(GROUP))
    q2 = matrix(q2_tiles.index(GROUP))
    mbarrier.wait(q_full, 0)
    mbarrier.wait(k_full.index(0), 0)
    s_MN = start_scores(q1, q2, k1_tiles, k2_tiles, 0, ROWS, BLOCK_N, E2, layout)
    s_MN = warpgroup_mma_wait(0, deps=[s_MN])
    meet()
    mbarrier.arrive(k_empty.index(0))
    row = tile_at(0, high, partial, partial_count, whole, LISTED) * BLOCK_N
    next_MN, _, m, total = soften(s_MN, m, total, row, query_M1, query_document, documents, b, keys, scale,
                                  SOFTCAP, ALLOWS, DOCUMENTS, True, BLOCK_N, layout)  # fmt: skip
    p_MN = gl.convert_layout(next_MN.to(v_tiles.dtype), p_layout)
    acc, p_MN, m, total = some_tiles(
        acc, p_MN, m, total, 1, masked_count, q1, q2, k1_tiles, k2_tiles, v_tiles, k_full, k_empty, v_full, v_empty,
        high, partial, partial_count, whole, query_M1, query_document, documents, b, keys, scale, SOFTCAP, ALLOWS,
        DOCUMENTS, LISTED, True, ROWS, BLOCK_N, BLOCK_V, E2, STAGES, layout, o_layout)  # fmt: skip
    acc, p_MN, m, total = some_tiles(
        acc, p_MN, m, total, gl.maximum(masked_count, 1), whole_count, q1, q2, k1_tiles, k2_tiles, v_tiles, k_full,
        k_empty, v_full, v_empty, high, partial, partial_count, whole, query_M1, query_document, documents, b, keys,
        scale, SOFTCAP, ALLOWS, DOCUMENTS, LISTED, False, ROWS, BLOCK_N, BLOCK_V, E2, STAGES, layout,
        o_layout)  # fmt: skip
    if ALLOWS is not None:
        acc, p_MN, m, total = some_tiles(
            acc, p_MN, m, total, gl.maximum(whole_count, 1), count, q1, q2, k1_tiles, k2_tiles, v_tiles, k_full,
            k_empty, v_full, v_empty, high, partial, partial_count, whole, query_M1, query_document, documents, b,
            keys, scale, SOFTCAP, ALLOWS, DOCUMENTS, LISTED, True, ROWS, BLOCK_N, BLOCK_V, E2, STAGES, layout,
            o_layout)  # fmt: skip
    last = (count - 1) % STAGES
    mbarrier.wait(v_full.index(last), ((count - 1) // STAGES) & 1)
    acc = warpgroup_mma(p_MN, matrix(v_tiles.index(last)), acc, is_async=True)
    acc, p_MN = warpgroup_mma_wait(0, deps=[acc, p_MN])
    seen = total > 0
    share = gl.where(seen, 1.0 / gl.where(seen, total, 1.0), 0.0)
    acc = acc * gl.convert_layout(share, gl.SliceLayout(1, o_layout))[:, None]
    at = (b.to(gl.int64) * HEADS + h) * queries + row_M
    gl.store(lse + at, gl.where(seen, (m + gl.log2(gl.where(seen, total, 1.0))) / LOG2E, float("inf")),
             row_M < queries)  # fmt: skip
    lines: gl.constexpr = gl.BlockedLayout(
        [1, 8], [256 // BLOCK_V if BLOCK_V <= 256 else 1, BLOCK_V // 8], [4, 1], [1, 0]
    )
    made = gl.convert_layout(acc.to(v_tiles.dtype), lines)
    o_row = (first + gl.arange(0, ROWS, gl.SliceLayout(1, lines)))[:, None]
    column = gl.arange(0, BLOCK_V, gl.SliceLayout(0, lines))[None, :]
    where = o + b.to(gl.int64) * ob + h.to(gl.int64) * oh + o_row.to(gl.int64) * os + column
    gl.store(where, made, (o_row < queries) & (column < V))


@gluon.jit
def attention_forward_hopper(
    q, q2, k, k2, v, o, lse, sinks, documents, whole, whole_count, partial, partial_count, list_b,
    ob, oh, os, queries, keys, scale, together,
    ALLOWS: gl.constexpr, BOUNDS: gl.constexpr, SOFTCAP: gl.constexpr, SINKS: gl.constexpr,
    DOCUMENTS: gl.constexpr, LISTED: gl.constexpr, HEADS: gl.constexpr, GROUPS: gl.constexpr,
    E1: gl.constexpr, E2: gl.constexpr, V: gl.constexpr, BLOCK_V: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: `attention_forward`."""
    tiles = (queries + BLOCK_M - 1) // BLOCK_M
    tile, head = place(gl.program_id(0), tiles, gl.num_programs(0) // tiles, together)
    tile = tiles - 1 - tile
    b, h = head // HEADS, head % HEADS
    g = h // (HEADS // GROUPS)
    ROWS: gl.constexpr = BLOCK_M // 2
    first = tile * BLOCK_M
    if LISTED:
        at = b * list_b + tile
        width = (keys + BLOCK_N - 1) // BLOCK_N
        partial += at * width
        whole += at * width
        whole_tiles = gl.load(whole_count + at)
        partial_tiles = gl.maximum(gl.load(partial_count + at), 1 - whole_tiles)  # one at least, as below
        masked_count = partial_tiles
        unmasked_count = partial_tiles + whole_tiles
        count = unmasked_count
        high = 0
    else:
        position = first + keys - queries
        if BOUNDS is not None:
            some_low, some_high, all_low, all_high = BOUNDS(position, position + BLOCK_M - 1)
        else:
            some_low, some_high, all_low, all_high = 0, 1 << 30, 0, 1 << 30
        low = gl.maximum(some_low, 0) // BLOCK_N
        high = (gl.minimum(some_high, keys) + BLOCK_N - 1) // BLOCK_N
        high = gl.maximum(high, low + 1)  # one at least, of which nothing may be seen
        whole_low = gl.minimum(gl.maximum((gl.maximum(all_low, 0) + BLOCK_N - 1) // BLOCK_N, low), high)
        whole_high = gl.maximum(whole_low, gl.minimum(gl.minimum(all_high, keys) // BLOCK_N, high))
        masked_count = high - whole_high
        unmasked_count = high - whole_low
        count = high - low
        partial_tiles = 0
    dtype: gl.constexpr = q.dtype
    q1_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, ROWS, E1], q.layout)
    q2_tiles = q1_tiles
    k1_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, E1], k.layout)
    k2_tiles = k1_tiles
    if E2 > 0:
        q2_tiles = gl.allocate_shared_memory(dtype, [2, 1, 1, ROWS, E2], q2.layout)
        k2_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, E2], k2.layout)
    v_tiles = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, BLOCK_N, BLOCK_V], v.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (attend_rows, (q1_tiles, q2_tiles, k1_tiles, k2_tiles, v_tiles, q_full, k_full, k_empty, v_full, v_empty,
                           o, lse, sinks, documents, b, h, first, ob, oh, os, queries, keys, scale,
                           count, masked_count, unmasked_count, high, partial, partial_tiles, whole, 0, SOFTCAP,
                           ALLOWS, SINKS, DOCUMENTS, LISTED, HEADS, V, E2, ROWS, BLOCK_N, BLOCK_V, STAGES)),
            (attend_rows, (q1_tiles, q2_tiles, k1_tiles, k2_tiles, v_tiles, q_full, k_full, k_empty, v_full, v_empty,
                           o, lse, sinks, documents, b, h, first, ob, oh, os, queries, keys, scale,
                           count, masked_count, unmasked_count, high, partial, partial_tiles, whole, 1, SOFTCAP,
                           ALLOWS, SINKS, DOCUMENTS, LISTED, HEADS, V, E2, ROWS, BLOCK_N, BLOCK_V, STAGES)),
            (copy_tiles, (k, k2, v, q, q2, q1_tiles, q2_tiles, k1_tiles, k2_tiles, v_tiles, q_full, k_full, k_empty,
                          v_full, v_empty, b, h, g, first, count, high, partial, partial_tiles, whole, LISTED, E1, E2,
                          BLOCK_V, ROWS, BLOCK_N, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
