"""Tensors as attention's kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..choice import interpreted
from .tiles import TileLists


class Described:
    """A descriptor for tensors that lie alike: checked once, then given the address of each."""

    def __init__(self, made: Any) -> None:
        self._kind, self._rest = type(made), {name: value for name, value in vars(made).items() if name != "base"}

    def of(self, tensor: Tensor) -> Any:
        made = object.__new__(self._kind)
        made.__dict__.update(self._rest, base=tensor)
        return made


@dataclass(frozen=True)
class Reads:
    """How kernels read: by descriptors that the copy engine takes, where all tensors lie so that it can, else pointers.

    A tensor of queries or keys comes twice, for the two parts of its width.
    """

    forms: tuple[tuple[int, Described | None], ...]  # which tensor, and as what
    strides: tuple[int, ...]
    tma: bool

    @staticmethod
    def of(*wanted: tuple[Tensor, int, int, int]) -> Reads:
        """Of tensors [B, S, H, E], each with the rows and columns of a tile, and those of a second part."""
        tma = copied_by_engine([tensor for tensor, *_ in wanted])
        forms: list[tuple[int, Described | None]] = []
        for i, (tensor, rows, e1, e2) in enumerate(wanted):
            forms.append((i, Described(descriptor(tensor, rows, e1)) if tma else None))
            if i < 2:
                forms.append((i, Described(descriptor(tensor, rows, e2))) if tma and e2 else forms[-1])
        return Reads(tuple(forms), tuple(s for tensor, *_ in wanted for s in by_part(tensor)), tma)

    def given(self, *tensors: Tensor) -> list[Any]:
        """What a kernel is given of such tensors."""
        return [tensors[i] if form is None else form.of(tensors[i]) for i, form in self.forms]


@dataclass(frozen=True)
class Launch:
    """One launch but for its tensors."""

    grid: tuple[int]
    reads: Reads
    numbers: tuple[int | float, ...]
    constants: dict[str, Any]


def layout_of(*tensors: Tensor | None) -> object:
    """All that kernels and their choice depend on but what lies in the tensors."""
    return tuple(
        None if t is None else (t.shape, t.stride(), t.dtype, t.device, t.data_ptr() % 16 == 0) for t in tensors
    )


def copied_by_engine(tensors: Sequence[Tensor]) -> bool:
    """Whether Hopper's copy engine takes them: rows of contiguous elements, everything at multiples of 16 bytes."""
    if not interpreted() and torch.cuda.get_device_capability(tensors[0].device) < (9, 0):
        return False
    return all(
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and t.shape[-1] * t.element_size() >= 16
        and all(stride * t.element_size() % 16 == 0 and stride > 0 for stride in t.stride()[:-1])
        for t in tensors
    )


def descriptor(t_BSHE: Tensor, rows: int, columns: int) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, length, heads, width = t_BSHE.shape
    return TensorDescriptor(t_BSHE, [batch, heads, length, width], [*by_part(t_BSHE), 1], [1, 1, rows, columns])


def columns_together(t_BSHE: Tensor) -> Tensor:
    """The tensor, or a copy where the elements of a row do not lie one after another: kernels take no other."""
    return t_BSHE if t_BSHE.stride(-1) == 1 else t_BSHE.contiguous()


def by_part(t_BSHE: Tensor) -> tuple[int, int, int]:
    """Between sequences, heads and positions."""
    return t_BSHE.stride(0), t_BSHE.stride(2), t_BSHE.stride(1)


def together(k_BTGE: Tensor, v_BTGV: Tensor) -> int:
    """Heads whose keys and values fit into half of the cache together."""
    cache = torch.cuda.get_device_properties(k_BTGE.device).L2_cache_size if k_BTGE.is_cuda else 1 << 20
    head = k_BTGE.shape[1] * (k_BTGE.shape[-1] + v_BTGV.shape[-1]) * k_BTGE.element_size()
    return max(1, cache // 2 // max(1, head))


def parts(width: int) -> tuple[int, int]:
    """A width as two powers of two of at least 16, the second 0 where one is enough: 192 is 128 + 64, 80 is 64 + 16."""
    first = 1 << (width.bit_length() - 1)
    if width <= 16:
        return 16, 0
    return (first, 0) if first == width else (first, padded(width - first))


def padded(width: int) -> int:
    """The power of two, of at least 16, that takes it."""
    return max(16, 1 << (width - 1).bit_length())


def listed(lists: TileLists | None, stand_in: Tensor) -> tuple[Tensor | int, ...]:
    if lists is None:
        return stand_in, stand_in, stand_in, stand_in, 0
    return lists.whole, lists.whole_count, lists.partial, lists.partial_count, lists.stride


def or_stand_in(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """A pointer for a kernel that will not look."""
    return stand_in if tensor is None else tensor
