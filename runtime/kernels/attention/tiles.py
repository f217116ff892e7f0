"""Which tiles of a mask hold something, worked out from its expression without ever holding all of its places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, singledispatch

import torch
from torch import Tensor

from ...reference.mask import Blocks, Both, Causal, Documents, Either, Everything, Mask, Window


@dataclass(frozen=True)
class Span:
    """Tiles of one axis: the first and last position of each, both there."""

    first: Tensor
    last: Tensor


@dataclass(frozen=True)
class Grid:
    """Tiles of queries and keys. Queries are the last of the positions that keys have."""

    queries: int
    keys: int
    block_m: int
    block_n: int
    device: torch.device

    @property
    def rows(self) -> Span:
        """Of queries, as a column."""
        offset = self.keys - self.queries
        span = _span(self.queries, self.block_m, self.device)
        return Span((span.first + offset).unsqueeze(-1), (span.last + offset).unsqueeze(-1))

    @property
    def columns(self) -> Span:
        """Of keys."""
        return _span(self.keys, self.block_n, self.device)


@dataclass(frozen=True)
class TileLists:
    """For each tile of one axis, those of the other that it sees all of, and those that it sees some of.

    whole, partial: int32 [B, tiles, others], of which the first counts [B, tiles] (int32) count; B is 1 where all
    sequences have the same.
    """

    whole: Tensor
    whole_count: Tensor
    partial: Tensor
    partial_count: Tensor

    @property
    def stride(self) -> int:
        """From one sequence's counts to the next one's."""
        return self.whole_count.shape[1] if self.whole_count.shape[0] > 1 else 0


def tile_lists(mask: Mask, grid: Grid, of_keys: bool = False) -> TileLists:
    """What each tile of queries sees, or with `of_keys` what each tile of keys is seen by."""
    ids = _ids(mask)
    if not ids:
        return _kept_lists(mask, grid, of_keys)
    if any(i.is_inference() for i in ids) or _is_captured(grid.device):
        return _lists(mask, grid, of_keys)
    what = (_key(mask), *((id(i), i._version) for i in ids))
    held = _recent.get((grid, of_keys))
    if held is None or held.what != what:
        if len(_recent) >= RECENT:
            _recent.clear()
        held = _recent[grid, of_keys] = _Held(what, ids, _lists(mask, grid, of_keys))
    return held.lists


def _is_captured(device: torch.device) -> bool:
    """Whether a graph of CUDA records: it is replayed for other documents at the same place."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class _Held:
    what: object
    ids: list[Tensor]  # so that no others come to lie at their address
    lists: TileLists


RECENT = 16
_recent: dict[tuple[Grid, bool], _Held] = {}  # made last for documents: all layers of a model ask for the same


@lru_cache(64)
def _kept_lists(mask: Mask, grid: Grid, of_keys: bool) -> TileLists:
    return _lists(mask, grid, of_keys)


def _lists(mask: Mask, grid: Grid, of_keys: bool) -> TileLists:
    some, every = seen(mask, grid)
    every = every & (grid.columns.first + grid.block_n <= grid.keys)  # keys that are not there must be masked
    some, every = torch.broadcast_tensors(some, every)
    if some.ndim == 2:
        some, every = some.unsqueeze(0), every.unsqueeze(0)
    if of_keys:
        some, every = some.transpose(1, 2), every.transpose(1, 2)
    return TileLists(*_listed(every), *_listed(some & ~every))


def _listed(there: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.sort(there.to(torch.int8), dim=-1, descending=True, stable=True).indices
    return order.to(torch.int32).contiguous(), there.sum(-1, dtype=torch.int32).contiguous()


@singledispatch
def seen(mask: Mask, grid: Grid) -> tuple[Tensor, Tensor]:
    """Of each tile [.., tiles of queries, tiles of keys]: whether it may hold a place that the mask allows, and whether
    all that it holds are allowed. Where an expression does not tell, it may, and not all are."""
    raise NotImplementedError(type(mask))


@seen.register
def _(mask: Everything, grid: Grid) -> tuple[Tensor, Tensor]:
    there = torch.ones(len(grid.rows.first), len(grid.columns.first), dtype=torch.bool, device=grid.device)
    return there, there


@seen.register
def _(mask: Causal, grid: Grid) -> tuple[Tensor, Tensor]:
    query, key = grid.rows, grid.columns
    return key.first <= query.last, key.last <= query.first


@seen.register
def _(mask: Window, grid: Grid) -> tuple[Tensor, Tensor]:
    query, key = grid.rows, grid.columns
    some = (key.first - query.last < mask.size) & (query.first - key.last < mask.size)
    return some, (key.last - query.first < mask.size) & (query.last - key.first < mask.size)


@seen.register
def _(mask: Documents, grid: Grid) -> tuple[Tensor, Tensor]:
    least_M, most_M = _extremes(mask.ids_BT[:, grid.keys - grid.queries :], grid.block_m)
    least_N, most_N = _extremes(mask.ids_BT, grid.block_n)
    least_M, most_M = least_M.unsqueeze(-1), most_M.unsqueeze(-1)
    least_N, most_N = least_N.unsqueeze(-2), most_N.unsqueeze(-2)
    some = (least_M <= most_N) & (least_N <= most_M)
    return some, (least_M == most_N) & (least_N == most_M)


@seen.register
def _(mask: Blocks, grid: Grid) -> tuple[Tensor, Tensor]:
    count = -(-grid.keys // mask.size)
    allowed = Blocks(1, mask.window, mask.leading, mask.random, mask.seed).allowed(count, count, grid.device)
    sums = torch.zeros(count + 1, count + 1, dtype=torch.int64, device=grid.device)
    sums[1:, 1:] = allowed.to(torch.int64).cumsum(0).cumsum(1)
    query, key = grid.rows, grid.columns
    top, bottom = query.first // mask.size, query.last // mask.size + 1
    left, right = (key.first // mask.size).unsqueeze(0), (key.last // mask.size + 1).unsqueeze(0)
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside > 0, inside == (bottom - top) * (right - left)


@seen.register
def _(mask: Both, grid: Grid) -> tuple[Tensor, Tensor]:
    (some_a, every_a), (some_b, every_b) = seen(mask.a, grid), seen(mask.b, grid)
    return some_a & some_b, every_a & every_b


@seen.register
def _(mask: Either, grid: Grid) -> tuple[Tensor, Tensor]:
    (some_a, every_a), (some_b, every_b) = seen(mask.a, grid), seen(mask.b, grid)
    return some_a | some_b, every_a | every_b


def _span(length: int, block: int, device: torch.device) -> Span:
    first = torch.arange(0, length, block, device=device)
    return Span(first, (first + block - 1).clamp(max=length - 1))


def _extremes(ids_BT: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest id of each tile: [B, tiles]."""
    short = -ids_BT.shape[1] % block
    if short:
        ids_BT = torch.cat((ids_BT, ids_BT[:, -1:].expand(-1, short)), dim=1)
    tiles = ids_BT.unflatten(1, (-1, block))
    return tiles.amin(-1), tiles.amax(-1)


def has_blocks(mask: Mask) -> bool:
    """Whether it draws blocks at random."""
    if isinstance(mask, Both | Either):
        return has_blocks(mask.a) or has_blocks(mask.b)
    return isinstance(mask, Blocks)


def _ids(mask: Mask) -> list[Tensor]:
    if isinstance(mask, Both | Either):
        return [*_ids(mask.a), *_ids(mask.b)]
    return [mask.ids_BT] if isinstance(mask, Documents) else []


def _key(mask: Mask) -> object:
    """What tells a mask apart, but for its documents."""
    if isinstance(mask, Both | Either):
        return (type(mask).__name__, _key(mask.a), _key(mask.b))
    return "documents" if isinstance(mask, Documents) else mask
