"""Batches from tokens: where each sequence lies, and in which order they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..problem import Problem
from .batch import IGNORED, Batch
from .order import Order

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

    def __post_init__(self) -> None:
        assert self.length >= 1, f"sequences of {self.length} tokens"
        self._order = Order(self.count, self.seed)

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
        return pack(self.tokens, self._order.indices(start, count), self.length, self.end)


def windows(tokens: int, length: int) -> int:
    """How many whole sequences of `length` tokens, each with the one that follows, there are in so many tokens."""
    return max(0, (tokens - 1) // length)


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
