"""What decoding keeps of the positions before: the keys and values of each layer, or whatever a block says `keep`
of."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import Problem

FIRST_POSITIONS = 64  # of a new buffer; it doubles when full, so that short texts stay cheap


@dataclass
class _Store:
    """What all views of one cache share."""

    batch: int
    capacity: int
    device: torch.device
    length: int = 0  # positions kept in every layer
    buffers: dict[tuple[str | int, ...], Tensor] = field(default_factory=dict)


class Cache:
    """Tensors of `batch` sequences of equal length, of up to `capacity` positions, under the paths of their blocks.

    A forward pass asks for `positions(tokens)`, gives each block its view `at(...)`, in which the block says
    `keep(...)`, and ends with `advance(n)`. Only then do the new positions count: a pass that failed midway can simply
    run again.
    """

    def __init__(self, batch: int, capacity: int, device: torch.device | str = "cpu") -> None:
        if batch < 1 or capacity < 1:
            raise Problem(f"a cache of {batch} sequences of {capacity} positions cannot hold anything")
        self._store = _Store(batch, capacity, torch.device(device))
        self._path: tuple[str | int, ...] = ()

    @property
    def length(self) -> int:
        """How many positions are kept."""
        return self._store.length

    def at(self, *names: str | int) -> Cache:
        """The view of the block under these names: it shares the positions, and keeps its tensors apart."""
        view = object.__new__(Cache)
        view._store = self._store
        view._path = (*self._path, *names)
        return view

    def positions(self, *inputs: Tensor) -> Tensor:
        """The positions of tokens [B, S], or of several inputs [B, N, ...] as one sequence: int64 [S], from how many
        are kept on.

        Problem when they would not fit.
        """
        start, stop = self._span(inputs[0].shape[0], sum(x.shape[1] for x in inputs))
        return torch.arange(start, stop, device=self._store.device)

    def keep(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Put tensors [B, S, ...] after what was kept under the same names, and return all positions so far: [B, T,
        ...].

        What returns, in the order given, are views into the cache's memory: good until the next pass. The first tensor
        of a name settles its dtype and shape. Problem when the capacity is passed.
        """
        return tuple(self._append(name, new) for name, new in tensors.items())

    def whole(self) -> None:
        """What a model asks for whose positions see later ones. Problem where something is kept already: it would be
        other than it is, had it seen what comes now."""
        if self._store.length:
            raise Problem(
                "this model's positions see later ones, so that it takes a text at once and goes on with none",
                help="give it the whole text in one pass, or make its masks `causal & ...` to generate with it",
            )

    def advance(self, n: int) -> None:
        """Count the n positions of this pass, kept by every block, as past."""
        assert 0 <= n <= self._store.capacity - self._store.length, f"cannot advance by {n}"
        self._store.length += n

    def clear(self) -> None:
        """Forget all positions; the memory stays, for the next text."""
        self._store.length = 0

    def _span(self, batch: int, length: int) -> tuple[int, int]:
        store = self._store
        assert batch == store.batch, f"a batch of {batch}, in a cache of {store.batch}"
        stop = store.length + length
        if stop > store.capacity:
            raise Problem(
                f"the text is {stop:,} tokens long, and the cache holds {store.capacity:,}",
                help="generate fewer tokens, shorten the prompt, or make a larger cache",
            )
        return store.length, stop

    def _append(self, name: str, new: Tensor) -> Tensor:
        start, stop = self._span(*new.shape[:2])
        store, path = self._store, (*self._path, name)
        buffer = store.buffers.get(path)
        if buffer is None or buffer.shape[1] < stop:
            buffer = store.buffers[path] = self._grown(buffer, new, start, stop)
        assert (new.dtype, new.shape[2:]) == (buffer.dtype, buffer.shape[2:]), (
            f"{'.'.join(map(str, path))} was {buffer.dtype} {list(buffer.shape[2:])}, "
            f"and now is {new.dtype} {list(new.shape[2:])}"
        )
        buffer[:, start:stop] = new.detach()
        return buffer[:, :stop]

    def _grown(self, old: Tensor | None, new: Tensor, start: int, stop: int) -> Tensor:
        store = self._store
        size = min(store.capacity, max(stop, FIRST_POSITIONS, 0 if old is None else 2 * old.shape[1]))
        buffer = torch.empty(store.batch, size, *new.shape[2:], dtype=new.dtype, device=store.device)
        if old is not None:
            buffer[:, :start] = old[:, :start]
        return buffer
