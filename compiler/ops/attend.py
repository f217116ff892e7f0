"""Attention: every query's weighted mean of values."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import Mask
from .arrange import concatenated
from .base import Operation, Saved, ShapeError, check_floating
from .elementwise import _probability

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Attend(Operation):
    """Operands: q [B, S, H, E], k [B, T, G, E], v [B, T, G, Ev], and the documents where the mask asks for them."""

    mask: Mask | None = None
    scale: float | None = None
    dropout: float = 0.0
    pure: ClassVar[bool] = False
    reference: ClassVar[str | None] = "attention"

    def infer(self, q: TensorType, k: TensorType, v: TensorType, *documents: TensorType) -> tuple[TensorType, ...]:
        for name, t in (("q", q), ("k", k), ("v", v)):
            check_floating(t, name)
            if len(t.axes) != 4:
                raise ShapeError(f"`attend` needs [B, S, H, E], and `{name}` is {t}", name)
        if q.axes[-1].size != k.axes[-1].size:
            raise ShapeError(f"queries are `{q.axes[-1].size}` wide and keys `{k.axes[-1].size}`", "k")
        for place, what in ((1, "positions"), (2, "heads")):
            if k.axes[place].size != v.axes[place].size:
                raise ShapeError(f"keys have `{k.axes[place].size}` {what} and values `{v.axes[place].size}`", "v")
        return (TensorType((*q.axes[:3], v.axes[-1]), q.dtype),)

    def flops(self, op: Op) -> Dim:
        q, k, v = (value.type for value in op.operands[:3])
        scores = q.axes[0].size * q.axes[2].size * q.axes[1].size * k.axes[1].size
        return Dim.of(2) * scores * (q.axes[3].size + v.axes[3].size)

    def saved(self, op: Op) -> Saved:
        q, k, v = op.operands[:3]
        batch, queries, heads, _ = (axis.size for axis in q.type.axes)
        keys, groups = (axis.size for axis in k.type.axes[1:3])
        log_sum_exp = (batch * queries * heads, "fp32")
        if self.mask is None or self.mask.names == {"causal"}:
            return Saved((q, k, v, op.result), (log_sum_exp,))
        # A mask tensor is added to the scores in their dtype; kernels that take one have no grouped heads.
        mask = (queries * keys * (batch if "documents" in self.mask.names else 1), "compute")
        if heads == groups:
            return Saved((q, k, v, op.result), (log_sum_exp, mask))
        repeated = batch * keys * heads * (k.type.axes[3].size + v.type.axes[3].size)
        return Saved((q, op.result), (log_sum_exp, mask, (repeated, "compute")))

    def emit(self, call: Call) -> Text:
        q, k, v, *documents = call.operands
        mask = call.mask(self.mask, documents[0] if documents else None) if self.mask else None
        return call.reference("attention")(
            q,
            k,
            v,
            mask=mask,
            scale=call.number(self.scale) if self.scale is not None else None,
            dropout=call.number(self.dropout) if self.dropout else None,
            training=call.text("self.training") if self.dropout else None,
        )


def _attend(site: Site) -> Value:
    q, k, v = (concatenated(site, name) for name in ("q", "k", "v"))
    mask = site["mask"]
    operands = [q, k, v]
    if isinstance(mask, Mask) and "documents" in mask.names:
        operands.append(site.builder.documents(q))
    scale = site["scale"]
    return site.add(
        Attend(
            mask if isinstance(mask, Mask) else None,
            float(scale) if isinstance(scale, Fraction) else None,
            _probability(site, "dropout"),
        ),
        *operands,
    )


PRIMITIVES = (
    Primitive(
        Signature(
            "attend",
            (
                Parameter("q", Kind.TENSORS, doc="queries; a list is joined along the last axis"),
                Parameter("k", Kind.TENSORS),
                Parameter("v", Kind.TENSORS),
                Parameter("mask", Kind.MASK, None, doc="which keys a query sees; all unless told"),
                Parameter("scale", Kind.FLOAT, None, doc="of the scores; 1 / sqrt(width) unless told"),
                Parameter("dropout", Kind.FLOAT, 0.0, doc="of the probabilities, while training"),
            ),
            "softmax(scale * q kᵀ where the mask allows) v (arXiv:1706.03762, equation 1).",
        ),
        _attend,
    ),
)
