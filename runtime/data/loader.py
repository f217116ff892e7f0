"""Batches from tokens: where each sequence lies, and in which order they come."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ..problem import Problem
from .batch import IGNORED, Batch

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass
class Loader:
    """Sequences of `length` tokens, shuffled anew each epoch by `seed`.

    Documents follow one another, each closed by `end`, and the stream is cut every `length` tokens; a sequence brings
    the one token more that its last position predicts, so every token but the first is predicted once an epoch. Less
    than a sequence is left over at the end.

    There is no state: the n-th sequence since training began is a function of (seed, n), so a position is one number,
    and any number of ranks can share it out between them.
    """

    tokens: Tokens
    length: int
    end: int
    seed: int = 0
    _order: tuple[int, NDArray[np.int64]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert self.length >= 1, f"sequences of {self.length} tokens"

    @property
    def count(self) -> int:
        """Sequences in an epoch."""
        return windows(len(self.tokens), self.length)

    def require(self, sequences: int) -> None:
        """Raises Problem unless an epoch has at least this many sequences."""
        if self.count < sequences:
            needed = sequences * self.length + 1
            raise Problem(
                f"too little text: {len(self.tokens):,} tokens to train on, and one batch of {sequences} sequences of "
                f"{self.length} tokens takes {needed:,}",
                "name more text with --data, or make batch.sequences or S smaller in the spec",
            )

    def batch(self, start: int, count: int) -> Batch:
        """`count` sequences from the `start`-th on since training began."""
        index = np.concatenate([self._indices(n, start + count) for n in self._epochs(start, count, start)])
        return pack(self.tokens, index, self.length, self.end)

    def _epochs(self, start: int, count: int, at: int) -> list[int]:
        """The numbers at which an epoch's part of this batch begins."""
        starts = []
        while at < start + count:
            starts.append(at)
            at = (at // self.count + 1) * self.count
        return starts

    def _indices(self, start: int, stop: int) -> NDArray[np.int64]:
        epoch, first = divmod(start, self.count)
        return self._shuffled(epoch)[first : first + stop - start]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, shuffled(self.count, self.seed, epoch))
        return self._order[1]


def windows(tokens: int, length: int) -> int:
    """How many whole sequences of `length` tokens, each with the one that follows, there are in so many tokens."""
    return max(0, (tokens - 1) // length)


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on seed and epoch alone, on no version of any library.

    The indices are sorted by splitmix64 of their counter (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014), which is a bijection, so no two are equal.
    """
    key = mix64(np.array([mix64(np.array([seed], np.uint64))[0] ^ np.uint64(epoch)], np.uint64))[0]
    return np.argsort(mix64(np.arange(count, dtype=np.uint64) ^ key), kind="stable")


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64: a bijection of 64-bit numbers whose output bits all depend on all input
    bits.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def pack(tokens: Tokens, index: NDArray[np.int64], length: int, end: int) -> Batch:
    """The sequences with these numbers as a Batch. A sequence that the tokens do not fill is padded with targets
    IGNORED.
    """
    starts = np.asarray(index, np.int64) * length
    cut_BT = np.full((len(starts), length + 1), end, np.int64)  # T = S + 1
    for row, start in zip(cut_BT, starts, strict=True):
        found = tokens[start : start + length + 1]
        row[: len(found)] = found
    tokens_BS, targets_BS = cut_BT[:, :-1].copy(), cut_BT[:, 1:].copy()
    ends_BS = tokens_BS == end
    targets_BS[ends_BS] = IGNORED
    documents_BS = np.zeros(tokens_BS.shape, np.int32)
    np.cumsum(ends_BS[:, :-1], axis=1, out=documents_BS[:, 1:])
    return Batch(torch.from_numpy(tokens_BS), torch.from_numpy(targets_BS), torch.from_numpy(documents_BS))
