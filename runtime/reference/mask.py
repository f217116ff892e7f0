"""Which keys a query may see: `causal`, `window(n)`, `blocks(...)`, `documents(ids)`, combined with `&` and `|`."""

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


@dataclass(frozen=True, slots=True)
class Blocks(Mask):
    """A query sees whole blocks of `size` positions (BigBird, arXiv:2007.14062, section 2): `window` of them with its
    own in the middle, the first `leading`, and `random` others; and those in the first `leading` see all.

    The random ones stand before the window and behind the leading ones, and are drawn from `seed` and the index of the
    query's block alone: a text has the pattern of any longer one, on every device, and decoding that of training.
    """

    size: int
    window: int
    leading: int
    random: int
    seed: int

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        query_S, key_T = _positions(queries, keys, device)
        query_S, key_T = query_S // self.size, key_T // self.size  # from here on, indices of blocks
        reach = self.window // 2
        allowed = (key_T >= query_S - reach) & (key_T <= query_S + reach)
        allowed |= (key_T < self.leading) | (query_S < self.leading)
        for drawn_S in self._drawn(query_S, query_S - reach - self.leading):
            allowed |= key_T == drawn_S
        return allowed

    def simplified(self, keys: int) -> Mask:
        if torch.compiler.is_exporting():
            return self
        return everything if keys <= self.size * max(self.window // 2 + 1, self.leading) else self

    def _drawn(self, block_S: Tensor, among_S: Tensor) -> list[Tensor]:
        """The random blocks of each query's block, out of `among_S` of them: distinct, and -1 where there are fewer.

        Floyd's way to draw a sample without putting it back (doi:10.1145/30401.315746): the i-th is one of the first
        m - n + i + 1, or the last of those where that one is taken.
        """
        drawn: list[Tensor] = []
        start_S = _hash(block_S + _hash(torch.full_like(block_S, self.seed)))
        for i in range(self.random):
            last_S = among_S - self.random + i
            one_S = _hash(start_S + i) % (last_S + 1).clamp(min=1) + self.leading
            for other_S in drawn:
                one_S = torch.where(one_S == other_S, last_S + self.leading, one_S)
            drawn.append(torch.where(last_S >= 0, one_S, -1))
        return drawn


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


def blocks(size: int = 64, window: int = 3, global_: int = 1, random: int = 3, seed: int = 0) -> Mask:
    """The block-sparse mask of BigBird (see `Blocks`), by its defaults; `causal & blocks()` sees no later position."""
    assert size >= 1 and window >= 1 and window % 2 == 1, f"{window} blocks of {size} have none in the middle"
    assert min(global_, random, seed) >= 0, "there are no fewer than 0"
    return Blocks(size, window, global_, random, seed)


def documents(ids_BT: Tensor | None) -> Mask:
    """Keys of the query's own document, by the id of each position (integers, [B, T]); None is a single document."""
    return everything if ids_BT is None else Documents(ids_BT)


def _positions(queries: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions of queries [S, 1] and keys [T]."""
    return torch.arange(keys - queries, keys, device=device).unsqueeze(-1), torch.arange(keys, device=device)


def _hash(x: Tensor) -> Tensor:
    """32 bits that look random for each integer (int64), the same on every device: no product here overflows.

    Source: github.com/skeeto/hash-prospector, the two-round function of least bias, as listed in its README.
    """
    x = x & 0xFFFFFFFF
    x = ((x ^ (x // 2**16)) * 0x21F0AAAD) & 0xFFFFFFFF
    x = ((x ^ (x // 2**15)) * 0x735A2D97) & 0xFFFFFFFF
    return x ^ (x // 2**15)  # quotients, not shifts: core ATen has none
