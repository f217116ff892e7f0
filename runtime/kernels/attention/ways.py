"""Attention's tiles: those that are tried, the likeliest best first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from ..choice import interpreted
from ..tuning import Tile, Way, tile

FORWARD = (
    tile(4, 3, BLOCK_M=64, BLOCK_N=64),
    tile(4, 2, BLOCK_M=128, BLOCK_N=64),
    tile(8, 3, BLOCK_M=128, BLOCK_N=64),
    tile(8, 2, BLOCK_M=128, BLOCK_N=128),
    tile(4, 2, BLOCK_M=64, BLOCK_N=128),
    tile(4, 1, BLOCK_M=64, BLOCK_N=32),
)
TOGETHER = (  # one kernel for all gradients
    tile(8, 2, BLOCK_M=64, BLOCK_N=128),
    tile(8, 1, BLOCK_M=64, BLOCK_N=128),
    tile(4, 2, BLOCK_M=64, BLOCK_N=64),
    tile(4, 2, BLOCK_M=32, BLOCK_N=64),
    tile(4, 1, BLOCK_M=32, BLOCK_N=32),  # fits heads of 256 into 99 KiB of shared memory
)
APART_KEYS = (
    tile(4, 2, BLOCK_M=64, BLOCK_N=64),
    tile(8, 2, BLOCK_M=64, BLOCK_N=128),
    tile(8, 3, BLOCK_M=64, BLOCK_N=128),
    tile(4, 3, BLOCK_M=64, BLOCK_N=64),
    tile(4, 2, BLOCK_M=32, BLOCK_N=64),
    tile(4, 1, BLOCK_M=32, BLOCK_N=32),  # fits heads of 256 into 99 KiB of shared memory
)
APART_QUERIES = (
    tile(8, 3, BLOCK_M=128, BLOCK_N=64),
    tile(8, 2, BLOCK_M=128, BLOCK_N=64),
    tile(8, 3, BLOCK_M=128, BLOCK_N=64),
    tile(4, 3, BLOCK_M=64, BLOCK_N=64),
    tile(4, 2, BLOCK_M=64, BLOCK_N=32),
    tile(4, 1, BLOCK_M=32, BLOCK_N=32),  # fits heads of 256 into 99 KiB of shared memory
)
INTERPRETED = (tile(4, 1, BLOCK_M=16, BLOCK_N=16),)


@dataclass(frozen=True)
class Backward(Way):
    """Gradients by one kernel (`queries` None), or by one for keys and values and one for queries."""

    keys: Tile = APART_KEYS[0]
    queries: Tile | None = None


def forward_ways() -> Sequence[Tile]:
    return INTERPRETED if interpreted() else FORWARD


@cache
def backward_ways() -> Sequence[Backward]:
    if interpreted():
        (small,) = INTERPRETED
        return [Backward("apart", small, small), Backward("together", small)]
    apart = [
        Backward(f"apart {keys.name}, {queries.name}", keys, queries)
        for keys, queries in zip(APART_KEYS, APART_QUERIES, strict=True)
    ]
    return [*apart, *(Backward(f"together {tile.name}", tile) for tile in TOGETHER)]
