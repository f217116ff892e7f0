"""Experts that the token itself decides: hash layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ir import Axis, DType, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import ArrowValue, Size
from .base import Operation, ShapeError
from .weights import Weight

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Lookup(Operation):
    """Operands: tokens (integers), table [vocabulary, K] of integers, which nothing trains. Its rows."""

    width: Axis

    def infer(self, tokens: TensorType, table: TensorType) -> tuple[TensorType, ...]:
        if tokens.dtype is not DType.INT64:
            raise ShapeError(f"a table is looked up by ids, not by {tokens}", "tokens")
        return (TensorType((*tokens.axes, self.width), DType.INT64),)

    def emit(self, call: Call) -> Text:
        return call.apply(call.module(1), call.operand(0))


def _hash_experts(site: Site) -> Value:
    axes, count = site["axes"], site["count"]
    assert isinstance(axes, ArrowValue) and isinstance(count, Size)
    if axes.source is None or len(axes.source) != 1 or len(axes.target) != 1:
        raise ShapeError("a table maps a vocabulary to so many choices, `V -> K`", "axes")
    if site.builder.stack is not None:
        raise ShapeError("`hash_experts` chooses among experts, and none of them can own one")
    table = Weight("table", (axes.source, axes.target), state="table")
    (made,) = site.weights("HashExperts", table, experts=count.axis.size)
    return site.add(Lookup(Axis("K", axes.target[0].size)), site.tensor("tokens"), made)


PRIMITIVES = (
    Primitive(
        Signature(
            "hash_experts",
            (
                Parameter("tokens", Kind.TENSOR, doc="ids"),
                Parameter("axes", Kind.ARROW, doc="the vocabulary, and how many experts a token takes: `V -> K`"),
                Parameter("count", Kind.SIZE, doc="how many experts there are"),
            ),
            "The experts of each token by a fixed table, which checkpoints hold and nothing trains (arXiv:2106.04426).",
        ),
        _hash_experts,
        weighted=True,
    ),
)
