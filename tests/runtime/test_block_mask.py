"""The block-sparse mask of BigBird (arXiv:2007.14062, section 2) against a loop over positions; what it promises."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.reference import attention, blocks, causal
from dskc.runtime.reference.mask import Blocks

CPU = torch.device("cpu")
shapes = st.builds(
    Blocks,
    size=st.integers(1, 5),
    window=st.sampled_from([1, 3, 5]),
    leading=st.integers(0, 2),
    random=st.integers(0, 4),
    seed=st.integers(0, 2**40),
)


def drawn(mask: Blocks, block: int) -> list[int]:
    """The random blocks that a block of queries sees: what no other rule allows, in a text long behind it."""
    lone = Blocks(1, mask.window, mask.leading, mask.random, mask.seed)  # one position a block: all can be read off
    row_T = lone.allowed(block + 50, block + 50, CPU)[block]
    near = range(block - mask.window // 2, block + mask.window // 2 + 1)
    return [t for t, seen in enumerate(row_T.tolist()) if seen and t not in near and t >= mask.leading]


def sees(mask: Blocks, query: int, key: int) -> bool:
    q, k = query // mask.size, key // mask.size
    return abs(q - k) <= mask.window // 2 or min(q, k) < mask.leading or k in drawn(mask, q)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 40), st.data())
def test_by_a_loop_over_positions(mask: Blocks, keys: int, data: st.DataObject) -> None:
    queries = data.draw(st.integers(1, keys))
    expected = [[sees(mask, keys - queries + s, t) for t in range(keys)] for s in range(queries)]
    for same in (mask, mask.simplified(keys)):
        assert same.allowed(queries, keys, CPU).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 60))
def test_random_blocks_are_earlier_and_as_many_as_there_can_be(mask: Blocks, block: int) -> None:
    if block < mask.leading:
        return  # such a block sees all
    found = drawn(mask, block)
    before = max(0, block - mask.window // 2 - mask.leading)
    assert len(found) == min(mask.random, before)
    assert all(mask.leading <= k < block - mask.window // 2 for k in found)


def test_every_sample_is_as_likely() -> None:
    """Of 6 blocks before the window, 2: each of the 15 pairs, over 3,000 seeds (chi-squared, 14 degrees of freedom)."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(3000):
        pair = tuple(drawn(Blocks(1, 1, 0, 2, seed), 6))
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 15
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 36.1  # passed by chance once in a thousand


def test_a_text_has_the_pattern_of_a_longer_one() -> None:
    mask = blocks(4, 3, 1, 3, seed=7)
    whole = mask.allowed(200, 200, CPU)
    for length in (1, 17, 64, 150):
        assert torch.equal(mask.allowed(length, length, CPU), whole[:length, :length])
    assert torch.equal(mask.allowed(3, 200, CPU), whole[-3:])  # decoding: the last queries of all positions


def test_the_pattern_is_this_one() -> None:
    """Written down, so that no later version of the draw changes what was trained with it."""
    assert [drawn(Blocks(64, 3, 1, 3, 0), block) for block in (2, 3, 5, 9, 20)] == PATTERN
    assert [drawn(Blocks(64, 3, 1, 3, 1), block) for block in (2, 3, 5, 9, 20)] != PATTERN


PATTERN = [[], [1], [1, 2, 3], [2, 5, 6], [1, 7, 14]]


@pytest.mark.parametrize("changed", [{"window": 3}, {"global_": 0}, {"random": 2}, {"seed": 6}, {"size": 3}])
def test_every_number_matters(changed: dict[str, int]) -> None:
    given = {"size": 2, "window": 1, "global_": 1, "random": 3, "seed": 5}
    one, other = (blocks(**numbers).allowed(40, 40, CPU) for numbers in (given, given | changed))
    assert not torch.equal(one, other)


def test_attention_behind_it() -> None:
    """With what a query does not see changed, its result is the same to the bit; with what it sees, it is not."""
    torch.manual_seed(0)
    mask = causal & blocks(2, 1, 1, 1)
    q, k, v = torch.randn(3, 1, 30, 2, 8)
    allowed = mask.allowed(30, 30, CPU)
    before = attention(q, k, v, mask)
    for t in random.Random(0).sample(range(30), 8):
        other = v.clone()
        other[:, t] += 1.0
        changed: Tensor = (attention(q, k, other, mask) != before).any(-1).any(-1)[0]
        assert torch.equal(changed, allowed[:, t])
