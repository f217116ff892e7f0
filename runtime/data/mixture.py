"""Several sources taken in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm

from .batch import Batch
from .source import Source


@dataclass
class Mixture:
    """Batches of one source each, whose numbers keep to `weights` (whole, at least 1) at all times.

    The n-th batch is of the source that is furthest behind its share, the first of these where several are (the
    "smooth weighted round-robin" of nginx): of any n batches in a row from the start, a source has within one batch of
    its share. So which source comes, and how much of it has come before, is a function of n alone, and a run that is
    resumed goes on exactly.
    """

    sources: Sequence[Source]
    weights: Sequence[int]
    _picks: list[int] = field(default_factory=list, repr=False)  # which source, for each batch so far
    _before: list[int] = field(default_factory=list, repr=False)  # how many batches of that source came earlier
    _counts: list[int] = field(default_factory=list, repr=False)
    _behind: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        assert len(self.sources) == len(self.weights) > 0, (self.sources, self.weights)
        assert all(weight >= 1 for weight in self.weights), self.weights
        self._counts, self._behind = [0] * len(self.weights), [0] * len(self.weights)

    def pick(self, n: int) -> tuple[int, int]:
        """(source of the n-th batch, how many batches of it came before)."""
        while len(self._picks) <= n:
            self._advance()
        return self._picks[n], self._before[n]

    def batch(self, n: int, count: int) -> Batch:
        """The n-th batch since training began, when all have `count` rows."""
        source, before = self.pick(n)
        return self.sources[source].batch(before * count, count)

    def batches(self, n: int) -> list[int]:
        """How many of the first n batches are of each source."""
        if n:
            self.pick(n - 1)
        return [self._picks[:n].count(source) for source in range(len(self.sources))]

    def _advance(self) -> None:
        self._behind = [behind + weight for behind, weight in zip(self._behind, self.weights, strict=True)]
        chosen = max(range(len(self._behind)), key=lambda source: self._behind[source])
        self._behind[chosen] -= sum(self.weights)
        self._picks.append(chosen)
        self._before.append(self._counts[chosen])
        self._counts[chosen] += 1


def whole_weights(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """Whole numbers in the same proportion: (5, 3, 2) of 0.5, 0.3 and 0.2."""
    denominator = lcm(*(share.denominator for share in shares))
    return tuple(int(share * denominator) for share in shares)
