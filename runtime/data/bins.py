"""Best-fit packing: documents go whole into sequences where they fit, and only those longer than one are cut.

Of Ding et al., "Fewer truncations improve language modeling" (arXiv:2404.10830): best-fit decreasing, here within a
buffer of so many documents that what is left over at its end does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from .batch import IGNORED, Batch

BUFFER = 1 << 16  # pieces that are packed with one another
SCAN = 1 << 24  # tokens looked at at once
LEAST = 2  # ids of a piece that predicts something

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass
class Bins:
    """The sequences of a token file whose documents each are closed by `end`, as bins of `length` positions.

    A document of L ids takes L positions. One of more than `length` is cut into pieces of that many, which fill a bin
    each and bring the one id that follows, so that it is predicted too; what is left of it, and every shorter document,
    shares a bin with others. A left-over `end` alone predicts nothing and is left out. So each id of a document but its
    first is a target just once, and none from another document.
    """

    tokens: Tokens
    length: int
    end: int
    starts: NDArray[np.int64] = field(init=False, repr=False)  # of pieces in `tokens`, [P], those of a bin together
    sizes: NDArray[np.int64] = field(init=False, repr=False)  # of pieces, [P]
    firsts: NDArray[np.int64] = field(init=False, repr=False)  # the first piece of each bin, and P: [count + 1]

    def __post_init__(self) -> None:
        self.tokens = self.tokens.view(np.ndarray)  # slices of a memory map itself are slow
        assert not len(self.tokens) or self.tokens[-1] == self.end, "the last document is not closed"
        whole, starts, sizes = cut(*documents(self.tokens, self.end), self.length)
        bins = np.concatenate([np.arange(len(whole)), best_fit(sizes, self.length) + len(whole)])
        order = np.argsort(bins, kind="stable")
        self.starts = np.concatenate([whole, starts])[order]
        self.sizes = np.concatenate([np.full(len(whole), self.length), sizes])[order]
        self.firsts = np.concatenate([[0], np.cumsum(np.bincount(bins))]).astype(np.int64)

    @property
    def count(self) -> int:
        """Bins."""
        return len(self.firsts) - 1

    def filled(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many positions of each of these bins hold a token."""
        ends = np.concatenate([[0], np.cumsum(self.sizes)])
        found: NDArray[np.int64] = ends[self.firsts[index + 1]] - ends[self.firsts[index]]
        return found

    def take(self, index: NDArray[np.int64]) -> Batch:
        """The bins with these numbers. What is not filled has the id `end`, no target and a document of its own."""
        count, length = len(index), self.length
        cut_BT = np.full((count, length + 1), self.end, np.int64)  # T = S + 1
        lasts = self.firsts[index + 1]
        sizes: list[int] = []
        numbers: list[int] = []
        padding = 0
        for row, (first, last) in enumerate(zip(self.firsts[index].tolist(), lasts.tolist(), strict=True)):
            at = 0
            here = self.sizes[first:last].tolist()
            for start, size in zip(self.starts[first:last].tolist(), here, strict=True):
                stop = at + size
                found = self.tokens[start : start + size + (stop == length)]
                cut_BT[row, at : at + len(found)] = found
                at = stop
            sizes += [*here, length - at]
            numbers += range(len(here) + 1)
            padding += length - at
        tokens_BS, targets_BS = cut_BT[:, :-1].copy(), cut_BT[:, 1:].copy()
        targets_BS[tokens_BS == self.end] = IGNORED
        documents_BS = np.repeat(np.array(numbers, np.int32), sizes).reshape(count, length)
        return Batch(
            torch.from_numpy(tokens_BS), torch.from_numpy(targets_BS), torch.from_numpy(documents_BS), padding=padding
        )


def documents(tokens: Tokens, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(start, ids) of each document, its `end` counted."""
    found = [np.flatnonzero(tokens[at : at + SCAN] == end) + at for at in range(0, len(tokens), SCAN)]
    stops = np.concatenate([np.empty(0, np.int64), *found]) + 1
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)]
    return starts, stops - starts


def cut(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(starts of the pieces of `length` ids, starts of the shorter ones, their sizes), in the order of documents."""
    times, rest = sizes // length, sizes % length
    before = np.cumsum(times) - times
    whole = np.repeat(starts, times) + length * (np.arange(int(times.sum())) - np.repeat(before, times))
    kept = rest >= LEAST
    return whole, (starts + times * length)[kept], rest[kept]


def best_fit(sizes: NDArray[np.int64], length: int, buffer: int = BUFFER) -> NDArray[np.int64]:
    """The bin of each piece: of `buffer` after `buffer` of them the largest first, each into the fullest bin that has
    room.
    """
    bins = np.empty(len(sizes), np.int64)
    count = 0
    for begin in range(0, len(sizes), buffer):
        part = sizes[begin : begin + buffer]
        order = np.argsort(-part, kind="stable")
        found, count = _fit(part[order].tolist(), length, count)
        bins[begin + order] = found
    return bins


def _fit(sizes: list[int], length: int, count: int) -> tuple[list[int], int]:
    """The bin of each, when they are numbered from `count` on, and the next number."""
    roomy: list[list[int]] = [[] for _ in range(length + 1)]  # bins by the room that they have
    rooms = 0  # bit n is set where there is a bin with room n
    found = []
    for size in sizes:
        enough = rooms >> size
        if enough:
            room = size + (enough & -enough).bit_length() - 1
            chosen = roomy[room].pop()
            if not roomy[room]:
                rooms ^= 1 << room
        else:
            room, chosen = length, count
            count += 1
        found.append(chosen)
        left = room - size
        if left >= LEAST:
            roomy[left].append(chosen)
            rooms |= 1 << left
    return found, count
