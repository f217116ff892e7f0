"""Batches from tokens: where each sequence lies, and in which order they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..problem import Problem
from .batch import IGNORED, Batch
from .bins import Bins, Tokens
from .order import Order


class Sequences(Protocol):
    """The sequences of a token file, by number."""

    @property
    def count(self) -> int: ...

    def take(self, index: NDArray[np.int64]) -> Batch:
        """Those with these numbers."""
        ...

    def filled(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions of each hold a token."""
        ...


def pack_sequences(tokens: Tokens, length: int, end: int, packing: str, rest: bool = False) -> Sequences:
    """Sequences of `length` tokens. packing: "bestfit" or "stream". rest: of a stream, a last one that is padded."""
    assert packing in ("bestfit", "stream"), packing
    return Bins(tokens, length, end) if packing == "bestfit" else Windows(tokens, length, end, rest)


@dataclass
class Loader:
    """Sequences of `length` tokens, shuffled anew each epoch by `seed`.

    Each document is closed by `end`. packing: "bestfit" (see Bins), or "stream": documents follow one another and are
    cut every `length` tokens, wherever that is (see Windows).

    There is no state: the n-th sequence since training began is a function of (seed, n), so a position is one number,
    and any number of ranks can share it out between them.
    """

    tokens: Tokens
    length: int
    end: int
    seed: int = 0
    packing: str = "stream"

    def __post_init__(self) -> None:
        assert self.length >= 1, f"sequences of {self.length} tokens"
        self.sequences = pack_sequences(self.tokens, self.length, self.end, self.packing)
        self._order = Order(self.count, self.seed)

    @property
    def count(self) -> int:
        """Sequences in an epoch."""
        return self.sequences.count

    @property
    def padding(self) -> float:
        """The share of positions that hold no token."""
        return 1 - self.filled(self.count) / max(self.count * self.length, 1)

    def require(self, sequences: int) -> None:
        """Raises Problem unless an epoch has at least this many sequences."""
        if self.count < sequences:
            raise Problem(
                f"too little text: {len(self.tokens):,} tokens to train on make {self.count:,} sequences of "
                f"{self.length}, and one batch takes {sequences:,}",
                "name more text with --data, or make batch.sequences or S smaller in the spec",
            )

    def batch(self, start: int, count: int) -> Batch:
        """`count` sequences from the `start`-th on since training began."""
        return self.sequences.take(self._order.indices(start, count))

    def filled(self, count: int) -> int:
        """How many tokens the first `count` sequences since training began hold."""
        if not count:
            return 0
        epochs, rest = divmod(count, self.count)
        every = int(self.sequences.filled(np.arange(self.count)).sum()) if epochs else 0
        return epochs * every + int(self.sequences.filled(self._order.indices(epochs * self.count, rest)).sum())


@dataclass
class Windows:
    """A stream of tokens cut every `length`; a sequence brings the one token more that its last position predicts, so
    every token but the first is predicted once. Less than a sequence is left over at the end, unless `rest`: then it is
    padded.
    """

    tokens: Tokens
    length: int
    end: int
    rest: bool = False

    @property
    def count(self) -> int:
        whole = windows(len(self.tokens), self.length)
        return whole + (self.rest and whole * self.length + 1 < len(self.tokens))

    def take(self, index: NDArray[np.int64]) -> Batch:
        return pack(self.tokens, index, self.length, self.end)

    def filled(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.clip(len(self.tokens) - index * self.length, 0, self.length)


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
    padding = int(np.clip(starts + length - len(tokens), 0, length).sum())
    return Batch(
        torch.from_numpy(tokens_BS), torch.from_numpy(targets_BS), torch.from_numpy(documents_BS), padding=padding
    )
