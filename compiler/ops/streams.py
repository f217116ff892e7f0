"""Hyper-connections: a residual of several streams, and the weights that mix them (arXiv:2409.19606)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskc.dsl.dims import Dim

from ..ir import Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import Operation, Saved, ShapeError, check_floating

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Mix(Operation):
    """Operands: x [.., N, D], weight [.., N] or [.., N, M]. Sums over N: [.., D] or [.., M, D]."""

    def infer(self, x: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        check_floating(weight, "weight")
        lead = len(x.axes) - 2
        if lead < 0 or len(weight.axes) - lead not in (1, 2):
            raise ShapeError(f"`mix` needs x [.., N, D] and weights [.., N] or [.., N, M], not {x}, {weight}", "weight")
        for found, wanted in zip(weight.axes, x.axes[:-1], strict=False):
            if found.size != wanted.size:
                raise ShapeError(f"the weights have `{found.size}` where x has `{wanted.size}`", "weight")
        return (x.with_axes((*x.axes[:lead], *weight.axes[lead + 1 :], x.axes[-1])),)

    def flops(self, op: Op) -> Dim:
        x, weight = (value.type for value in op.operands)
        return Dim.of(2) * weight.elements * x.axes[-1].size

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands)

    def emit(self, call: Call) -> Text:
        return call.reference("mix")(*call.operands)


@dataclass(frozen=True, slots=True)
class Outer(Operation):
    """Operands: x [.., D], weight [.., N]. Every product of the two: [.., N, D]."""

    def infer(self, x: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        check_floating(weight, "weight")
        if not x.axes or tuple(a.size for a in x.axes[:-1]) != tuple(a.size for a in weight.axes[:-1]):
            raise ShapeError(f"`outer` needs x [.., D] and weights [.., N], not {x} and {weight}", "weight")
        return (x.with_axes((*x.axes[:-1], weight.axes[-1], x.axes[-1])),)

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands)

    def emit(self, call: Call) -> Text:
        return call.reference("outer")(*call.operands)


@dataclass(frozen=True, slots=True)
class Sinkhorn(Operation):
    """Columns, then rows and columns in turn, divided by their sums. Source: DeepSeek-V4, section 2.2."""

    iterations: int
    eps: float

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        if len(x.axes) < 2:
            raise ShapeError(f"`sinkhorn` needs matrices [.., N, M], and gets {x}", "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        sums = 2 * self.iterations - 1
        return Saved(op.operands, ((sums * 2 * op.result.type.elements, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("sinkhorn")(call.operand(0), call.text(str(self.iterations)), call.number(self.eps))


def _sinkhorn(site: Site) -> Value:
    iterations = int(site.number("iterations"))
    if iterations < 1:
        raise ShapeError(f"`iterations` is at least 1, not {iterations}", "iterations", code="DSK0131")
    return site.add(Sinkhorn(iterations, site.positive("eps", zero=True)), site.tensor("x"))


PRIMITIVES = (
    Primitive(
        Signature(
            "mix",
            (
                Parameter("x", Kind.TENSOR, doc="[.., N, D]"),
                Parameter("weight", Kind.TENSOR, doc="[.., N] for one sum, [.., N, M] for M of them"),
            ),
            "The sum over N of weight times x: [.., D] or [.., M, D], in the dtype of x.",
        ),
        lambda site: site.add(Mix(), site.tensor("x"), site.tensor("weight")),
    ),
    Primitive(
        Signature(
            "outer",
            (Parameter("x", Kind.TENSOR, doc="[.., D]"), Parameter("weight", Kind.TENSOR, doc="[.., N]")),
            "x as many times as there are weights, each times one: [.., N, D], in the dtype of x.",
        ),
        lambda site: site.add(Outer(), site.tensor("x"), site.tensor("weight")),
    ),
    Primitive(
        Signature(
            "sinkhorn",
            (
                Parameter("x", Kind.TENSOR, doc="matrices [.., N, M], over 0"),
                Parameter("iterations", Kind.INT),
                Parameter("eps", Kind.FLOAT, 1e-6, doc="added to every sum"),
            ),
            "Columns, then rows and columns in turn, divided by their sums, until both nearly add up to 1.",
        ),
        _sinkhorn,
    ),
)
