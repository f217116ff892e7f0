"""Launching row kernels: tensors as rows and columns, blocks, grids.

A kernel's parameters come in one order: pointers of what it reads and writes; strides of what has rows of its own;
for what comes again with position how many rows share one and how many there are; seed and probabilities; how many
rows; sizes; blocks; the dtype it computes in. What of this follows from shapes alone is worked out once for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

TILE = 1024  # elements that one program works on at a time, unless a row has more
FLAT_BLOCK = 2048
WIDE_BLOCK = 4096  # columns of a block where a row takes several
STAGES = 4  # rows on their way at once in a kernel that sums over rows,
STAGED_BYTES = 160 << 10  # as far as they fit in shared memory


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


@dataclass(frozen=True)
class Shape:
    """What the rows of a call are: how they are numbered, and how many columns there are by name."""

    lead: tuple[int, ...]
    sizes: Mapping[str, int]

    def of(self, layout: Layout) -> tuple[int, ...]:
        """The shape of a tensor that lies so."""
        if isinstance(layout, One):
            return self.lead
        width = self.sizes[layout.width]
        return (width,) if isinstance(layout, Vector) else (*self.lead, width)


@dataclass(frozen=True)
class Plan:
    """A launch, but for its tensors: everything that follows from their shapes, strides and dtypes."""

    grid: tuple[int]  # none: there is nothing to do
    numbers: tuple[object, ...]  # behind seed and probabilities
    strides: tuple[int, ...]  # before them
    warps: int
    copied: tuple[int, ...]  # the tensors that must lie one row behind the other first


def plan(what: Launch, shape: Shape, layouts: Sequence[Layout], tensors: Sequence[Tensor], double: bool) -> Plan:
    """How to launch a kernel for such tensors, those that it reads; `double`: computing in float64."""
    import triton
    import triton.language as tl

    wide = tl.float64 if double else tl.float32
    rows = math.prod(shape.lead)
    if what.flat:
        count = tensors[0].numel()
        scattered = tuple(i for i, t in enumerate(tensors) if not t.is_contiguous())
        return Plan((triton.cdiv(count, FLAT_BLOCK),), (count, FLAT_BLOCK, wide), (), 8, scattered)
    strides: list[int] = []
    parts: list[int] = []
    copied: list[int] = []
    for i, (layout, tensor) in enumerate(zip(layouts, tensors, strict=True)):
        stride = _stride(tensor) if isinstance(layout, Rows) else 0
        if stride is None or (not isinstance(layout, Rows) and not tensor.is_contiguous()):
            copied.append(i)
            stride = tensor.shape[-1]
        if isinstance(layout, Rows):
            strides.append(stride)
        if isinstance(layout, Part):
            parts += [math.prod(shape.lead[layout.first + tensor.ndim - 1 :]), math.prod(tensor.shape[:-1])]
    blocks = [triton.next_power_of_2(shape.sizes[c]) for c in what.columns]
    if what.wide:
        blocks = [min(block, WIDE_BLOCK) for block in blocks]
    widest = max(blocks, default=1)
    block_rows = max(1, min(triton.next_power_of_2(rows), TILE // widest))
    grid = 0 if any(shape.sizes[c] == 0 for c in what.columns) else triton.cdiv(rows, block_rows)
    stages: tuple[int, ...] = ()
    if what.sums:
        staged = block_rows * widest * sum(t.element_size() for t, kind in zip(tensors, layouts, strict=True)
                                           if isinstance(kind, Rows | Part))  # fmt: skip
        stages = (max(1, min(STAGES, STAGED_BYTES // max(1, staged))),)
        grid = min(grid, _programs(tensors[0].device) * (1 if stages[0] > 2 else 2))
    sizes = (shape.sizes[name] for name in what.sizes)
    numbers = (rows, *sizes, block_rows, *blocks, *stages, wide)
    return Plan((grid,), numbers, (*strides, *parts), _warps(block_rows * widest), tuple(copied))


def launch(plan: Plan, what: Launch, reads: Sequence[Tensor], writes: list[Tensor], extra: Sequence[object]) -> None:
    """Runs a kernel, which writes into `writes`; what is summed over rows is replaced there by its sum."""
    (programs,) = plan.grid
    partial = {}
    for i, name in enumerate(what.writes):
        if name in what.sums:
            made = torch.zeros if what.wide else torch.empty
            partial[i] = made(programs, *writes[i].shape, dtype=writes[i].dtype, device=writes[i].device)
    if programs:
        if plan.copied:
            reads = [t.contiguous() if i in plan.copied else t for i, t in enumerate(reads)]
        given = writes if not partial else [partial.get(i, t) for i, t in enumerate(writes)]
        what.kernel[plan.grid](*reads, *given, *plan.strides, *extra, *plan.numbers, num_warps=plan.warps)  # type: ignore[index]
    for i, rows in partial.items():
        writes[i] = sum_programs(rows)


def sum_programs(rows: Tensor) -> Tensor:
    """The second stage: the sums [width] of what each program summed [programs, width], always in one order."""
    if rows.device.type != "cuda" or not len(rows):
        return rows.sum(0)
    from .sum_programs import BLOCK, sum_programs_kernel

    total = torch.empty(rows.shape[1], dtype=rows.dtype, device=rows.device)
    count, width = rows.shape
    sum_programs_kernel[(-(-width // BLOCK),)](rows, total, count, width, BLOCK)
    return total


def _stride(tensor: Tensor) -> int | None:
    """The distance between rows, where it is the same between all; None where columns or rows lie otherwise."""
    width = tensor.shape[-1]
    if tensor.is_contiguous():
        return width
    if tensor.stride(-1) == 1 or width == 1:
        try:
            return tensor.view(-1, width).stride(0)
        except RuntimeError:  # its axes do not lie behind one another
            return None
    return None


def _warps(elements: int) -> int:
    """Enough that each thread has 8 elements, as far as a program can have so many."""
    return max(1, min(16, elements // 256))


def _programs(device: torch.device) -> int:
    """Of a kernel that sums over rows: as many as run at once."""
    return _multiprocessors(device.index or 0) if device.type == "cuda" else 3


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
