"""In which order the rows of a source come, epoch after epoch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass
class Order:
    """Rows 0 to `count` - 1, shuffled anew each epoch by `seed`. The n-th row since training began is a function of
    (seed, n).
    """

    count: int
    seed: int = 0
    _epoch: tuple[int, NDArray[np.int64]] | None = field(default=None, repr=False)

    def indices(self, start: int, count: int) -> NDArray[np.int64]:
        """The `count` rows from the `start`-th on since training began; they may reach over several epochs."""
        parts, at, stop = [], start, start + count
        while at < stop:
            epoch, first = divmod(at, self.count)
            parts.append(self._shuffled(epoch)[first : first + stop - at])
            at += len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, shuffled(self.count, self.seed, epoch))
        return self._epoch[1]


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
