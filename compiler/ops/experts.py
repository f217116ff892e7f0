"""Experts: copies of one block, each token through the few that its router chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..builder import Builder
from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import BlockValue, Size
from .base import Operation, Saved, ShapeError, check_all_but_last, check_floating
from .weights import Weight

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Experts(Operation):
    """Operands: x [B, S, D], chosen and weight [B, S, K]. Its region maps rows [R, D] sorted by expert, and offsets."""

    path: str
    count: Axis
    block: str
    doc: str | None = None

    def written_sizes(self) -> tuple[Dim, ...]:
        return (self.count.size,)

    def infer(self, x: TensorType, chosen: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        check_floating(weight, "weight")
        if chosen.dtype is not DType.INT64:
            raise ShapeError(f"choices are integers, not {chosen}", "chosen")
        check_all_but_last(x, chosen, "chosen")
        if tuple(a.size for a in chosen.axes) != tuple(a.size for a in weight.axes):
            raise ShapeError(f"there is a weight for each choice, {chosen}, and this is {weight}", "weight")
        return (x,)

    def verify(self, op: Op) -> None:
        (region,) = op.regions
        assert region.results[0].type.axes[-1].size == op.result.type.axes[-1].size, "experts change the width"

    def saved(self, op: Op) -> Saved:
        rows = op.regions[0].arguments[0].type
        return Saved((op.operands[1], op.operands[2], op.regions[0].results[0]), ((rows.axes[0].size, "int64"),))

    def emit(self, call: Call) -> Text:
        return call.apply(call.submodule(self.path), *call.operands)

    def describe(self) -> str:
        return f"{self.path}: {self.count.size} x {self.block}"


@dataclass(frozen=True, slots=True)
class Capacity(Operation):
    """Operands: the module's count, chosen and weight [B, S, K]. The weights, 0 while training where an expert has no
    room left."""

    pure: ClassVar[bool] = False

    def infer(self, dropped: TensorType, chosen: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        return (weight,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=((op.result.type.elements, "bool"),))

    def emit(self, call: Call) -> Text:
        return call.operand(2) if call.serving else call.apply(call.module(0), call.operand(1), call.operand(2))


def _capacity(site: Site, count: Size, chosen: Value, weight: Value) -> Value:
    """The weights that are left when each expert takes no more than its share of choices, times `capacity`."""
    factor = site.positive("capacity")
    path = f"{site.path}_capacity"
    if site.owner is not None:
        raise ShapeError("experts with a `capacity` are called with their tensor", "capacity", code="DSK0190")
    dropped = Weight("dropped", ((count.axis,),), "zeros", state="counted")
    (value,) = site.builder.weights(path, "Capacity", (dropped,), site.span, factor=factor)
    return site.builder.one(Capacity(), (value, chosen, weight), site.span, "kept")


def _experts(site: Site) -> Value:
    x, chosen, weight = (site.tensor(name) for name in ("x", "chosen", "weight"))
    block, count = site["block"], site["count"]
    if not isinstance(block, BlockValue) or not isinstance(count, Size):
        raise ShapeError("`experts` needs a block still to be applied, such as `swiglu(inner: F)`", "block")
    attributes = Experts(site.path, count.axis, block.name, block.doc)
    (kind,) = attributes.infer(x.type, chosen.type, weight.type)
    if site["capacity"] is not None:
        weight = _capacity(site, count, chosen, weight)
    inner = Builder(site.path, site.builder)
    if site.owner is not None:
        inner.home = site.owner.home
    size = x.type.elements / x.type.axes[-1].size * chosen.type.axes[-1].size
    rows = Value(TensorType((Axis("R", size), x.type.axes[-1]), x.type.dtype), "x")
    inner.stack = count.axis
    inner.offsets = Value(TensorType((count.axis,), DType.INT64), "offsets")
    assert site.expand is not None
    y, *more = site.expand(block, (rows,), inner, site.path)
    if more or tuple(a.size for a in y.type.axes) != tuple(a.size for a in rows.type.axes):
        what = f"{1 + len(more)} results" if more else str(y.type)
        raise ShapeError(f"an expert gives back what it gets, {rows.type}, and `{block.name}` gives {what}", "block")
    if inner.losses:
        raise ShapeError(f"an expert has no losses of its own, and `{block.name}` has", "block", code="DSK0190")
    if inner.owns and site.owner is None:
        site.builder.take(site.path, site.span)
    result = Value(kind, site.name)
    region = inner.region((rows, inner.offsets), (y,))
    site.builder.ops.append(Op(attributes, (x, chosen, weight), (result,), site.span, (region,)))
    return result


PRIMITIVES = (
    Primitive(
        Signature(
            "experts",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("chosen", Kind.TENSOR, doc="which experts, [B, S, K]"),
                Parameter("weight", Kind.TENSOR, doc="how much of each, [B, S, K]"),
                Parameter("block", Kind.BLOCK, doc="what each expert is"),
                Parameter("count", Kind.SIZE, doc="how many there are"),
                Parameter(
                    "capacity",
                    Kind.FLOAT,
                    None,
                    doc="while training an expert takes so many times its even "
                    "share of choices, in order of position, and the others are dropped; all unless told",
                ),
            ),
            "Each token through its chosen copies of a block, summed by weight (arXiv:1701.06538).",
        ),
        _experts,
        weighted=True,
    ),
)
