"""The gradients of attention: templates like those of `forward.py`, whose letters they share.

Two ways: one kernel for keys and values and one for queries, which computes scores twice and gives the same bits every
time; or the first alone, which then adds to the gradients of queries as it goes, in any order.
"""

# mypy: allow-untyped-defs
from __future__ import annotations

from ..language import tl, triton
from .forward import (
    ENDLESS,
    LOG2E,
    capped,
    document,
    kept,
    load_tile,
    place,
    store_tile,
    tile_range,
    whole_range,
)


@triton.jit
def attention_delta(o, grad_o, delta, lse, sinks, grad_sinks, ob, oh, os, db, dh, ds, queries,
                    SINKS: tl.constexpr, HEADS: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
                    BLOCK_M: tl.constexpr):  # fmt: skip
    """Of each row `sum(o * grad_o)`, which backward subtracts; of each tile and head its part of a sink's gradient."""
    tiles = (queries + BLOCK_M - 1) // BLOCK_M
    tile, head = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    b, h = head // HEADS, head % HEADS
    first = tile * BLOCK_M
    row_M = first + tl.arange(0, BLOCK_M)
    o_MV = load_tile(o, b, h, first, queries, ob, oh, os, 0, V, BLOCK_M, BLOCK_V, False)
    grad_MV = load_tile(grad_o, b, h, first, queries, db, dh, ds, 0, V, BLOCK_M, BLOCK_V, False)
    delta_M = tl.sum(o_MV.to(tl.float32) * grad_MV.to(tl.float32), 1)
    at = (tl.cast(b, tl.int64) * HEADS + h) * queries + row_M
    tl.store(delta + at, delta_M, row_M < queries)
    if SINKS:
        lse_M = tl.load(lse + at, row_M < queries, other=float("inf"))
        p_M = tl.exp2((tl.load(sinks + h).to(tl.float32) - lse_M) * LOG2E)
        tl.store(grad_sinks + tl.program_id(0), -tl.sum(p_M * delta_M))


@triton.jit
def probabilities(s, lse, scale, SOFTCAP: tl.constexpr):
    """Probabilities by log-sum-exp in powers of two, and how a score changes with what was capped."""
    if SOFTCAP > 0:
        bent = capped(s, scale, SOFTCAP)
        p, bend = tl.exp2(bent * (SOFTCAP * LOG2E) - lse), 1.0 - bent * bent
    else:
        p, bend = tl.exp2(s * (scale * LOG2E) - lse), 1.0
    return p, bend


@triton.jit
def backward_key_tiles(dk1, dk2, dv, k1, k2, v, q, q2, grad_o, dq, lse, delta, documents, key_N1, key_document, seed,
                       tiles, low, high, b, h, queries, keys, scale, qb, qh, qs, db, dh, ds,
                       ALLOWS: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, DOCUMENTS: tl.constexpr,
                       MASKED: tl.constexpr, LISTED: tl.constexpr, WITH_DQ: tl.constexpr, HEADS: tl.constexpr,
                       E: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
                       BLOCK_M: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Goes through tiles of queries for one of keys; WITH_DQ: adds to the gradients of those queries too."""
    at = (tl.cast(b, tl.int64) * HEADS + h) * queries
    for t in tl.range(low, high, num_stages=STAGES):
        first = tl.load(tiles + t) * BLOCK_M if LISTED else t * BLOCK_M
        row_M = first + tl.arange(0, BLOCK_M)
        q1_ME = load_tile(q, b, h, first, queries, qb, qh, qs, 0, E, BLOCK_M, E1, TMA)
        s_NM = tl.dot(k1, q1_ME.T, input_precision="ieee")
        if E2 > 0:
            q2_ME = load_tile(q2, b, h, first, queries, qb, qh, qs, E1, E, BLOCK_M, E2, TMA)
            s_NM = tl.dot(k2, q2_ME.T, s_NM, input_precision="ieee")
        lse_M = tl.load(lse + at + row_M, row_M < queries, other=float("inf")) * LOG2E
        p_NM, bend_NM = probabilities(s_NM, lse_M[None, :], scale, SOFTCAP)
        query_1M = (row_M + keys - queries)[None, :]
        if MASKED:
            seen = key_N1 < keys
            if ALLOWS is not None:
                seen = seen & ALLOWS(query_1M, key_N1, document(documents, b, query_1M, keys, DOCUMENTS), key_document)
            p_NM = tl.where(seen, p_NM, 0.0)
        grad_MV = load_tile(grad_o, b, h, first, queries, db, dh, ds, 0, V, BLOCK_M, BLOCK_V, TMA)
        dp_NM = tl.dot(v, grad_MV.T, input_precision="ieee")
        if DROPOUT > 0:
            kept_NM = kept(seed, b * HEADS + h, query_1M, key_N1, keys, DROPOUT)
            dv = tl.dot((p_NM * kept_NM).to(grad_MV.dtype), grad_MV, dv, input_precision="ieee")
            dp_NM = dp_NM * kept_NM
        else:
            dv = tl.dot(p_NM.to(grad_MV.dtype), grad_MV, dv, input_precision="ieee")
        delta_M = tl.load(delta + at + row_M, row_M < queries, other=0.0)
        ds_NM = (p_NM * (dp_NM - delta_M[None, :]) * bend_NM).to(q1_ME.dtype)
        dk1 = tl.dot(ds_NM, q1_ME, dk1, input_precision="ieee")
        if E2 > 0:
            dk2 = tl.dot(ds_NM, q2_ME, dk2, input_precision="ieee")
        if WITH_DQ:
            ds_MN = ds_NM.T
            dq_ME = tl.dot(ds_MN, k1, input_precision="ieee")
            row_M1 = ((tl.cast(b, tl.int64) * queries + row_M) * HEADS + h)[:, None]
            where = dq + row_M1 * E + tl.arange(0, E1)[None, :]
            tl.atomic_add(where, dq_ME * scale, (row_M < queries)[:, None], sem="relaxed")
            if E2 > 0:
                dq_ME = tl.dot(ds_MN, k2, input_precision="ieee")
                column = E1 + tl.arange(0, E2)[None, :]
                where = dq + row_M1 * E + column
                tl.atomic_add(where, dq_ME * scale, (row_M < queries)[:, None] & (column < E), sem="relaxed")
    return dk1, dk2, dv


@triton.jit
def attention_backward_keys(
    q, q2, k, k2, v, grad_o, dq, dk, dv, lse, delta, documents, seed_ptr,
    whole, whole_count, partial, partial_count, list_b,
    qb, qh, qs, kb, kh, ks, vb, vh, vs, db, dh, ds, gb, gh, gs, ub, uh, us, queries, keys, scale, together,
    ALLOWS: tl.constexpr, BOUNDS: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, LISTED: tl.constexpr, WITH_DQ: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    E: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The gradients of one tile of keys and values, summed over the heads that share them."""
    tiles = (keys + BLOCK_N - 1) // BLOCK_N
    tile, head = place(tl.program_id(0), tiles, tl.num_programs(0) // tiles, together)
    b, g = head // GROUPS, head % GROUPS
    first = tile * BLOCK_N
    key_N1 = first + tl.arange(0, BLOCK_N)[:, None]
    key_document = document(documents, b, key_N1, keys, DOCUMENTS)
    k1_NE = load_tile(k, b, g, first, keys, kb, kh, ks, 0, E, BLOCK_N, E1, TMA)
    k2_NE = k1_NE
    dk1 = tl.zeros((BLOCK_N, E1), tl.float32)
    dk2 = dk1
    if E2 > 0:
        k2_NE = load_tile(k2, b, g, first, keys, kb, kh, ks, E1, E, BLOCK_N, E2, TMA)
        dk2 = tl.zeros((BLOCK_N, E2), tl.float32)
    v_NV = load_tile(v, b, g, first, keys, vb, vh, vs, 0, V, BLOCK_N, BLOCK_V, TMA)
    dv_NV = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    seed = tl.load(seed_ptr) if DROPOUT > 0 else 0
    offset = keys - queries
    if BOUNDS is not None:
        some_low, some_high, all_low, all_high = BOUNDS(first, first + BLOCK_N - 1)
    else:
        some_low, some_high, all_low, all_high = 0, ENDLESS, 0, ENDLESS
    low, high = tile_range(some_low - offset, some_high - offset, queries, BLOCK_M)
    if first + BLOCK_N > keys:  # nobody sees all of a tile with keys that are not there
        all_low = all_low * 0 + ENDLESS
    behind = (queries + BLOCK_M - 1) // BLOCK_M * BLOCK_M  # queries that are not there need no mask
    whole_low, whole_high = whole_range(all_low - offset, all_high - offset, behind, low, high, BLOCK_M)
    for i in range(HEADS // GROUPS):
        h = g * (HEADS // GROUPS) + i
        if LISTED:
            at = b * list_b + tile
            width = (queries + BLOCK_M - 1) // BLOCK_M
            count = tl.load(whole_count + at)
            dk1, dk2, dv_NV = backward_key_tiles(
                dk1, dk2, dv_NV, k1_NE, k2_NE, v_NV, q, q2, grad_o, dq, lse, delta, documents, key_N1, key_document,
                seed, whole + at * width, 0, count, b, h, queries, keys, scale, qb, qh, qs, db, dh, ds,
                ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, False, True, WITH_DQ, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_M,
                STAGES, TMA)  # fmt: skip
            count = tl.load(partial_count + at)
            dk1, dk2, dv_NV = backward_key_tiles(
                dk1, dk2, dv_NV, k1_NE, k2_NE, v_NV, q, q2, grad_o, dq, lse, delta, documents, key_N1, key_document,
                seed, partial + at * width, 0, count, b, h, queries, keys, scale, qb, qh, qs, db, dh, ds,
                ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, True, True, WITH_DQ, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_M,
                STAGES, TMA)  # fmt: skip
        else:
            dk1, dk2, dv_NV = backward_key_tiles(
                dk1, dk2, dv_NV, k1_NE, k2_NE, v_NV, q, q2, grad_o, dq, lse, delta, documents, key_N1, key_document,
                seed, whole, low, whole_low, b, h, queries, keys, scale, qb, qh, qs, db, dh, ds,
                ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, True, False, WITH_DQ, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_M,
                STAGES, TMA)  # fmt: skip
            dk1, dk2, dv_NV = backward_key_tiles(
                dk1, dk2, dv_NV, k1_NE, k2_NE, v_NV, q, q2, grad_o, dq, lse, delta, documents, key_N1, key_document,
                seed, whole, whole_low, whole_high, b, h, queries, keys, scale, qb, qh, qs, db, dh, ds,
                ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, False, False, WITH_DQ, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_M,
                STAGES, TMA)  # fmt: skip
            if BOUNDS is not None:
                dk1, dk2, dv_NV = backward_key_tiles(
                    dk1, dk2, dv_NV, k1_NE, k2_NE, v_NV, q, q2, grad_o, dq, lse, delta, documents, key_N1,
                    key_document, seed, whole, whole_high, high, b, h, queries, keys, scale, qb, qh, qs, db, dh, ds,
                    ALLOWS, SOFTCAP, DROPOUT, DOCUMENTS, True, False, WITH_DQ, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_M,
                    STAGES, TMA)  # fmt: skip
    store_tile(dk, dk1 * scale, b, g, first, keys, gb, gh, gs, 0, E, BLOCK_N, E1)
    if E2 > 0:
        store_tile(dk, dk2 * scale, b, g, first, keys, gb, gh, gs, E1, E, BLOCK_N, E2)
    store_tile(dv, dv_NV, b, g, first, keys, ub, uh, us, 0, V, BLOCK_N, BLOCK_V)


@triton.jit
def backward_query_tiles(dq1, dq2, q1, q2, grad_MV, lse_M1, delta_M1, k, k2, v, documents, query_M1, query_document,
                         seed, tiles, low, high, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs,
                         ALLOWS: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr, DOCUMENTS: tl.constexpr,
                         MASKED: tl.constexpr, LISTED: tl.constexpr, HEADS: tl.constexpr,
                         E: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
                         BLOCK_N: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr):  # fmt: skip
    """Goes through tiles of keys for one of queries."""
    for t in tl.range(low, high, num_stages=STAGES):
        first = tl.load(tiles + t) * BLOCK_N if LISTED else t * BLOCK_N
        k1_NE = load_tile(k, b, g, first, keys, kb, kh, ks, 0, E, BLOCK_N, E1, TMA)
        s_MN = tl.dot(q1, k1_NE.T, input_precision="ieee")
        if E2 > 0:
            k2_NE = load_tile(k2, b, g, first, keys, kb, kh, ks, E1, E, BLOCK_N, E2, TMA)
            s_MN = tl.dot(q2, k2_NE.T, s_MN, input_precision="ieee")
        p_MN, bend_MN = probabilities(s_MN, lse_M1, scale, SOFTCAP)
        key_1N = first + tl.arange(0, BLOCK_N)[None, :]
        if MASKED:
            seen = key_1N < keys
            if ALLOWS is not None:
                seen = seen & ALLOWS(query_M1, key_1N, query_document, document(documents, b, key_1N, keys, DOCUMENTS))
            p_MN = tl.where(seen, p_MN, 0.0)
        v_NV = load_tile(v, b, g, first, keys, vb, vh, vs, 0, V, BLOCK_N, BLOCK_V, TMA)
        dp_MN = tl.dot(grad_MV, v_NV.T, input_precision="ieee")
        if DROPOUT > 0:
            dp_MN = dp_MN * kept(seed, b * HEADS + h, query_M1, key_1N, keys, DROPOUT)
        ds_MN = (p_MN * (dp_MN - delta_M1) * bend_MN).to(k1_NE.dtype)
        dq1 = tl.dot(ds_MN, k1_NE, dq1, input_precision="ieee")
        if E2 > 0:
            dq2 = tl.dot(ds_MN, k2_NE, dq2, input_precision="ieee")
    return dq1, dq2


@triton.jit
def attention_backward_queries(
    q, q2, k, k2, v, grad_o, dq, lse, delta, documents, seed_ptr,
    whole, whole_count, partial, partial_count, list_b,
    qb, qh, qs, kb, kh, ks, vb, vh, vs, db, dh, ds, gb, gh, gs, queries, keys, scale, together,
    ALLOWS: tl.constexpr, BOUNDS: tl.constexpr, SOFTCAP: tl.constexpr, DROPOUT: tl.constexpr,
    DOCUMENTS: tl.constexpr, LISTED: tl.constexpr, HEADS: tl.constexpr, GROUPS: tl.constexpr,
    E: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr, V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The gradients of one tile of queries of one head."""
    tiles = (queries + BLOCK_M - 1) // BLOCK_M
    tile, head = place(tl.program_id(0), tiles, tl.num_programs(0) // tiles, together)
    tile = tiles - 1 - tile
    b, h = head // HEADS, head % HEADS
    g = h // (HEADS // GROUPS)
    first = tile * BLOCK_M
    row_M = first + tl.arange(0, BLOCK_M)
    position = first + keys - queries
    query_M1 = position + tl.arange(0, BLOCK_M)[:, None]
    query_document = document(documents, b, query_M1, keys, DOCUMENTS)
    q1_ME = load_tile(q, b, h, first, queries, qb, qh, qs, 0, E, BLOCK_M, E1, TMA)
    q2_ME = q1_ME
    dq1 = tl.zeros((BLOCK_M, E1), tl.float32)
    dq2 = dq1
    if E2 > 0:
        q2_ME = load_tile(q2, b, h, first, queries, qb, qh, qs, E1, E, BLOCK_M, E2, TMA)
        dq2 = tl.zeros((BLOCK_M, E2), tl.float32)
    grad_MV = load_tile(grad_o, b, h, first, queries, db, dh, ds, 0, V, BLOCK_M, BLOCK_V, TMA)
    at = (tl.cast(b, tl.int64) * HEADS + h) * queries + row_M
    lse_M1 = tl.load(lse + at, row_M < queries, other=float("inf"))[:, None] * LOG2E
    delta_M1 = tl.load(delta + at, row_M < queries, other=0.0)[:, None]
    seed = tl.load(seed_ptr) if DROPOUT > 0 else 0
    if LISTED:
        at = b * list_b + tile
        width = (keys + BLOCK_N - 1) // BLOCK_N
        count = tl.load(whole_count + at)
        dq1, dq2 = backward_query_tiles(
            dq1, dq2, q1_ME, q2_ME, grad_MV, lse_M1, delta_M1, k, k2, v, documents, query_M1, query_document, seed,
            whole + at * width, 0, count, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs, ALLOWS, SOFTCAP, DROPOUT,
            DOCUMENTS, False, True, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_N, STAGES, TMA)  # fmt: skip
        count = tl.load(partial_count + at)
        dq1, dq2 = backward_query_tiles(
            dq1, dq2, q1_ME, q2_ME, grad_MV, lse_M1, delta_M1, k, k2, v, documents, query_M1, query_document, seed,
            partial + at * width, 0, count, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs, ALLOWS, SOFTCAP, DROPOUT,
            DOCUMENTS, True, True, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_N, STAGES, TMA)  # fmt: skip
    else:
        if BOUNDS is not None:
            some_low, some_high, all_low, all_high = BOUNDS(position, position + BLOCK_M - 1)
        else:
            some_low, some_high, all_low, all_high = 0, ENDLESS, 0, ENDLESS
        low, high = tile_range(some_low, some_high, keys, BLOCK_N)
        whole_low, whole_high = whole_range(all_low, all_high, keys, low, high, BLOCK_N)
        if BOUNDS is not None:
            dq1, dq2 = backward_query_tiles(
                dq1, dq2, q1_ME, q2_ME, grad_MV, lse_M1, delta_M1, k, k2, v, documents, query_M1, query_document,
                seed, whole, low, whole_low, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs, ALLOWS, SOFTCAP, DROPOUT,
                DOCUMENTS, True, False, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_N, STAGES, TMA)  # fmt: skip
        dq1, dq2 = backward_query_tiles(
            dq1, dq2, q1_ME, q2_ME, grad_MV, lse_M1, delta_M1, k, k2, v, documents, query_M1, query_document, seed,
            whole, whole_low, whole_high, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs, ALLOWS, SOFTCAP, DROPOUT,
            DOCUMENTS, False, False, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_N, STAGES, TMA)  # fmt: skip
        dq1, dq2 = backward_query_tiles(
            dq1, dq2, q1_ME, q2_ME, grad_MV, lse_M1, delta_M1, k, k2, v, documents, query_M1, query_document, seed,
            whole, whole_high, high, b, h, g, keys, scale, kb, kh, ks, vb, vh, vs, ALLOWS, SOFTCAP, DROPOUT,
            DOCUMENTS, True, False, HEADS, E, E1, E2, V, BLOCK_V, BLOCK_N, STAGES, TMA)  # fmt: skip
    store_tile(dq, dq1 * scale, b, h, first, queries, gb, gh, gs, 0, E, BLOCK_M, E1)
    if E2 > 0:
        store_tile(dq, dq2 * scale, b, h, first, queries, gb, gh, gs, E1, E, BLOCK_M, E2)
