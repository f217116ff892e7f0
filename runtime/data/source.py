"""What batches are taken from: a corpus of text, or a file of records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .batch import Batch
from .loader import Loader, pack_sequences
from .order import Order
from .records import TOKENS, Records
from .tokens import TokenData

TEXT = "text"  # what the source is called that all text for `tokens` is


class Source(Protocol):
    """Rows of one kind, some to train on and some held out."""

    @property
    def name(self) -> str: ...

    @property
    def count(self) -> int:
        """Rows in an epoch."""
        ...

    @property
    def positions(self) -> int:
        """Of a row, in the model's sequence, with padding."""
        ...

    def filled(self, rows: int) -> int:
        """Positions in the model's sequence of the first so many rows since training began, without padding."""
        ...

    def batch(self, start: int, count: int) -> Batch:
        """`count` rows from the `start`-th on since training began: a function of these two and the seed."""
        ...

    def held_out(self, most: int, microbatch: int) -> Iterator[Batch]:
        """The rows that are held out, evenly spread ones where they have more positions than `most`."""
        ...


@dataclass
class TextSource:
    """Sequences of `length` tokens, for an input of ids; packing as in Loader."""

    tokens: TokenData
    length: int
    seed: int
    name: str = TEXT
    input: str = TOKENS
    packing: str = "stream"

    def __post_init__(self) -> None:
        end = self.tokens.manifest.end
        self.loader = Loader(self.tokens.train, self.length, end, self.seed, self.packing)

    @property
    def count(self) -> int:
        return self.loader.count

    @property
    def positions(self) -> int:
        return self.length

    def filled(self, rows: int) -> int:
        return self.loader.filled(rows)

    def batch(self, start: int, count: int) -> Batch:
        return self._as_input(self.loader.batch(start, count))

    def held_out(self, most: int, microbatch: int) -> Iterator[Batch]:
        end = self.tokens.manifest.end
        sequences = pack_sequences(self.tokens.held, self.length, end, self.packing, rest=True)
        index = evenly(sequences.count, max(1, most // self.positions))
        for start in range(0, len(index), microbatch):
            yield self._as_input(sequences.take(index[start : start + microbatch]))

    def _as_input(self, batch: Batch) -> Batch:
        if self.input == TOKENS or batch.tokens is None:
            return batch
        return replace(batch, tokens=None, inputs={self.input: batch.tokens})


@dataclass
class RecordSource:
    """The records of a file."""

    records: Records
    seed: int

    def __post_init__(self) -> None:
        self._order = Order(self.count, self.seed)

    @property
    def name(self) -> str:
        return self.records.name

    @property
    def count(self) -> int:
        return len(self.records.train)

    @property
    def positions(self) -> int:
        return self.records.positions

    def filled(self, rows: int) -> int:
        return rows * self.records.positions

    def batch(self, start: int, count: int) -> Batch:
        return self._pick(self.records.train[self._order.indices(start, count)])

    def held_out(self, most: int, microbatch: int) -> Iterator[Batch]:
        held = self.records.held
        index = held[evenly(len(held), max(1, most // self.positions))]
        for start in range(0, len(index), microbatch):
            yield self._pick(index[start : start + microbatch])

    def _pick(self, index: NDArray[np.int64]) -> Batch:
        records, rows = self.records, torch.from_numpy(index)
        inputs = {name: x[rows] for name, x in records.inputs.items()}
        tokens = inputs.pop(TOKENS, None)
        return Batch(
            tokens,
            None if records.targets is None else records.targets[rows],
            None if tokens is None else torch.zeros(tokens.shape, dtype=torch.int32),  # each is one document
            inputs,
            {name: x[rows] for name, x in records.labels.items()},
        )


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers up to `count`, evenly spread."""
    chosen = min(count, most)
    return np.arange(chosen) * count // max(chosen, 1)
