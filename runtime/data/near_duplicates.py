"""Documents that are nearly the same as an earlier one, found by MinHash and banding.

A document is the set of its runs of five words. Two sets have the Jaccard similarity |A and B| / |A or B|, and the
smallest member of each under one random order is the same with just that probability (Broder, "On the resemblance and
containment of documents", 1997). So the share of 128 orders that agree estimates it, with a standard deviation of at
most 0.5 / sqrt(128) = 0.044. Only documents that agree in a whole band of orders are compared (Leskovec, Rajaraman,
Ullman, "Mining of massive datasets", section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from .order import mix64

WORDS = 5  # of a shingle
ORDERS = 128
RECALL = 0.99  # of the pairs that are just as similar as asked for, so many are compared at least
CHUNK = 1024  # shingles put in order at once: what fits in a core's cache
KNOWN = 1 << 20  # words whose hash is remembered

Signature = NDArray[np.uint32]  # [ORDERS]

# Orders of 32-bit numbers: n -> a n + b, which for an odd `a` is a permutation of them. (Of 64 bits they would take
# longer.)
_A = (mix64(np.arange(ORDERS, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
_B = (mix64(np.arange(ORDERS, 2 * ORDERS, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)
_POWERS = [pow(0x9E3779B97F4A7C15, WORDS - 1 - n, 2**64) for n in range(WORDS)]


@dataclass
class Sketch:
    """The signature of a text that is given in pieces, each of whole words. Case and white space do not count."""

    known: dict[str, int] = field(default_factory=dict)  # hashes of words, shared between texts
    _smallest: Signature = field(default_factory=lambda: np.full(ORDERS, 2**32 - 1, np.uint32))
    _carried: list[int] = field(default_factory=list)
    _empty: bool = True

    def add(self, text: str) -> None:
        words = self._carried + [self._hash(word) for word in text.casefold().split()]
        if len(words) >= WORDS:
            self._put(shingles(np.array(words, np.uint64)))
        self._carried = words[-(WORDS - 1) :]

    def signature(self) -> Signature:
        """Of all that was added; a text of fewer than five words is one shingle."""
        if self._empty:
            self._put(shingles(np.array((self._carried + [0] * WORDS)[:WORDS], np.uint64)))
        return self._smallest

    def _put(self, hashes: NDArray[np.uint32]) -> None:
        self._empty = False
        np.minimum(self._smallest, smallest(hashes), out=self._smallest)

    def _hash(self, word: str) -> int:
        found = self.known.get(word)
        if found is None:
            if len(self.known) >= KNOWN:
                self.known.clear()
            digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self.known[word] = found = int.from_bytes(digest, "little")
        return found


def shingles(words: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """A hash of each run of five words, of the hashes [W] of the words: [W - 4]."""
    count = len(words) - WORDS + 1
    total = np.zeros(count, np.uint64)
    for n, power in enumerate(_POWERS):
        total += words[n : n + count] * np.uint64(power)
    return (mix64(total) >> np.uint64(32)).astype(np.uint32)


def smallest(hashes: NDArray[np.uint32]) -> Signature:
    """The smallest of the hashes under each order: [ORDERS]."""
    found = np.full(ORDERS, 2**32 - 1, np.uint32)
    for at in range(0, len(hashes), CHUNK):
        ordered = _A[:, None] * hashes[None, at : at + CHUNK]
        ordered += _B[:, None]
        np.minimum(found, ordered.min(axis=1), out=found)
    return found


def similarity(one: Signature, other: Signature) -> float:
    """The estimate of how similar two sets are."""
    return float((one == other).mean())


def rows_of_band(threshold: float) -> int:
    """How many orders make a band: as many as leave pairs of this similarity a chance of RECALL to be compared.

    They are when all orders of one band agree: with probability 1 - (1 - s^rows)^bands.
    """
    fitting = [rows for rows in range(1, ORDERS + 1) if 1 - (1 - threshold**rows) ** (ORDERS // rows) >= RECALL]
    return max(fitting, default=1)


def near_duplicates(signatures: NDArray[np.uint32], threshold: float) -> dict[int, tuple[int, float]]:
    """Of signatures [N, ORDERS], those to drop, each with the earlier one that is kept and how similar they are.

    In their order: one is dropped when it is at least as similar as `threshold` to an earlier one that is not. So the
    first of each cluster stays, and nothing goes but for a text that stays.
    """
    groups = _groups(signatures, rows_of_band(threshold))
    kept: dict[int, list[int]] = {}  # the documents of each group that are not dropped
    dropped: dict[int, tuple[int, float]] = {}
    for n in np.flatnonzero((groups >= 0).any(axis=1)).tolist():
        own = groups[n][groups[n] >= 0].tolist()
        others = np.array(sorted({other for group in own for other in kept.get(group, ())}), np.int64)
        shares = (signatures[others] == signatures[n]).mean(axis=1)
        similar = np.flatnonzero(shares >= threshold)
        if len(similar):
            dropped[n] = int(others[similar[0]]), float(shares[similar[0]])
            continue
        for group in own:
            kept.setdefault(group, []).append(n)
    return dropped


def sign(texts: Iterable[Iterable[str]], count: int, done: Callable[[int], object]) -> NDArray[np.uint32]:
    """The signatures [N, ORDERS] of so many texts, each in pieces; `done` is told of each that it is."""
    found = np.empty((count, ORDERS), np.uint32)
    known: dict[str, int] = {}
    for n, pieces in enumerate(texts):
        sketch = Sketch(known)
        for piece in pieces:
            sketch.add(piece)
        found[n] = sketch.signature()
        done(1)
    return found


def _groups(signatures: NDArray[np.uint32], rows: int) -> NDArray[np.int64]:
    """[N, bands]: a number for all that agree in a band, -1 for what is alone."""
    found = []
    start = 0
    for band in range(ORDERS // rows):
        keys = np.zeros(len(signatures), np.uint64)
        for column in signatures.T[band * rows : (band + 1) * rows]:
            keys = mix64(keys ^ column.astype(np.uint64))
        _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        found.append(np.where(sizes[group] > 1, group + start, -1))
        start += len(sizes)
    return np.stack(found, axis=1)
