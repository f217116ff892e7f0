"""Launching row kernels: tensors as rows and columns, blocks, grids.

A kernel's parameters come in one order: pointers of what it reads and writes; strides of what has rows of its own;
for what comes again with position how many rows share one and how many there are; seed and probabilities; how many
rows; sizes; blocks; the dtype it computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

TILE = 4096  # elements that one program works on at a time
WIDE_BLOCK = 4096  # columns of a block where a row takes several
PROGRAMS = 2  # of a kernel that sums over rows, on each multiprocessor


@dataclass(frozen=True)
class Rows:
    """A tensor with columns of its own in every row: [..., width]. `width` names a size."""

    name: str
    width: str


@dataclass(frozen=True)
class One:
    """One number for every row: [...]."""

    name: str


@dataclass(frozen=True)
class Vector:
    """The same columns for every row: [width]."""

    name: str
    width: str


@dataclass(frozen=True)
class Part:
    """Rows numbered by some of the axes only, from `first` on: cosines by position, for every sequence and head."""

    name: str
    width: str
    first: int


Layout = Rows | One | Vector | Part


@dataclass(frozen=True)
class Launch:
    """One kernel and how it is launched. `sums`: what it writes of it is summed over rows, a row for each program.

    sizes: the names of sizes it is told, those of divided widths first. columns: of those, the ones it has blocks of.
    """

    kernel: Callable[..., None]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    columns: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    seeded: bool = False
    flat: bool = False
    wide: bool = False
    sums: tuple[str, ...] = ()


@dataclass
class Call:
    """The tensors and numbers of one launch, by name."""

    lead: tuple[int, ...]
    sizes: Mapping[str, int]
    layouts: Mapping[str, Layout]
    tensors: dict[str, Tensor]
    dtype: torch.dtype  # that the kernel computes in
    seed: Tensor | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return math.prod(self.lead)


def launch(call: Call, what: Launch) -> dict[str, Tensor]:
    """Runs a kernel; gives the sums over rows that it leaves, already added up. The rest it writes into its tensors."""
    import triton
    import triton.language as tl

    wide = tl.float64 if call.dtype == torch.float64 else tl.float32
    device = next(iter(call.tensors.values())).device
    if call.rows == 0 or any(call.sizes[name] == 0 for name in what.columns):
        return {name: torch.zeros(_width(call, name), dtype=call.dtype, device=device) for name in what.sums}
    if what.flat:
        return _launch_flat(call, what, wide)
    blocks = {c: triton.next_power_of_2(call.sizes[c]) for c in what.columns}
    if what.wide:
        blocks = {c: min(block, WIDE_BLOCK) for c, block in blocks.items()}
    widest = max(blocks.values(), default=1)
    block_rows = max(1, min(triton.next_power_of_2(call.rows), TILE // widest))
    grid = triton.cdiv(call.rows, block_rows)
    partial: dict[str, Tensor] = {}
    if what.sums:
        grid = min(grid, _programs(device))
        made = torch.zeros if what.wide else torch.empty
        partial = {n: made(grid, _width(call, n), dtype=call.dtype, device=device) for n in what.sums}
    arguments = _arguments(call, what, partial)
    numbers = (call.rows, *(call.sizes[name] for name in what.sizes), block_rows, *blocks.values())
    what.kernel[(grid,)](*arguments, *numbers, wide, num_warps=_warps(block_rows * widest))  # type: ignore[index]
    return {name: rows.sum(0) for name, rows in partial.items()}  # the second stage, in one order


def _launch_flat(call: Call, what: Launch, wide: object) -> dict[str, Tensor]:
    import triton

    tensors = [call.tensors[name].contiguous() for name in (*what.reads, *what.writes)]
    count, block = tensors[0].numel(), 2048
    extra = _extra(call, what)
    grid = triton.cdiv(count, block)
    what.kernel[(grid,)](*tensors, *extra, count, block, wide, num_warps=8)  # type: ignore[index]
    return {}


def _arguments(call: Call, what: Launch, partial: Mapping[str, Tensor]) -> list[object]:
    tensors: list[Tensor] = []
    strides: list[int] = []
    parts: list[int] = []
    for name in what.reads:
        layout, tensor = call.layouts[name], call.tensors[name]
        if isinstance(layout, Rows):
            tensor, stride = as_rows(tensor)
            strides.append(stride)
        else:
            tensor = tensor.contiguous()
        if isinstance(layout, Part):
            axes = tensor.ndim - 1
            parts += [math.prod(call.lead[layout.first + axes :]), math.prod(tensor.shape[:-1])]
        tensors.append(tensor)
    tensors += [partial[name] if name in partial else call.tensors[name] for name in what.writes]
    return [*tensors, *strides, *parts, *_extra(call, what)]


def _extra(call: Call, what: Launch) -> list[object]:
    seed = [call.seed] if what.seeded else []
    return [*seed, *(call.scalars[name] for name in what.scalars)]


def as_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """A tensor whose rows begin at multiples of one stride, and that stride: itself, or a copy where it has none."""
    width = tensor.shape[-1]
    if tensor.is_contiguous():
        return tensor, width
    if tensor.stride(-1) == 1 or width == 1:
        try:
            stride = tensor.view(-1, width).stride(0)
        except RuntimeError:  # its axes do not lie behind one another
            return tensor.contiguous(), width
        return tensor, stride
    return tensor.contiguous(), width


def _width(call: Call, name: str) -> int:
    layout = call.layouts[name]
    assert not isinstance(layout, One)
    return call.sizes[layout.width]


def _warps(elements: int) -> int:
    """Enough that each thread has 16 elements, as far as a program can have so many."""
    return max(1, min(16, elements // 512))


def _programs(device: torch.device) -> int:
    return PROGRAMS * _multiprocessors(device.index or 0) if device.type == "cuda" else 3


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def names(layouts: Sequence[Layout]) -> tuple[str, ...]:
    """The names of tensors, in order."""
    return tuple(layout.name for layout in layouts)
