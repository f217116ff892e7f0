"""Which keys a query may see: `causal`, `window(n)`, `documents(ids)`, combined with `&` and `|`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Mask:
    """A rule over pairs of positions. Queries are the last S of T positions: query s stands at position T - S + s."""

    __slots__ = ()

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        """True where the query may see the key: bool [S, T], or [B, S, T] where it differs between sequences."""
        raise NotImplementedError

    def simplified(self, keys: int) -> Mask:
        """An equal mask for sequences of `keys` positions, without what cannot matter there."""
        return self

    def __and__(self, other: Mask) -> Mask:
        if isinstance(self, Everything):
            return other
        return self if isinstance(other, Everything) else Both(self, other)

    def __or__(self, other: Mask) -> Mask:
        if isinstance(self, Everything) or isinstance(other, Everything):
            return everything
        return Either(self, other)


@dataclass(frozen=True, slots=True)
class Everything(Mask):
    """Every query sees every key."""

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return torch.ones(queries, keys, dtype=torch.bool, device=device)


@dataclass(frozen=True, slots=True)
class Causal(Mask):
    """A query at position i sees the keys at j <= i."""

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        query_S, key_T = _positions(queries, keys, device)
        return key_T <= query_S


@dataclass(frozen=True, slots=True)
class Window(Mask):
    """A query at position i sees the keys at |i - j| < size: with `causal`, itself and the size - 1 before it.

    That is `sliding_window` of Mistral (arXiv:2310.06825, section 2) and Qwen as transformers applies it: j > i - size.
    """

    size: int

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        query_S, key_T = _positions(queries, keys, device)
        return (key_T > query_S - self.size) & (key_T < query_S + self.size)  # their difference would be int64 [S, T]

    def simplified(self, keys: int) -> Mask:
        if torch.compiler.is_exporting():  # the program is for other lengths too
            return self
        return everything if self.size >= keys else self


@dataclass(frozen=True, slots=True, eq=False)
class Documents(Mask):
    """A query sees the keys of its own document: those whose id is equal. ids_BT holds the id of each position."""

    ids_BT: Tensor

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        assert self.ids_BT.shape[-1] == keys, f"{self.ids_BT.shape[-1]} document ids for {keys} positions"
        return self.ids_BT[:, keys - queries :, None] == self.ids_BT[:, None, :]


@dataclass(frozen=True, slots=True)
class Both(Mask):
    a: Mask
    b: Mask

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return self.a.allowed(queries, keys, device) & self.b.allowed(queries, keys, device)

    def simplified(self, keys: int) -> Mask:
        return self.a.simplified(keys) & self.b.simplified(keys)


@dataclass(frozen=True, slots=True)
class Either(Mask):
    a: Mask
    b: Mask

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return self.a.allowed(queries, keys, device) | self.b.allowed(queries, keys, device)

    def simplified(self, keys: int) -> Mask:
        return self.a.simplified(keys) | self.b.simplified(keys)


everything = Everything()
causal = Causal()


def window(size: int) -> Mask:
    """Keys less than `size` positions away, on either side; `causal & window(n)` is the sliding window of Mistral."""
    assert size >= 1, f"a window of {size} sees no key"
    return Window(size)


def documents(ids_BT: Tensor | None) -> Mask:
    """Keys of the query's own document, by the id of each position (integers, [B, T]); None is a single document."""
    return everything if ids_BT is None else Documents(ids_BT)


def _positions(queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions of queries [S, 1] and keys [T]."""
    return torch.arange(keys - queries, keys, device=device).unsqueeze(-1), torch.arange(keys, device=device)
