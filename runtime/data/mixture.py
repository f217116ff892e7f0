"""Several sources taken in turn, the same rows in the same steps however many ranks share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm

from ..problem import Problem
from .batch import Batch
from .source import Source


@dataclass
class Mixture:
    """Rows since training began, numbered over all ranks. `unit` of them in a row are of one source, and the numbers of
    these groups keep to `weights` (whole, at least 1) at all times.

    The n-th group is of the source that is furthest behind its share, the first of these where several are (the "smooth
    weighted round-robin" of nginx): of the first n groups, whatever n, a source has within one group of its share.
    So which row of which source the n-th is, is a function of n alone: a run that is resumed goes on exactly, and with
    another number of ranks, or another microbatch, no row is left out or repeated.
    """

    sources: Sequence[Source]
    weights: Sequence[int]
    unit: int
    _picks: list[int] = field(default_factory=list, repr=False)  # which source, for each group of a period so far
    _before: list[int] = field(default_factory=list, repr=False)  # how many groups of that source came earlier in it
    _counts: list[int] = field(default_factory=list, repr=False)
    _behind: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        assert len(self.sources) == len(self.weights) > 0, (self.sources, self.weights)
        assert all(weight >= 1 for weight in self.weights), self.weights
        assert self.unit >= 1, self.unit
        self._counts, self._behind = [0] * len(self.weights), [0] * len(self.weights)

    def pick(self, n: int) -> tuple[int, int]:
        """(source of the n-th group, how many groups of it came before). As many groups as the weights add up to are a
        period: then each source has just its share, and all begins anew.
        """
        periods, n = divmod(n, sum(self.weights))
        while len(self._picks) <= n:
            self._advance()
        source = self._picks[n]
        return source, periods * self.weights[source] + self._before[n]

    def batch(self, start: int, count: int) -> Batch:
        """`count` rows from the `start`-th on since training began; of several sources, within one group."""
        if len(self.sources) == 1:
            return self.sources[0].batch(start, count)
        group, at = divmod(start, self.unit)
        assert at + count <= self.unit, f"{count} rows from {start} on are not in one group of {self.unit}"
        source, before = self.pick(group)
        return self.sources[source].batch(before * self.unit + at, count)

    def batches(self, start: int, stop: int, count: int, rank: int = 0, ranks: int = 1) -> Iterator[Batch]:
        """What one of `ranks` has of the rows from `start` to `stop`, in batches of `count`. The n-th batches of all
        ranks are of the same source, so that all run the same part of a model at the same time.
        """
        self.require(count, ranks)
        assert (stop - start) % (count * ranks) == 0, (start, stop, count, ranks)
        for at in range(start, stop, count * ranks):
            yield self.batch(at + rank * count, count)

    def require(self, count: int, ranks: int = 1) -> None:
        """Raises Problem unless batches of `count` rows on each rank can be had of one source each."""
        if len(self.sources) > 1 and self.unit % (count * ranks):
            on = f" on {ranks} ranks" if ranks > 1 else ""
            raise Problem(
                f"a microbatch of {count}{on} does not divide the {self.unit} rows that come of one source at a time",
                "that is the microbatch with which the run was begun, of all its ranks together",
            )

    def rows(self, n: int) -> list[int]:
        """How many of the first n rows are of each source."""
        if len(self.sources) == 1:
            return [n]
        groups, rest = divmod(n, self.unit)
        periods, part = divmod(groups, sum(self.weights))
        source, _ = self.pick(groups)  # so that all before it are known
        counts = [periods * weight + self._picks[:part].count(i) for i, weight in enumerate(self.weights)]
        return [count * self.unit + (rest if i == source else 0) for i, count in enumerate(counts)]

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
