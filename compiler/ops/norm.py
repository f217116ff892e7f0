"""Normalisation over the last axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskc.dsl.dims import Dim

from ..ir import Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import RowOperation, Saved, check_floating, last_axis
from .weights import Weight

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing


@dataclass(frozen=True, slots=True)
class RmsNorm(RowOperation):
    """Operands: x [.., D], weight [D]. Source: arXiv:1910.07467."""

    eps: float
    offset: float = 0.0

    def infer(self, x: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=_saved_by_norm(op))

    def emit(self, call: Call) -> Text:
        if call.op.operands[1] in call.modules:
            return call.apply(call.module(1), call.operand(0))
        offset = call.number(self.offset) if self.offset else None
        return call.reference("rms_norm")(*call.operands, call.number(self.eps), offset=offset)

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        x, weight = operands
        factor = ((x * x).mean() + self.eps).rsqrt().called("factor")
        return (x * factor * (weight + self.offset),)


@dataclass(frozen=True, slots=True)
class LayerNorm(RowOperation):
    """Operands: x [.., D], weight [D], and bias [D] where there is one. Source: arXiv:1607.06450."""

    eps: float

    def infer(self, x: TensorType, weight: TensorType, *bias: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=_saved_by_norm(op))

    def emit(self, call: Call) -> Text:
        if call.op.operands[1] in call.modules:
            return call.apply(call.module(1), call.operand(0))
        return call.reference("layer_norm")(*call.operands, eps=call.number(self.eps))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        x, weight, *bias = operands
        centred = (x - x.mean().called("mean")).called("centred")
        factor = ((centred * centred).mean() + self.eps).rsqrt().called("factor")
        y = centred * factor * weight
        return (y + bias[0] if bias else y,)


@dataclass(frozen=True, slots=True)
class L2Norm(RowOperation):
    """x / sqrt(sum(x²) + eps) over the last axis."""

    eps: float

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        last_axis(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        kind = op.result.type
        return Saved(extra=((kind.elements + kind.elements / kind.axes[-1].size, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("l2_norm")(call.operand(0), eps=call.number(self.eps))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        (x,) = operands
        return (x * ((x * x).sum() + self.eps).rsqrt().called("factor"),)


def _saved_by_norm(op: Op) -> tuple[tuple[Dim, str], ...]:
    """x (less its mean) and x normalised, both wide, and one factor a row."""
    kind = op.result.type
    return ((2 * kind.elements + kind.elements / kind.axes[-1].size, "fp32"),)


def _rms_norm(site: Site) -> Value:
    x = site.tensor("x")
    eps, offset = site.positive("eps", zero=True), float(site.number("offset"))
    options = {"eps": eps, "offset": offset} if offset else {"eps": eps}
    weight = Weight("weight", ((last_axis(x.type, "x"),),), "ones" if not offset else "zeros")
    return site.add(RmsNorm(eps, offset), x, *site.weights("RMSNorm", weight, **options))


def _layer_norm(site: Site) -> Value:
    x = site.tensor("x")
    eps, bias = site.positive("eps", zero=True), bool(site["bias"])
    axis = last_axis(x.type, "x")
    weights = [Weight("weight", ((axis,),), "ones")]
    if bias:
        weights.append(Weight("bias", ((axis,),), "zeros"))
    options = {"eps": eps} if bias else {"eps": eps, "bias": False}
    return site.add(LayerNorm(eps), x, *site.weights("LayerNorm", *weights, **options))


PRIMITIVES = (
    Primitive(
        Signature(
            "l2_norm",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("eps", Kind.FLOAT, 1e-6, doc="added to the sum of squares"),
            ),
            "x / sqrt(sum(x²) + eps): rows of length 1.",
        ),
        lambda site: site.add(L2Norm(site.positive("eps", zero=True)), site.tensor("x")),
    ),
    Primitive(
        Signature(
            "rms_norm",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("eps", Kind.FLOAT, 1e-6, doc="added to the mean square"),
                Parameter("offset", Kind.FLOAT, 0.0, doc="added to the weight: 1 in Gemma"),
            ),
            "x / sqrt(mean(x²) + eps) * weight (arXiv:1910.07467).",
        ),
        _rms_norm,
        weighted=True,
        short="norm",
    ),
    Primitive(
        Signature(
            "layer_norm",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("eps", Kind.FLOAT, 1e-5, doc="added to the variance"),
                Parameter("bias", Kind.BOOL, True, doc="adds a learned bias"),
            ),
            "(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (arXiv:1607.06450).",
        ),
        _layer_norm,
        weighted=True,
        short="norm",
    ),
)
