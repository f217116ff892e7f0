"""Attention, forward and backward: the templates that a model's masks are put into.

B batch, H heads, G key heads, S queries, T keys, E width of queries and keys, V width of values. A width that is no
power of two is read in two parts, E1 + E2: 192 is 128 + 64. M and N count the queries and keys of a tile. Scores are
powers of two: `c` is the scale times log2(e). Queries are the last S of T positions.

A mask comes as functions that the compiler writes: ALLOWS(query, key, query_document, key_document), and BOUNDS, which
gives for a range of positions the range of the others that some of them see, and that all of them see. A mask without
such ranges comes with lists of tiles instead: those that all see, and those that some do.

The recurrence is that of arXiv:2307.08691, section 3.1; a sink is a score whose value is zero (arXiv:2508.10925).
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from ..language import tl, triton

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
ENDLESS: tl.constexpr = tl.constexpr(1 << 30)  # where a range has no end


@triton.jit
def place(program, tiles, heads, together):
    """The tile and the head of a program: `together` heads at a time, whose keys fit into the cache, and of those the
    tiles of all heads one after another, so that where causal ones grow shorter no long one comes last."""
    group = program // (together * tiles)
    rest = program % (together * tiles)
    members = tl.minimum(together, heads - group * together)
    return rest // members, group * together + rest % members


@triton.jit
def load_tile(x, b, h, first, length, stride_b, stride_h, stride_s, START: tl.constexpr, WIDTH: tl.constexpr,
              BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Rows from `first` on of one head, columns from START on, zero behind `length` and WIDTH: [BLOCK, BLOCK_E]."""
    if TMA:
        loaded = x.load([b, h, first, START]).reshape(BLOCK, BLOCK_E)
    else:
        row = first + tl.arange(0, BLOCK)[:, None]
        column = START + tl.arange(0, BLOCK_E)[None, :]
        at = (
            x + tl.cast(b, tl.int64) * stride_b + tl.cast(h, tl.int64) * stride_h + row.to(tl.int64) * stride_s + column
        )
        loaded = tl.load(at, (row < length) & (column < WIDTH), other=0.0)
    return loaded


@triton.jit
def store_tile(x, value, b, h, first, length, stride_b, stride_h, stride_s, START: tl.constexpr, WIDTH: tl.constexpr,
               BLOCK: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """Writes rows from `first` on of one head, columns from START on, as far as there are any."""
    row = first + tl.arange(0, BLOCK)[:, None]
    column = START + tl.arange(0, BLOCK_E)[None, :]
    at = x + tl.cast(b, tl.int64) * stride_b + tl.cast(h, tl.int64) * stride_h + row.to(tl.int64) * stride_s + column
    tl.store(at, value.to(x.dtype.element_ty), (row < length) & (column < WIDTH))


@triton.jit
def capped(s, scale, SOFTCAP: tl.constexpr):
    """tanh(scale * s / SOFTCAP)."""
    return 1.0 - 2.0 / (tl.exp2(s * (scale * (2.0 * LOG2E / SOFTCAP))) + 1.0)


@triton.jit
def document(documents, b, position, length, DOCUMENTS: tl.constexpr):
    """The documents of positions; where there are none, all are of one."""
    if DOCUMENTS:
        found = tl.load(documents + tl.cast(b, tl.int64) * length + position, position < length, other=-1)
    else:
        found = position * 0
    return found


@triton.jit
def kept(seed, bh, query, key, keys, DROPOUT: tl.constexpr):
    """1 / (1 - p) where a probability is kept, else 0. It depends on the place alone: backward draws the same."""
    drawn = tl.rand(seed + bh * 1_000_003, query * keys + key)
    return tl.where(drawn >= DROPOUT, 1.0 / (1.0 - DROPOUT), 0.0)


@triton.jit
def forward_tiles(acc, total, m, q1, q2, k, k2, v, documents, query_M1, query_document, seed, tiles, low, high, b, h, g,
                  keys, scale, kb, kh, ks, vb, vh, vs,
                  ALLOWS: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, DOCUMENTS: tl.constexpr,
                  MASKED: tl.constexpr, LISTED: tl.constexpr, HEADS: tl.constexpr,
                  E: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
                  BLOCK_N: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Goes through tiles of keys, `low` up to `high`; MASKED: some query does not see some key of them."""
    c = 1.0 if SOFTCAP > 0 else scale * LOG2E
    for t in tl.range(low, high, num_stages=STAGES):
        first = tl.load(tiles + t) * BLOCK_N if LISTED else t * BLOCK_N
        k1_NE = load_tile(k, b, g, first, keys, kb, kh, ks, 0, E, BLOCK_N, E1, TMA)
        s_MN = tl.dot(q1, k1_NE.T, input_precision="ieee")
        if E2 > 0:
            k2_NE = load_tile(k2, b, g, first, keys, kb, kh, ks, E1, E, BLOCK_N, E2, TMA)
            s_MN = tl.dot(q2, k2_NE.T, s_MN, input_precision="ieee")
        if SOFTCAP > 0:
            s_MN = capped(s_MN, scale, SOFTCAP) * (SOFTCAP * LOG2E)
        if MASKED:
            key_1N = first + tl.arange(0, BLOCK_N)[None, :]
            seen = key_1N < keys
            if ALLOWS is not None:
                seen = seen & ALLOWS(query_M1, key_1N, query_document, document(documents, b, key_1N, keys, DOCUMENTS))
            s_MN = tl.where(seen, s_MN, float("-inf"))
        most = tl.maximum(m, tl.max(s_MN, 1) * c)
        p_MN = tl.exp2(s_MN * c - most[:, None])
        shrink = tl.exp2(m - most)
        total = total * shrink + tl.sum(p_MN, 1)
        acc = acc * shrink[:, None]
        if DROPOUT > 0:
            p_MN = p_MN * kept(seed, b * HEADS + h, query_M1, first + tl.arange(0, BLOCK_N)[None, :], keys, DROPOUT)
        v_NV = load_tile(v, b, g, first, keys, vb, vh, vs, 0, V, BLOCK_N, BLOCK_V, TMA)
        acc = tl.dot(p_MN.to(v_NV.dtype), v_NV, acc, input_precision="ieee")
        m = most
    return acc, total, m


@triton.jit
def tile_range(low, high, length, BLOCK: tl.constexpr):
    """The tiles that hold some of [low, high), which is cut to [0, length)."""
    low, high = tl.maximum(low, 0), tl.minimum(high, length)
    first = low // BLOCK
    return first, tl.maximum(first, (high + BLOCK - 1) // BLOCK)


@triton.jit
def whole_range(low, high, length, some_first, some_last, BLOCK: tl.constexpr):
    """The tiles within those that hold none but of [low, high) and [0, length)."""
    first = tl.maximum((tl.maximum(low, 0) + BLOCK - 1) // BLOCK, some_first)
    first = tl.minimum(first, some_last)
    return first, tl.maximum(first, tl.minimum(tl.minimum(high, length) // BLOCK, some_last))


@triton.jit
def attention_forward(
    q, q2, k, k2, v, o, lse, sinks, documents, seed_ptr, whole, whole_count, partial, partial_count, list_b,
    qb, qh, qs, kb, kh, ks, vb, vh, vs, ob, oh, os, queries, keys, scale, together,
    ALLOWS: tl.constexpr, BOUNDS: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, SINKS: tl.constexpr,
    DOCUMENTS: tl.constexpr, LISTED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    E: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. Also writes log-sum-exp [B, H, S] in nats, infinite where no key is seen."""
    tiles = (queries + BLOCK_M - 1) // BLOCK_M
    tile, head = place(tl.program_id(0), tiles, tl.num_programs(0) // tiles, together)
    tile = tiles - 1 - tile  # of causal ones the longest first
    b, h = head // HEADS, head % HEADS
    g = h // (HEADS // GROUPS)
    first = tile * BLOCK_M
    row_M = first + tl.arange(0, BLOCK_M)
    position = first + keys - queries
    query_M1 = position + tl.arange(0, BLOCK_M)[:, None]
    query_document = document(documents, b, query_M1, keys, DOCUMENTS)
    q1_ME = load_tile(q, b, h, first, queries, qb, qh, qs, 0, E, BLOCK_M, E1, TMA)
    q2_ME = q1_ME
    if E2 > 0:
        q2_ME = load_tile(q2, b, h, first, queries, qb, qh, qs, E1, E, BLOCK_M, E2, TMA)
    seed = tl.load(seed_ptr) if DROPOUT > 0 else 0
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    if SINKS:
        m = tl.zeros((BLOCK_M,), tl.float32) + tl.load(sinks + h).to(tl.float32) * LOG2E
        total = tl.full((BLOCK_M,), 1.0, tl.float32)
    else:
        m = tl.full((BLOCK_M,), -1e38, tl.float32)  # not infinite: a row that sees nothing yet would be NaN
        total = tl.zeros((BLOCK_M,), tl.float32)
    if LISTED:
        at = b * list_b + tile
        width = (keys + BLOCK_N - 1) // BLOCK_N
        count = tl.load(whole_count + at)
        acc, total, m = forward_tiles(acc, total, m, q1_ME, q2_ME, k, k2, v, documents, query_M1, query_document, seed,
                                  whole + at * width, 0, count, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs,
                                  ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, False, True, HEADS, E, E1, E2, V, BLOCK_V,
                                  BLOCK_N, STAGES, TMA)  # fmt: skip
        count = tl.load(partial_count + at)
        acc, total, m = forward_tiles(acc, total, m, q1_ME, q2_ME, k, k2, v, documents, query_M1, query_document, seed,
                                  partial + at * width, 0, count, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs,
                                  ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, True, True, HEADS, E, E1, E2, V, BLOCK_V,
                                  BLOCK_N, STAGES, TMA)  # fmt: skip
    else:
        if BOUNDS is not None:
            some_low, some_high, all_low, all_high = BOUNDS(position, position + BLOCK_M - 1)
        else:
            some_low, some_high, all_low, all_high = 0, ENDLESS, 0, ENDLESS
        low, high = tile_range(some_low, some_high, keys, BLOCK_N)
        whole_low, whole_high = whole_range(all_low, all_high, keys, low, high, BLOCK_N)
        if BOUNDS is not None:
            acc, total, m = forward_tiles(acc, total, m, q1_ME, q2_ME, k, k2, v, documents, query_M1, query_document,
                                      seed, whole, low, whole_low, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs,
                                      ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, True, False, HEADS, E, E1, E2, V, BLOCK_V,
                                      BLOCK_N, STAGES, TMA)  # fmt: skip
        acc, total, m = forward_tiles(acc, total, m, q1_ME, q2_ME, k, k2, v, documents, query_M1, query_document, seed,
                                  whole, whole_low, whole_high, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs,
                                  ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, False, False, HEADS, E, E1, E2, V, BLOCK_V,
                                  BLOCK_N, STAGES, TMA)  # fmt: skip
        acc, total, m = forward_tiles(acc, total, m, q1_ME, q2_ME, k, k2, v, documents, query_M1, query_document, seed,
                                  whole, whole_high, high, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs,
                                  ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, True, False, HEADS, E, E1, E2, V, BLOCK_V,
                                  BLOCK_N, STAGES, TMA)  # fmt: skip
    seen = total > 0
    acc = acc / tl.where(seen, total, 1.0)[:, None]
    store_tile(o, acc, b, h, first, queries, ob, oh, os, 0, V, BLOCK_M, BLOCK_V)
    at = (tl.cast(b, tl.int64) * HEADS + h) * queries + row_M
    tl.store(lse + at, tl.where(seen, (m + tl.log2(tl.where(seen, total, 1.0))) / LOG2E, float("inf")), row_M < queries)
