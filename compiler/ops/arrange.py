"""Splitting, joining, shifting and picking: what moves numbers without changing them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value, product
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import ArrowValue
from .base import Operation, RowOperation, Saved, ShapeError, check_all_but_last, common_dtype, last_axis

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing


@dataclass(frozen=True, slots=True)
class Split(Operation):
    """The last axis, cut into these."""

    into: tuple[Axis, ...]

    def written_sizes(self) -> tuple[Dim, ...]:
        return tuple(axis.size for axis in self.into)

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        total = Dim.of(0)
        for axis in self.into:
            total = total + axis.size
        whole = last_axis(x, "x").size
        if total != whole:
            raise ShapeError(f"the parts make `{total}`, and the axis is `{whole}`", "into")
        return tuple(x.with_axes((*x.axes[:-1], axis)) for axis in self.into)

    def emit(self, call: Call) -> Text:
        sizes = ", ".join(call.size(axis.size) for axis in self.into)
        return call.reference("split")(call.operand(0), call.text(f"({sizes})"))


@dataclass(frozen=True, slots=True)
class Reshape(Operation):
    """The last axes read as others of the same size together: heads as one axis, or one axis as heads."""

    source: tuple[Axis, ...]
    target: tuple[Axis, ...]

    def written_sizes(self) -> tuple[Dim, ...]:
        return tuple(axis.size for axis in self.target) if len(self.target) > 1 else ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        count = len(self.source)
        found = tuple(axis.size for axis in x.axes[len(x.axes) - count :])
        if len(x.axes) < count or found != tuple(axis.size for axis in self.source):
            raise ShapeError(f"the last axes of {x} are not those before the arrow", "x")
        before, after = (product(axis.size for axis in axes) for axes in (self.source, self.target))
        if before != after:
            raise ShapeError(f"`{before}` numbers cannot be read as `{after}`", "axes")
        return (x.with_axes((*x.axes[: len(x.axes) - count], *self.target)),)

    def emit(self, call: Call) -> Text:
        x = call.operand(0)
        if len(self.source) > 1:
            x = x.method(f"flatten({-len(self.source)})")
        if len(self.target) > 1:
            x = x.method(f"unflatten(-1, ({', '.join(call.size(axis.size) for axis in self.target)}))")
        return x


@dataclass(frozen=True, slots=True)
class Concat(Operation):
    """Tensors joined along the last axis."""

    def infer(self, *parts: TensorType) -> tuple[TensorType, ...]:
        first = parts[0]
        for part in parts:
            check_all_but_last(first, part)
        size = Dim.of(0)
        for part in parts:
            size = size + part.axes[-1].size
        names = "".join(dict.fromkeys(part.axes[-1].name for part in parts))
        return (TensorType((*first.axes[:-1], Axis(names, size)), common_dtype(*parts)),)

    def emit(self, call: Call) -> Text:
        return call.reference("concat")(*call.operands)


@dataclass(frozen=True, slots=True)
class Expand(Operation):
    """One more axis before the last, along which all is the same: a key that heads share, [B, S, E] to [B, S, H, E]."""

    axis: Axis

    def written_sizes(self) -> tuple[Dim, ...]:
        return (self.axis.size,)

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_axes((*x.axes[:-1], self.axis, x.axes[-1])),)

    def emit(self, call: Call) -> Text:
        if self.axis.size == Dim.of(1):
            return call.operand(0).method("unsqueeze(-2)")
        kept = ", ".join(["-1"] * (len(call.op.result.type.axes) - 2))
        return call.operand(0).method(f"unsqueeze(-2).expand({kept}, {call.size(self.axis.size)}, -1)")


@dataclass(frozen=True, slots=True)
class Shift(Operation):
    """Moved `by` places towards the start along the second axis: what follows, at each place."""

    by: int

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if len(x.axes) < 2:
            raise ShapeError(f"`shift` moves along the second axis, and gets {x}", "x")
        return (x,)

    def emit(self, call: Call) -> Text:
        return call.reference("shift")(call.operand(0), call.text(str(self.by)))


@dataclass(frozen=True, slots=True)
class Gather(RowOperation):
    """Operands: x [.., X], index [.., K]: the entries of x at those indices, [.., K]."""

    alone: ClassVar[bool] = False

    def infer(self, x: TensorType, index: TensorType) -> tuple[TensorType, ...]:
        if index.dtype is not DType.INT64:
            raise ShapeError(f"`gather` needs integer indices, and gets {index}", "index")
        check_all_but_last(x, index, "index")
        return (index.with_dtype(x.dtype),)

    def saved(self, op: Op) -> Saved:
        return Saved((op.operands[1],))

    def emit(self, call: Call) -> Text:
        return call.reference("gather")(*call.operands)

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        x, index = operands
        return (x.gather(index),)


def concatenated(site: Site, name: str) -> Value:
    """A tensor argument. A list of tensors is joined along the last axis first; parts without heads go to each head."""
    value = site[name]
    if not isinstance(value, tuple):
        return site.tensor(name)
    heads = next((part.type.axes[-2] for part in value if len(part.type.axes) == 4), None)
    add = site.builder.one
    parts = (add(Expand(heads), (p,), site.span) if heads and len(p.type.axes) == 3 else p for p in value)
    try:
        return add(Concat(), tuple(parts), site.span)
    except ShapeError as error:
        raise ShapeError(str(error), name) from None


def _concat(site: Site) -> Value:
    parts = site["parts"]
    assert isinstance(parts, tuple)
    return site.add(Concat(), *parts)


def _reshape(site: Site) -> Value:
    x, axes = site.tensor("x"), site["axes"]
    assert isinstance(axes, ArrowValue)
    return site.add(Reshape(axes.source or (last_axis(x.type, "x"),), axes.target), x)


def _split(site: Site) -> tuple[Value, ...]:
    into = site["into"]
    assert isinstance(into, tuple)
    axes = tuple(size.axis for size in into)
    return site.builder.add(Split(axes), (site.tensor("x"),), site.span)


PRIMITIVES = (
    Primitive(
        Signature(
            "reshape",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("axes", Kind.ARROW, doc="the last axes, and what they are read as"),
            ),
            "The same numbers under other axes: `reshape(x, [H, E] -> H * E)`.",
        ),
        _reshape,
    ),
    Primitive(
        Signature("split", (Parameter("x", Kind.TENSOR), Parameter("into", Kind.SIZES)), "Cuts the last axis."),
        _split,
    ),
    Primitive(
        Signature("concat", (Parameter("parts", Kind.TENSORS, variadic=True),), "Joins tensors along the last axis."),
        _concat,
    ),
    Primitive(
        Signature(
            "shift",
            (Parameter("x", Kind.TENSOR), Parameter("by", Kind.INT)),
            "What stands `by` places further along the second axis; zero past the end.",
        ),
        lambda site: site.add(Shift(int(site.number("by"))), site.tensor("x")),
    ),
    Primitive(
        Signature(
            "gather",
            (Parameter("x", Kind.TENSOR), Parameter("index", Kind.TENSOR)),
            "The entries of the last axis at the given indices.",
        ),
        lambda site: site.add(Gather(), site.tensor("x"), site.tensor("index")),
    ),
)
