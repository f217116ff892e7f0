"""Linear layers and embeddings: what owns most of a model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value, product
from ..primitive import Primitive, Site
from ..signature import DTYPES, REQUIRED, Kind, Parameter, Signature
from ..values import ArrowValue
from .base import Operation, Saved, ShapeError, check_floating, common_dtype, last_axis
from .weights import Weight, flat

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Linear(Operation):
    """Operands: x [.., source], weight [target, source], then bias and, among experts, where each one's rows end."""

    source: tuple[Axis, ...]
    target: tuple[Axis, ...]
    bias: bool = False
    compute: DType | None = None
    grouped: bool = False

    def infer(self, x: TensorType, weight: TensorType, *rest: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        count = len(self.source)
        if len(x.axes) < count:
            raise ShapeError(f"this maps {count} axes, and gets {x}", "x")
        lead, last = x.axes[: len(x.axes) - count], x.axes[len(x.axes) - count :]
        for found, wanted in zip(last, self.source, strict=True):
            if found.size != wanted.size:
                raise ShapeError(f"this maps `{wanted.size}`, and gets an axis of `{found.size}`", "x")
        return (TensorType((*lead, *self.target), self.compute or common_dtype(x)),)

    def flops(self, op: Op) -> Dim:
        rows = product(a.size for a in op.operands[0].type.axes) / flat(self.source).size
        return Dim.of(2) * rows * flat(self.source).size * flat(self.target).size

    def saved(self, op: Op) -> Saved:
        x = op.operands[0]
        if self.compute is not None and x.type.dtype != self.compute:
            return Saved(extra=((x.type.elements, self.compute),))
        return Saved((x,))

    def emit(self, call: Call) -> Text:
        x = call.operand(0)
        if len(self.source) > 1:
            x = x.method(f"flatten({-len(self.source)})")
        module = call.module(1)
        if call.module_class(1) == "Embed":
            y = call.reference("unembed")(x, call.text(f"{module}.weight"))
        elif self.grouped:
            y = call.apply(module, x, call.operand(len(call.op.operands) - 1))
        else:
            y = call.apply(module, x)
        if len(self.target) > 1:
            y = y.method(f"unflatten(-1, ({', '.join(call.size(a.size) for a in self.target)}))")
        return y


@dataclass(frozen=True, slots=True)
class Embed(Operation):
    """Operands: tokens (integers), weight [vocabulary, width]."""

    width: Axis

    def infer(self, tokens: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        if tokens.dtype is not DType.INT64:
            raise ShapeError(f"embedding needs ids, and gets {tokens}", "tokens")
        return (TensorType((*tokens.axes, self.width), DType.PARAMS),)

    def saved(self, op: Op) -> Saved:
        return Saved((op.operands[0],))

    def emit(self, call: Call) -> Text:
        return call.apply(call.module(1), call.operand(0))


def _arrow(site: Site, x: Value) -> ArrowValue:
    axes = site["axes"]
    assert isinstance(axes, ArrowValue)
    if axes.source is None:
        return ArrowValue((last_axis(x.type, "x"),), axes.target)
    return axes


def _linear(site: Site) -> Value:
    x = site.tensor("x")
    axes = _arrow(site, x)
    assert axes.source is not None
    bias, dtype = bool(site["bias"]), _dtype(site)
    if dtype and site.builder.stack is not None:
        raise ShapeError("`compute` of linear layers inside `experts` is not compiled yet", "compute", code="DSK0190")
    made = linear_weights(site, axes)
    offsets = site.builder.offsets
    rest = (offsets,) if offsets is not None else ()
    op = Linear(axes.source, axes.target, bias, dtype, grouped=offsets is not None)
    return site.add(op, x, *made, *rest)


def linear_weights(site: Site, axes: ArrowValue) -> tuple[Value, ...]:
    """The weight, and the bias where there is one, of a linear map between these axes."""
    assert axes.source is not None
    weights = [Weight("weight", (axes.target, axes.source))]
    options: dict[str, object] = {}
    if site["bias"]:
        weights.append(Weight("bias", (axes.target,), "zeros"))
        options["bias"] = True
    if (dtype := _dtype(site)) is not None:
        options["compute"] = dtype
    return site.weights("Linear", *weights, **options)


def _dtype(site: Site) -> DType | None:
    compute = site["compute"]
    assert compute is None or isinstance(compute, str)
    return DType(compute) if compute else None


def _embed(site: Site) -> Value:
    tokens = site.tensor("tokens")
    axes = site["axes"]
    assert isinstance(axes, ArrowValue)
    if axes.source is None or len(axes.target) != 1:
        raise ShapeError("an embedding maps a vocabulary to one axis, `V -> D`", "axes")
    (weight,) = site.weights("Embed", Weight("weight", (axes.source, axes.target)))
    return site.add(Embed(axes.target[0]), tokens, weight)


def _unembed(site: Site) -> Value:
    x, table = site.tensor("x"), site["table"]
    weight = getattr(table, "weights", None)
    if weight is None or len(weight) != 1:
        raise ShapeError("`unembed` needs a table that has been applied: `table = embed(V -> D)`", "table")
    vocabulary, width = weight[0].type.axes
    return site.add(Linear((width,), (vocabulary,)), x, weight[0])


_BIAS = Parameter("bias", Kind.BOOL, False, doc="adds a learned bias")
_AXES = Parameter("axes", Kind.ARROW, REQUIRED, doc="the last axes, and what becomes of them")

PRIMITIVES = (
    Primitive(
        Signature(
            "linear",
            (
                Parameter("x", Kind.TENSOR),
                _AXES,
                _BIAS,
                Parameter("compute", Kind.DTYPE, None, DTYPES, doc="the dtype it runs and results in"),
            ),
            "A learned linear map of the last axes.",
        ),
        _linear,
        weighted=True,
    ),
    Primitive(
        Signature("embed", (Parameter("tokens", Kind.TENSOR), _AXES), "A learned row for every id."),
        _embed,
        weighted=True,
    ),
    Primitive(
        Signature(
            "unembed",
            (Parameter("x", Kind.TENSOR), Parameter("table", Kind.BLOCK)),
            "The linear map by the rows of an embedding: tied input and output embeddings.",
        ),
        _unembed,
    ),
)
