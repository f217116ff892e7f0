"""What the compiler and the lists of tiles say of masks against the masks themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.emit.attention import Interval, allows, interval, mask_functions
from dskc.compiler.values import Mask
from dskc.runtime.kernels.attention.tiles import Grid, seen, tile_lists

from .attention_calls import QUIET, device
from .drawn_masks import (
    CAUSAL,
    DOCUMENTS,
    EVERYTHING,
    blocks,
    both,
    dense,
    either,
    expressions,
    imported,
    window,
    written,
)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    keys = draw(st.integers(1, 70))
    queries = draw(st.integers(1, keys))
    sizes = st.sampled_from((1, 4, 16, 32))
    return Grid(queries, keys, draw(sizes), draw(sizes), torch.device("cpu"))


def ids(keys: int, seed: int) -> Tensor:
    """Documents of two sequences, in any order."""
    return torch.randint(-1, 2, (2, keys), generator=torch.Generator().manual_seed(seed))


def tiles(allowed: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Of each tile, whether it holds something that is allowed, and whether nothing else."""
    rows, columns = -grid.queries % grid.block_m, -grid.keys % grid.block_n

    def of_tiles(padding: bool) -> Tensor:
        filled = torch.nn.functional.pad(allowed, (0, columns, 0, rows), value=padding)
        return filled.unflatten(2, (-1, grid.block_n)).unflatten(1, (-1, grid.block_m))

    return of_tiles(False).any(4).any(2), of_tiles(True).all(4).all(2)


@settings(max_examples=150, **QUIET)
@given(expressions(6), grids(), st.integers(0, 9))
def test_no_tile_that_holds_something_is_skipped(mask: Mask, grid: Grid, seed: int) -> None:
    documents = ids(grid.keys, seed)
    some, every = tiles(dense(mask, grid.queries, grid.keys, documents), grid)
    may, all_of = seen(written(mask).mask(documents), grid)
    assert (may | ~some).all() and (every | ~all_of).all()
    if is_exact(mask):
        assert torch.equal(may.expand_as(some), some) and torch.equal(all_of.expand_as(every), every)
    check_lists(mask, grid, documents, some, every)


def is_exact(mask: Mask) -> bool:
    """Of these alone everything is known."""
    return mask.operator in ("causal", "window", "everything")


def check_lists(mask: Mask, grid: Grid, documents: Tensor, some: Tensor, every: Tensor) -> None:
    made = written(mask).mask(documents)
    for of_keys in (False, True):
        lists = tile_lists(made, grid, of_keys)
        good_some, good_every = (t.transpose(1, 2) if of_keys else t for t in (some, every))
        there = torch.zeros(2, *good_some.shape[1:], 2, dtype=torch.bool)
        for kind, (indices, counts) in enumerate(
            ((lists.whole, lists.whole_count), (lists.partial, lists.partial_count))
        ):
            assert indices.dtype == counts.dtype == torch.int32 and indices.is_contiguous()
            for b in range(2):
                for tile, count in enumerate(counts.flatten()[b * lists.stride :][: there.shape[1]].tolist()):
                    of_sequence = indices[b if lists.stride else 0, tile, :count].long()
                    assert of_sequence.unique().numel() == count
                    there[b, tile, of_sequence, kind] = True
        whole, partial = there.unbind(-1)
        assert not (whole & partial).any() and (whole | partial | ~good_some).all() and (good_every | ~whole).all()
        assert not (whole[:, -1] if of_keys else whole[:, :, -1]).any() or grid.keys % grid.block_n == 0


def test_lists_are_made_anew_for_documents_that_were_written_over() -> None:
    grid, documents = Grid(20, 20, 4, 4, torch.device("cpu")), torch.zeros(2, 20, dtype=torch.int64)
    made = written(DOCUMENTS).mask(documents)
    before = tile_lists(made, grid)
    assert tile_lists(made, grid) is before
    documents[:, 10:] = 1
    after = tile_lists(made, grid)
    assert after is not before and after.whole_count.sum() + after.partial_count.sum() < before.whole_count.sum()
    assert tile_lists(made, grid, of_keys=True) is not after
    assert tile_lists(written(DOCUMENTS).mask(documents.clone()), grid) is not after


# --- what the compiler writes

PLACES = """
from dskc.runtime.kernels.language import tl, triton


@triton.jit
def write_places(made, documents, queries, keys, ALLOWS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    row, key = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    query = row + keys - queries
    of = documents + tl.program_id(0) * keys
    there = (row < queries) & (key < keys)
    allowed = ALLOWS(query, key, tl.load(of + query, query < keys), tl.load(of + key, key < keys)) & there
    tl.store(made + (tl.program_id(0) * queries + row) * keys + key, allowed.to(tl.int8), there)


@triton.jit
def write_range(made, first, last, BOUNDS: tl.constexpr):
    a, b, c, d = BOUNDS(first, last)
    tl.store(made, a)
    tl.store(made + 1, b)
    tl.store(made + 2, c)
    tl.store(made + 3, d)
"""
KERNELS = imported(PLACES)


@settings(max_examples=60, **QUIET)
@given(expressions(6), st.integers(1, 70), st.integers(1, 70), st.integers(0, 9))
def test_places_that_the_written_function_allows(mask: Mask, queries: int, keys: int, seed: int) -> None:
    queries, documents = min(queries, keys), ids(keys, seed).to(device)
    wanted = dense(mask, queries, keys, documents, device).expand(2, -1, -1)
    function = written(mask).function("allows")
    if function is None:
        assert wanted.all() and allows(mask) is None
        return
    made = torch.full((2, queries, keys), 7, dtype=torch.int8, device=device)
    KERNELS.write_places[(2,)](made, documents, queries, keys, function, 128, 128)
    assert torch.equal(made == 1, wanted) and (made <= 1).all()


@settings(max_examples=200, **QUIET)
@given(expressions(6))
def test_the_interval_is_what_is_allowed_within_one_document(mask: Mask) -> None:
    known = interval(mask)
    assert (known is None) == ("blocks" in mask.names)
    if known is None:
        return
    wanted = dense(mask, 40, 40, None)[0]
    assert torch.equal(between(known, 40), wanted)
    assert torch.equal(between(known.mirrored(), 40), wanted.T)


def between(known: Interval, length: int) -> Tensor:
    at = torch.arange(length)
    low = torch.full((length,), -1) if known.low is None else at + known.low
    high = torch.full((length,), length) if known.high is None else at + known.high
    return (at >= low[:, None]) & (at < high[:, None])


@settings(max_examples=60, **QUIET)
@given(expressions(6), st.integers(0, 39), st.integers(1, 16))
def test_ranges_of_some_and_of_all(mask: Mask, first: int, length: int) -> None:
    allowed, last = dense(mask, 60, 60, None)[0], first + length - 1
    for name, places in (("allows_of_queries", allowed), ("allows_of_keys", allowed.T)):
        function = written(mask).function(name)
        if function is None:
            assert "blocks" in mask.names or len(mask_functions(mask, "allows")) == 0
            continue
        made = torch.zeros(4, dtype=torch.int64, device=device)
        KERNELS.write_range[(1,)](made, first, last, function)
        at = torch.arange(60)
        low, high, all_low, all_high = made.tolist()
        assert torch.equal((at >= low) & (at < high), places[first : last + 1].any(0))
        assert torch.equal((at >= all_low) & (at < all_high), places[first : last + 1].all(0))


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (CAUSAL, "(key <= query)"),
        (EVERYTHING, None),
        (both(CAUSAL, window(4)), "(key <= query) & (key > query - 4)"),
        (either(CAUSAL, window(4)), "(key <= query) | ((key > query - 4) & (key < query + 4))"),
        (either(CAUSAL, EVERYTHING), None),
        (both(DOCUMENTS, EVERYTHING), "(query_document == key_document)"),
        (both(blocks(8, 3, 0, 0), either(CAUSAL, DOCUMENTS)),
         "in_blocks_8_3_0_0_0(query, key) & ((key <= query) | (query_document == key_document))"),
    ],
)  # fmt: skip
def test_how_a_mask_is_written(mask: Mask, wanted: str | None) -> None:
    assert allows(mask) == wanted
