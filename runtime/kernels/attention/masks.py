"""Masks that are more than a comparison, for the kernels that are written from a spec's mask."""

# mypy: allow-untyped-defs
from __future__ import annotations

from ..language import tl, triton


@triton.jit
def hashed(x):
    """32 bits that look random for each integer: the function of `runtime/reference/mask.py`."""
    x = x.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@triton.jit
def draw(start, among, i: tl.constexpr, LEADING: tl.constexpr, RANDOM: tl.constexpr):
    """What the i-th of RANDOM random blocks would be, and what it is where that one is taken: -1 where there is none.

    Floyd's way (doi:10.1145/30401.315746): one of the first m - n + i + 1, or the last of those.
    """
    last = among - RANDOM + i
    one = (hashed(start + i) % tl.maximum(last + 1, 1).to(tl.uint32)).to(tl.int32)
    return tl.where(last >= 0, one + LEADING, -1), tl.where(last >= 0, last + LEADING, -1)
