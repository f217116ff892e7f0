"""Compressed memory against the formulas, position by position; and what a cache keeps of it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.reference import attend_compressed, causal, choose_entries, compress, window
from dskc.runtime.serve.cache import Cache


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def by_position(x_BSW: Tensor, gate_BSW: Tensor, bias_MW: Tensor, overlap: bool) -> Tensor:
    """`compress` of one number at a time."""
    size, (batch, length, width) = len(bias_MW), x_BSW.shape
    half = width // 2 if overlap else 0
    entries = x_BSW.new_zeros(batch, length // size, width - half)
    for b in range(batch):
        for c in range(length // size):
            for e in range(width - half):
                places = [(c * size + m, m, half + e) for m in range(size)]
                if overlap and c > 0:
                    places += [((c - 1) * size + m, m, e) for m in range(size)]
                gates = torch.stack([gate_BSW[b, s, w] + bias_MW[m, w] for s, m, w in places])
                values = torch.stack([x_BSW[b, s, w] for s, _, w in places])
                entries[b, c, e] = (gates.softmax(0) * values).sum()
    return entries


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 11), st.integers(1, 4), st.booleans())
def test_compress_by_position(length: int, size: int, overlap: bool) -> None:
    x, gate, bias = rand(2, length, 4), 3 * rand(2, length, 4, seed=1), rand(size, 4)
    torch.testing.assert_close(compress(x, gate, bias, overlap), by_position(x, gate, bias, overlap))


def test_compress_has_finite_gradients() -> None:
    """The first entry's group before has gates of -inf, whose gradients must not be nan."""
    leaves = [rand(1, 7, 4).requires_grad_(), rand(1, 7, 4, seed=1).requires_grad_(), rand(3, 4).requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, gate, bias: compress(x, gate, bias, True), leaves)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 13), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_choices_and_attention_by_query(length: int, size: int, top: int, seed: int) -> None:
    heads, width, entries = 2, 3, length // size
    q, k, weight = rand(1, length, heads, width, seed=seed), rand(1, entries, width), rand(1, length, heads, seed=seed)
    q = q.round()  # so that some scores are equal
    chosen = choose_entries(q, k.round(), weight.round(), torch.arange(length), top, size)
    kv, sinks, memory = rand(1, length, width, seed=seed), rand(heads), rand(1, entries, width, seed=7)
    mask = causal & window(3)
    found = attend_compressed(q, kv, sinks, memory, chosen, size=size, mask=mask)
    every = attend_compressed(q, kv, sinks, memory, size=size, mask=mask)
    for s in range(length):
        before = [c for c in range(entries) if (c + 1) * size <= s + 1]
        score = {c: float((weight[0, s].round() * (q[0, s] @ k[0, c].round()).relu()).sum()) for c in before}
        best = sorted(before, key=lambda c: (-score[c], c))[:top]
        assert chosen[0, s].nonzero().flatten().tolist() == sorted(best)
        for result, seen in ((found, best), (every, before)):
            keys = torch.cat([kv[0, max(0, s - 2) : s + 1], memory[0, seen]])
            for h in range(heads):
                logits = torch.cat([keys @ q[0, s, h] * width**-0.5, sinks[h : h + 1]])
                torch.testing.assert_close(result[0, s, h], logits.softmax(0)[:-1] @ keys)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 4), st.booleans())
def test_a_cache_compresses_in_pieces(pieces: list[int], size: int, overlap: bool) -> None:
    x, gate, bias = rand(2, sum(pieces), 4), rand(2, sum(pieces), 4, seed=1), rand(size, 4)
    cache = Cache(2, sum(pieces))
    for times in range(2):
        end = 0
        for part, gates in zip(x.split(pieces, 1), gate.split(pieces, 1), strict=True):
            end += part.shape[1]
            if times:  # a pass that failed after this block runs again
                cache.at("block").compress("entries", part + 1, gates, bias, overlap)
            found = cache.at("block").compress("entries", part, gates, bias, overlap)
            torch.testing.assert_close(found, compress(x[:, :end], gate[:, :end], bias, overlap))
            assert cache.group_positions(part, size).tolist() == [size * c for c in range(end // size)]
            cache.advance(part.shape[1])
        cache.clear()


def test_a_cache_keeps_one_entry_for_a_group() -> None:
    cache = Cache(1, 1000)
    x = rand(1, 1000, 4)
    for part in x.split(10, 1):
        cache.compress("entries", part, part, rand(8, 4), True)
        cache.advance(10)
    store = cache._store
    (buffer,) = store.buffers.values()
    assert buffer.shape == (1, 128, 2)
    assert len(store.states) == 2 and all(tail.shape[1] < 2 * 8 for tail in store.states.values())
