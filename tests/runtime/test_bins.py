"""Best-fit packing: what a sequence holds, what it predicts, and how little of it is padding."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dskc.runtime.data import IGNORED, Bins, Loader
from dskc.runtime.data import bins as bins_module
from dskc.runtime.data.bins import best_fit, documents
from dskc.runtime.problem import Problem

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=40)  # ids of documents, without their ends


def corpus(sizes: list[int]) -> list[list[int]]:
    """Documents of so many ids that are all different, each closed by 0."""
    made, following = [], 1
    for size in sizes:
        made.append([*range(following, following + size), 0])
        following += size
    return made


def bins_of(given: list[list[int]], length: int) -> Bins:
    return Bins(np.array([each for document in given for each in document], np.uint16), length, 0)


@settings(deadline=None)
@given(sizes=SIZES, length=st.integers(2, 12))
def test_every_id_but_the_first_of_each_document_is_a_target_once(sizes: list[int], length: int) -> None:
    given = corpus(sizes)
    bins = bins_of(given, length)
    batch = bins.take(np.arange(bins.count))
    assert batch.tokens is not None and batch.targets is not None
    predicts = batch.targets != IGNORED
    found = zip(batch.tokens[predicts].tolist(), batch.targets[predicts].tolist(), strict=True)
    assert Counter(found) == Counter(pair for document in given for pair in pairwise(document))


@settings(deadline=None)
@given(sizes=SIZES, length=st.integers(2, 12))
def test_a_sequence_holds_documents_whole_with_a_boundary_between_them(sizes: list[int], length: int) -> None:
    given = corpus(sizes)
    bins = bins_of(given, length)
    owner = {each: n for n, document in enumerate(given) for each in document if each}
    batch = bins.take(np.arange(bins.count))
    assert batch.tokens is not None and batch.targets is not None and batch.documents is not None
    assert batch.tokens.shape == batch.targets.shape == batch.documents.shape == (bins.count, length)
    assert batch.documents.dtype == torch.int32
    padding, cut_documents = 0, Counter[int]()
    filled = bins.filled(np.arange(bins.count)).tolist()
    for tokens, targets, numbers, full in zip(
        batch.tokens.tolist(), batch.targets.tolist(), batch.documents.tolist(), filled, strict=True
    ):
        assert numbers[0] == 0 and all(b - a in (0, 1) for a, b in pairwise(numbers))
        for at in range(1, full):
            assert (numbers[at] != numbers[at - 1]) == (tokens[at - 1] == 0)  # a new document just after an end
        for number in range(numbers[full - 1] + 1):
            part = [token for token, own in zip(tokens, numbers, strict=True) if own == number]
            owners = {owner[token] for token in part if token}
            assert len(owners) == 1, "a part of one document"
            cut_documents.update(owners)
        # what is not filled is the end, predicts nothing, and is a document of its own
        assert tokens[full:] == [0] * (length - full) and targets[full:] == [IGNORED] * (length - full)
        assert len(set(numbers[full:])) <= 1 and numbers[full - 1] not in numbers[full:]
        padding += length - full
    assert batch.padding == padding and batch.positions == bins.count * length - padding
    for n, document in enumerate(given):  # nothing is cut but what is longer than a sequence, at its multiples
        if len(document) > 1:
            pieces = len(document) // length + (len(document) % length > 1)
            assert cut_documents[n] == pieces


@settings(deadline=None)
@given(sizes=st.lists(st.integers(2, 12), max_size=60), buffer=st.integers(1, 70))
def test_best_fit_against_a_plain_one(sizes: list[int], buffer: int) -> None:
    length = 12
    found = best_fit(np.array(sizes, np.int64), length, buffer).tolist()
    expected: list[int] = []  # how full each bin is
    for at in range(0, len(sizes), buffer):
        opened: list[int] = []
        for size in sorted(sizes[at : at + buffer], reverse=True):
            fitting = [n for n, full in enumerate(opened) if full + size <= length]
            if fitting:
                opened[max(fitting, key=lambda n: opened[n])] += size
            else:
                opened.append(size)
        expected += opened
    full = Counter[int]()
    for chosen, size in zip(found, sizes, strict=True):
        full[chosen] += size
    assert sorted(full) == list(range(len(expected)))
    assert sorted(full.values()) == sorted(expected) and max(full.values(), default=0) <= length


def test_packing_streams_within_its_buffer() -> None:
    sizes = np.random.default_rng(0).integers(2, 50, 1000)
    whole = best_fit(sizes, 50, buffer=100)
    assert whole[:300].tolist() == best_fit(sizes[:300], 50, buffer=100).tolist()
    assert (whole == best_fit(sizes, 50, buffer=100)).all()


def test_documents_are_found_whatever_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.array([5, 0, 0, 6, 7, 8, 0], np.uint16)
    expected = [[0, 2, 3], [2, 1, 4]]
    for scan in range(1, 9):
        monkeypatch.setattr(bins_module, "SCAN", scan)
        assert [each.tolist() for each in documents(tokens, 0)] == expected
    assert [each.tolist() for each in documents(tokens[:0], 0)] == [[], []]


def test_of_many_short_documents_little_is_padding() -> None:
    sizes = np.minimum(np.random.default_rng(0).lognormal(4, 1, 5000).astype(int), 900)
    bins = bins_of([[1] * size + [0] for size in sizes.tolist()], 1024)
    loader = Loader(bins.tokens, 1024, 0, packing="bestfit")
    assert loader.padding < 0.005
    assert loader.padding == 1 - bins.sizes.sum() / (bins.count * 1024)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=3, max_size=40), count=st.integers(0, 100), seed=st.integers(0, 9))
def test_tokens_that_were_taken_are_counted(sizes: list[int], count: int, seed: int) -> None:
    tokens = bins_of(corpus(sizes), 8).tokens
    for packing in ("bestfit", "stream"):
        loader = Loader(tokens, 8, 0, seed, packing)
        if not loader.count:
            continue
        assert loader.filled(count) == sum(loader.batch(n, 1).positions for n in range(count))


@settings(deadline=None)
@given(start=st.integers(0, 60), counts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_batches_do_not_depend_on_how_they_are_cut(start: int, counts: list[int]) -> None:
    loader = Loader(bins_of(corpus([3, 9, 1, 14, 5, 5, 2, 30]), 7).tokens, 7, 0, 1, "bestfit")
    whole = loader.batch(start, sum(counts))
    parts = [loader.batch(start + sum(counts[:n]), count) for n, count in enumerate(counts)]
    for name in ("tokens", "targets", "documents"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert whole.padding == sum(part.padding for part in parts)


def test_too_little_text_is_an_error_with_numbers() -> None:
    loader = Loader(bins_of(corpus([3, 3, 9]), 8).tokens, 8, 0, packing="bestfit")
    loader.require(3)
    with pytest.raises(Problem, match="18 tokens to train on make 3 sequences of 8, and one batch takes 4"):
        loader.require(4)
