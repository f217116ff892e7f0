"""What decoding keeps of the positions before: the keys and values of each layer, or whatever a block says `keep` of,
and what operations that go along the sequence carry on, such as the memory of a delta rule."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import Problem
from ..reference.state import State

FIRST_POSITIONS = 64  # of a new buffer; it doubles when full, so that short texts stay cheap


@dataclass
class _Store:
    """What all views of one cache share."""

    batch: int
    capacity: int
    device: torch.device
    length: int = 0  # positions kept in every layer
    buffers: dict[tuple[str | int, ...], Tensor] = field(default_factory=dict)
    states: dict[tuple[str | int, ...], Tensor] = field(default_factory=dict)  # behind the last position that counts,
    coming: dict[tuple[str | int, ...], Tensor] = field(default_factory=dict)  # and those of the pass that is running


@dataclass(frozen=True)
class _State:
    """One operation's state, of constant size (see `reference.state`)."""

    store: _Store
    path: tuple[str | int, ...]

    def read(self) -> Tensor | None:
        return self.store.states.get(self.path)

    def write(self, value: Tensor) -> None:
        store = self.store
        assert value.shape[0] == store.batch, f"a batch of {value.shape[0]}, in a cache of {store.batch}"
        store.coming[self.path] = value.detach()


class Cache:
    """Tensors of `batch` sequences of equal length, of up to `capacity` positions, under the paths of their blocks.

    A forward pass asks for `positions(tokens)`, gives each block its view `at(...)`, in which the block says
    `keep(...)` and gets its `state(...)`, and ends with `advance(n)`. Only then do the new positions and states count:
    a pass that failed midway can simply run again.
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

    def positions(self, tokens: Tensor) -> Tensor:
        """The positions of tokens [B, S]: int64 [S], from how many are kept on.

        Problem when they would not fit.
        """
        start, stop = self._span(tokens)
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

    def state(self, *names: str | int) -> State:
        """What an operation carries from pass to pass, under the names of the block's view and these."""
        return _State(self._store, (*self._path, *names))

    def advance(self, n: int) -> None:
        """Count the n positions of this pass, kept by every block, as past, and its states as those to go on from."""
        store = self._store
        assert 0 <= n <= store.capacity - store.length, f"cannot advance by {n}"
        store.length += n
        store.states, store.coming = {**store.states, **store.coming}, {}

    def clear(self) -> None:
        """Forget all positions and states; the memory of positions stays, for the next text."""
        self._store.length = 0
        self._store.states, self._store.coming = {}, {}

    def _span(self, new: Tensor) -> tuple[int, int]:
        store = self._store
        assert new.shape[0] == store.batch, f"a batch of {new.shape[0]}, in a cache of {store.batch}"
        stop = store.length + new.shape[1]
        if stop > store.capacity:
            raise Problem(
                f"the text is {stop:,} tokens long, and the cache holds {store.capacity:,}",
                help="generate fewer tokens, shorten the prompt, or make a larger cache",
            )
        return store.length, stop

    def _append(self, name: str, new: Tensor) -> Tensor:
        start, stop = self._span(new)
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
