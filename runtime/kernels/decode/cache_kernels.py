"""New keys and values go to their places in a cache."""

from __future__ import annotations

from ..language import tl, triton


@triton.jit
def write_kernel(  # type: ignore[no-untyped-def]
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, table_ptr, lengths_ptr, k_scale, v_scale,
    k_batch, k_query, k_group, v_batch, v_query, v_group,
    k_block, k_row, k_head, v_block, v_row, v_head, table_row,
    QUERIES: tl.constexpr, GROUPS: tl.constexpr, E: tl.constexpr, V: tl.constexpr, PAGE: tl.constexpr,
    SCALED: tl.constexpr, MOST: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One new position of one sequence, a block of its heads; nothing where the position is before the first.

    PAGE: 0 where the cache is contiguous. SCALED: divided by scales and kept within MOST.
    """
    b, s = (tl.program_id(0) // QUERIES).to(tl.int64), tl.program_id(0) % QUERIES
    position = tl.load(lengths_ptr + b) - QUERIES + s
    if position < 0:
        return
    block, place = b, position
    if PAGE > 0:
        block = tl.load(table_ptr + b * table_row + position // PAGE).to(tl.int64)
        place = position % PAGE
    place = place.to(tl.int64)
    g_G = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    k_from, k_to = k_ptr + b * k_batch + s * k_query, k_cache_ptr + block * k_block + place * k_row
    v_from, v_to = v_ptr + b * v_batch + s * v_query, v_cache_ptr + block * v_block + place * v_row
    _copy(k_from, k_to, k_group, k_head, k_scale, g_G, GROUPS, E, BLOCK_E, SCALED, MOST)
    _copy(v_from, v_to, v_group, v_head, v_scale, g_G, GROUPS, V, BLOCK_V, SCALED, MOST)


@triton.jit
def _copy(  # type: ignore[no-untyped-def]
    from_ptr, to_ptr, from_stride, to_stride, scale, g_G,
    GROUPS: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, SCALED: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    column_E = tl.arange(0, BLOCK_E)
    there_GE = (g_G < GROUPS)[:, None] & (column_E < E)[None, :]
    x_GE = tl.load(from_ptr + (g_G * from_stride)[:, None] + column_E[None, :], there_GE)
    if SCALED:
        x_GE = x_GE.to(tl.float32) / scale
        if MOST > 0:
            x_GE = tl.minimum(tl.maximum(x_GE, -MOST), MOST)
    to = to_ptr + (g_G * to_stride)[:, None] + column_E[None, :]
    tl.store(to, x_GE.to(to_ptr.dtype.element_ty), there_GE)
