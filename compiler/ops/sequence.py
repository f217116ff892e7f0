"""Several sequences as one: joined along the second axis, cut apart, told apart, and pooled to one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import Size
from .base import Operation, Saved, ShapeError, check_floating, common_dtype

if TYPE_CHECKING:
    from ..emit.expression import Call, Text

JOINED = "N"  # what the axis of a joined sequence is called in names of tensors


@dataclass(frozen=True, slots=True)
class Join(Operation):
    """Sequences one behind the other."""

    def infer(self, *sequences: TensorType) -> tuple[TensorType, ...]:
        first, total = sequences[0], Dim.of(0)
        for x in sequences:
            if len(x.axes) < 2:
                raise ShapeError(f"`join` works along the second axis, and gets {x}", "parts")
            if _beside(x) != _beside(first):
                raise ShapeError(f"only the second axis may differ between {first} and {x}", "parts")
            total = total + x.axes[1].size
        name = first.axes[1].name if len(sequences) == 1 else JOINED
        axes = (first.axes[0], Axis(name, total), *first.axes[2:])
        return (TensorType(axes, common_dtype(*sequences)),)

    def emit(self, call: Call) -> Text:
        return call.reference("join")(*call.operands)


def _beside(x: TensorType) -> tuple[Dim, ...]:
    """All axes but the second."""
    return tuple(axis.size for axis in (x.axes[0], *x.axes[2:]))


@dataclass(frozen=True, slots=True)
class Parts(Operation):
    """Operands: x [B, N, ..], then inputs that tell lengths. The second axis, cut into these."""

    into: tuple[Axis, ...]

    def infer(self, x: TensorType, *inputs: TensorType) -> tuple[TensorType, ...]:
        if len(x.axes) < 2:
            raise ShapeError(f"`parts` works along the second axis, and gets {x}", "x")
        total = sum((axis.size for axis in self.into), Dim.of(0))
        if total != x.axes[1].size:
            raise ShapeError(f"the parts make `{total}`, and the axis is `{x.axes[1].size}`", "into")
        return tuple(x.with_axes((x.axes[0], axis, *x.axes[2:])) for axis in self.into)

    def emit(self, call: Call) -> Text:
        return call.reference("parts")(call.operand(0), call.text(_lengths(call, self.into)))


@dataclass(frozen=True, slots=True)
class PartIds(Operation):
    """Operands: inputs that tell lengths. Which of the parts each position of the joined sequence belongs to."""

    into: tuple[Axis, ...]
    invariant: ClassVar[bool] = True
    result_names: ClassVar[tuple[str, ...]] = ("part",)

    def infer(self, *inputs: TensorType) -> tuple[TensorType, ...]:
        total = sum((axis.size for axis in self.into), Dim.of(0))
        return (TensorType((Axis(JOINED, total),), DType.INT64),)

    def emit(self, call: Call) -> Text:
        device = call.text(f"{call.operand(0)}.device")
        return call.reference("part_ids")(call.text(_lengths(call, self.into)), device)


@dataclass(frozen=True, slots=True)
class Pool(Operation):
    """The mean over the second axis; of nothing zero."""

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        if len(x.axes) < 2:
            raise ShapeError(f"`pool` takes the mean over the second axis, and gets {x}", "x")
        return (x.with_axes((x.axes[0], *x.axes[2:])),)

    def saved(self, op: Op) -> Saved:
        return Saved()

    def emit(self, call: Call) -> Text:
        return call.reference("pool")(call.operand(0))


def length_text(call: Call, size: Dim) -> str:
    """A length as code: read from the inputs that have it, among the operands, or from the dims that it is made of."""
    found = _along(call.op.operands, call.operands, size)
    if found is not None:
        return found
    terms = (_along(call.op.operands, call.operands, Dim.of(s)) or call.size(Dim.of(s)) for s in size.symbols())
    return " + ".join(sorted(terms)) if size.symbols() else call.size(size)


def _along(values: Sequence[Value], texts: Sequence[Text], size: Dim) -> str | None:
    for value, text in zip(values, texts, strict=True):
        sizes = [axis.size for axis in value.type.axes]
        if len(size.symbols()) == 1 and size in sizes:
            return f"{text}.shape[{sizes.index(size)}]"
    return None


def _lengths(call: Call, into: tuple[Axis, ...]) -> str:
    """The lengths of parts as a tuple. An operand that is itself the joined sequence tells none of them."""
    texts = [length_text(call, axis.size) for axis in into]
    return f"({', '.join(texts)},)" if len(texts) == 1 else f"({', '.join(texts)})"


def _told(site: Site) -> tuple[tuple[Axis, ...], tuple[Value, ...]]:
    """The parts that a call speaks of, and the inputs that tell how long each is."""
    into = site["into"]
    assert isinstance(into, tuple)
    axes = tuple(size.axis for size in into if isinstance(size, Size))
    found: dict[Value, None] = {}
    for axis in axes:
        inputs = site.builder.inputs_along(axis)
        if not inputs and not axis.size.is_constant:
            raise ShapeError(f"`{axis.size}` is no axis of an input, nor a sum of such", "into")
        found.update(dict.fromkeys(inputs))
    if not found:
        raise ShapeError("none of the parts is as long as an input", "into")
    return axes, tuple(found)


def _join(site: Site) -> Value:
    given = site["parts"]
    assert isinstance(given, tuple)
    return site.add(Join(), *given)


def _parts(site: Site) -> tuple[Value, ...]:
    axes, inputs = _told(site)
    return site.builder.add(Parts(axes), (site.tensor("x"), *inputs), site.span)


def _part_ids(site: Site) -> Value:
    axes, inputs = _told(site)
    return site.add(PartIds(axes), *inputs)


_INTO = Parameter("into", Kind.SIZES, doc="lengths of the parts: axes of inputs, or sums of these")

PRIMITIVES = (
    Primitive(
        Signature(
            "join",
            (Parameter("parts", Kind.TENSORS, variadic=True),),
            "Sequences one behind the other, along the second axis.",
        ),
        _join,
    ),
    Primitive(
        Signature("parts", (Parameter("x", Kind.TENSOR), _INTO), "Cuts the second axis, as `join` put it together."),
        _parts,
    ),
    Primitive(
        Signature("part_ids", (_INTO,), "0 at each position of the first part, 1 of the second, and so on: `ids[N]`."),
        _part_ids,
    ),
    Primitive(
        Signature(
            "pool",
            (Parameter("x", Kind.TENSOR),),
            "The mean over the second axis, in which all positions count; zero where there is none.",
        ),
        lambda site: site.add(Pool(), site.tensor("x")),
    ),
)
