"""What the expressions of a map do to tensors, and their inverse: one map reads checkpoints and writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import Problem
from .rules import Expr, Interleave, PermuteRope, Rows, Stack, Stacked, TensorNamed, Transpose

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """Part of a checkpoint's tensor: all of it, or the entries `index` (int64, in order) along `axis`."""

    name: str
    axis: int = 0
    index: Tensor | None = None


def apply(expr: Expr, read: Callable[[str], Tensor]) -> Tensor:
    """The value of an expression, with `read` giving the tensors of the checkpoint by name."""
    match expr:
        case TensorNamed(name):
            return read(name)
        case Stacked(parts):
            return torch.stack([apply(part, read) for part in parts])
        case Transpose(of):
            return apply(of, read).transpose(-2, -1)
        case Rows(of, start, stop):
            x = apply(of, read)
            return x.narrow(_row_axis(x.ndim), start, stop - start)
        case Interleave(of):
            x = apply(of, read)
            axis = _row_axis(x.ndim)
            return x.index_select(axis, _dealt(expr, x.shape[axis]))
        case PermuteRope(of, heads, rotary):
            return half_from_interleaved(apply(of, read), heads, rotary)
        case Stack():
            raise AssertionError("a Stack is written out before it is applied")


def invert(expr: Expr, value: Tensor, shapes: Callable[[str], Shape]) -> list[tuple[Region, Tensor]]:
    """Where each piece of an expression's value lies in the checkpoint: regions and what they hold.

    `shapes` gives the shapes of the checkpoint's tensors; only those of which rows are taken are asked for.
    """
    match expr:
        case Stacked(parts):
            return [piece for i, part in enumerate(parts) for piece in invert(part, value[i], shapes)]
        case PermuteRope(of, heads, rotary):
            return invert(of, interleaved_from_half(value, heads, rotary), shapes)
        case Transpose(of):
            return invert(of, value.transpose(-2, -1), shapes)
        case TensorNamed(name):
            return [(Region(name), value)]
        case Rows() | Interleave():
            region, flipped = _region(expr, shapes)
            return [(region, value.transpose(-2, -1) if flipped else value)]
        case Stack():
            raise AssertionError("a Stack is written out before it is inverted")


def assemble(pieces: Iterable[tuple[Region, Tensor]], shapes: Callable[[str], Shape]) -> dict[str, Tensor]:
    """The checkpoint's tensors from all their pieces (`invert` of every parameter), in the dtype of the pieces."""
    tensors: dict[str, Tensor] = {}
    for region, value in pieces:
        if region.index is None:
            tensors[region.name] = value
            continue
        if region.name not in tensors:
            tensors[region.name] = value.new_empty(shapes(region.name))
        tensors[region.name].index_copy_(region.axis, region.index, value)
    return tensors


def stored_shapes(expr: Expr, shape: Shape) -> Iterable[tuple[str, Shape]]:
    """The tensors of which an expression of this shape is made, and their shapes: of those cut, as far as it shows."""
    match expr:
        case TensorNamed(name):
            yield name, shape
        case Stacked(parts):
            for part in parts:
                yield from stored_shapes(part, shape[1:])
        case Transpose(of):
            yield from stored_shapes(of, (*shape[:-2], shape[-1], shape[-2]))
        case PermuteRope(of):
            yield from stored_shapes(of, shape)
        case Rows(of) | Interleave(of):
            axis = _row_axis(len(shape))
            rows = expr.stop if isinstance(expr, Rows) else shape[axis] * expr.parts
            yield from stored_shapes(of, (*shape[:axis], rows, *shape[axis + 1 :]))
        case Stack():
            raise AssertionError("a Stack is written out before its tensors are known")


def shape_of(expr: Expr, shapes: Callable[[str], Shape]) -> Shape:
    """The shape of an expression's value. Problem where the checkpoint's tensors do not have what it asks for."""
    read = {}

    def blank(name: str) -> Tensor:
        read[name] = shapes(name)
        return torch.empty(read[name], device="meta")

    try:
        return tuple(apply(expr, blank).shape)
    except (RuntimeError, IndexError) as error:
        tensors = ", ".join(f"`{name}` {list(shape)}" for name, shape in read.items())
        raise Problem(f"the map cannot be applied to {tensors}: {error}") from error


def regions(expr: Expr, shapes: Callable[[str], Shape]) -> list[Region]:
    """The parts of the checkpoint's tensors that an expression uses."""
    match expr:
        case TensorNamed(name):
            return [Region(name)]
        case Stacked(parts):
            return [region for part in parts for region in regions(part, shapes)]
        case Rows() | Interleave():
            return [_region(expr, shapes)[0]]
        case _:
            return regions(expr.of, shapes)


def _region(expr: Expr, shapes: Callable[[str], Shape]) -> tuple[Region, bool]:
    """The part of a tensor that rows of rows are, and whether its last two axes are exchanged."""
    match expr:
        case TensorNamed(name):
            return Region(name), False
        case Transpose(of):
            region, flipped = _region(of, shapes)
            return region, not flipped
        case Rows(of) | Interleave(of):
            region, flipped = _region(of, shapes)
            shape = shapes(region.name)
            axis = _row_axis(len(shape)) + (1 if flipped else 0)
            if region.index is not None and region.axis != axis:
                raise Problem(f"the map takes both rows and columns of `{region.name}`, which is not supported")
            before = torch.arange(shape[axis]) if region.index is None else region.index
            if isinstance(expr, Rows):
                return Region(region.name, axis, before[expr.start : expr.stop]), flipped
            return Region(region.name, axis, before[_dealt(expr, len(before))]), flipped
    raise AssertionError(f"rows are taken of stored tensors, not of {expr}")


def _row_axis(axes: int) -> int:
    return max(axes - 2, 0)


def _dealt(expr: Interleave, size: int) -> Tensor:
    """Which of `size` rows belong to this part."""
    if size % (expr.parts * expr.block):
        raise RuntimeError(f"{size} rows cannot be dealt to {expr.parts} parts, {expr.block} at a time")
    return torch.arange(size).view(-1, expr.parts, expr.block)[:, expr.part].flatten()


def half_from_interleaved(x: Tensor, heads: int, rotary: int | None = None) -> Tensor:
    """Rows of each head from the order of interleaved rotary pairs to that of half-split ones; x [heads * E, ...]."""
    return x[_half_order(x.shape[0], heads, rotary)]


def interleaved_from_half(x: Tensor, heads: int, rotary: int | None = None) -> Tensor:
    """The inverse of `half_from_interleaved`."""
    return x[_half_order(x.shape[0], heads, rotary).argsort()]


def _half_order(rows: int, heads: int, rotary: int | None) -> Tensor:
    width = rows // heads
    turned = width if rotary is None else rotary
    if rows % heads or turned > width or turned % 2:
        raise RuntimeError(f"{rows} rows are not {heads} heads with {'an even width' if rotary is None else rotary}")
    order = torch.arange(width)
    order[:turned] = torch.arange(turned).view(-1, 2).T.flatten()
    return (torch.arange(heads).unsqueeze(-1) * width + order).flatten()
