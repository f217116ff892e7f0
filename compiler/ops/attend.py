"""Attention: every query's weighted mean of values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import Mask
from .arrange import concatenated
from .base import Operation, Saved, ShapeError, check_floating
from .elementwise import _probability

MOST_WIDTH = 256  # of a head: `runtime/kernels/attention/kernel.py`

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Attend(Operation):
    """Operands: q [B, S, H, E], k [B, T, G, E], v [B, T, G, Ev]; then, each where there is one, the documents that the
    mask asks for, `sinks` [H] and `select` [B, S, K]."""

    mask: Mask | None = None
    scale: float | None = None
    dropout: float = 0.0
    softcap: float | None = None
    sinks: bool = False
    select: bool = False
    pure: ClassVar[bool] = False
    reference: ClassVar[str | None] = "attention"

    def infer(self, q: TensorType, k: TensorType, v: TensorType, *more: TensorType) -> tuple[TensorType, ...]:
        for name, t in (("q", q), ("k", k), ("v", v)):
            check_floating(t, name)
            if len(t.axes) != 4:
                raise ShapeError(f"`attend` needs [B, S, H, E], and `{name}` is {t}", name)
        if q.axes[-1].size != k.axes[-1].size:
            raise ShapeError(f"queries are `{q.axes[-1].size}` wide and keys `{k.axes[-1].size}`", "k")
        for place, what in ((1, "positions"), (2, "heads")):
            if k.axes[place].size != v.axes[place].size:
                raise ShapeError(f"keys have `{k.axes[place].size}` {what} and values `{v.axes[place].size}`", "v")
        if self.sinks:
            sinks = more[-2 if self.select else -1]
            check_floating(sinks, "sinks")
            if tuple(a.size for a in sinks.axes) != (q.axes[2].size,):
                raise ShapeError(f"there is a sink for each of `{q.axes[2].size}` heads, and this is {sinks}", "sinks")
        if self.select:
            select = more[-1]
            if select.dtype is not DType.INT64:
                raise ShapeError(f"selected positions are integers, not {select}", "select")
            if len(select.axes) != 3 or tuple(a.size for a in select.axes[:2]) != tuple(a.size for a in q.axes[:2]):
                raise ShapeError(f"queries {q} select positions [B, S, K], and this is {select}", "select")
        return (TensorType((*q.axes[:3], v.axes[-1]), q.dtype),)

    @property
    def written_out(self) -> bool:
        """Whether the reference holds the scores as a tensor: torch's kernels cannot say it."""
        return self.softcap is not None or self.sinks or self.select

    def looks_ahead(self, op: Op) -> bool:
        """Whether positions see later ones of the same text: then what decoding keeps of them would change."""
        q, k = (value.type.axes[1].size for value in op.operands[:2])
        return q == k and not (self.mask is not None and self.mask.is_causal)

    def flops(self, op: Op) -> Dim:
        q, k, v = (value.type for value in op.operands[:3])
        scores = q.axes[0].size * q.axes[2].size * q.axes[1].size * k.axes[1].size
        return Dim.of(2) * scores * (q.axes[3].size + v.axes[3].size)

    def has_kernel(self, op: Op, sizes: Mapping[str, int]) -> bool:
        """Whether the template can: it knows no chosen positions, and holds a head's whole width."""
        widths = [value.type.axes[-1].size for value in op.operands[:3]]
        known = all(width.symbols() <= sizes.keys() and width.evaluate(sizes) <= MOST_WIDTH for width in widths)
        return known and not self.select

    def saved_by_kernel(self, op: Op) -> Saved:
        """Queries, keys, values and result as they are, and a number for each query and head; sinks with them."""
        batch, queries, heads, _ = (axis.size for axis in op.operands[0].type.axes)
        return Saved((*op.operands, op.result), ((batch * queries * heads, "fp32"),))

    def saved(self, op: Op) -> Saved:
        q, k, v = op.operands[:3]
        batch, queries, heads, _ = (axis.size for axis in q.type.axes)
        keys, groups = (axis.size for axis in k.type.axes[1:3])
        if self.written_out:
            return self._saved_written_out(op)
        log_sum_exp = (batch * queries * heads, "fp32")
        if self.mask is None or self.mask.names in ({"causal"}, {"everything"}):
            return Saved((q, k, v, op.result), (log_sum_exp,))
        # A mask tensor is added to the scores in their dtype; kernels that take one have no grouped heads.
        mask = (queries * keys * (batch if "documents" in self.mask.names else 1), "compute")
        if heads == groups:
            return Saved((q, k, v, op.result), (log_sum_exp, mask))
        repeated = batch * keys * heads * (k.type.axes[3].size + v.type.axes[3].size)
        return Saved((q, op.result), (log_sum_exp, mask, (repeated, "compute")))

    def _saved_written_out(self, op: Op) -> Saved:
        """q, k and v in fp32, and the probabilities with what else is as large."""
        q, k, v = (value.type for value in op.operands[:3])
        batch, queries, heads, _ = (axis.size for axis in q.axes)
        keys = k.axes[1].size
        names = self.mask.names if self.mask is not None else frozenset()
        scores = batch * heads * queries * keys
        extra = [(t.elements, "fp32") for t in (q, k, v)]
        extra.append((scores + batch * heads * queries if self.sinks else scores, "fp32"))
        if self.softcap is not None:
            extra.append((scores, "fp32"))  # the tangents
        if self.dropout:
            extra += [(scores, "fp32"), (scores, "bool")]
        if self.select or names - {"everything"}:
            extra.append((queries * keys * (batch if self.select or "documents" in names else 1), "bool"))
        return Saved(extra=tuple(extra))

    def emit(self, call: Call) -> Text:
        q, k, v, *more = call.operands
        select = more.pop() if self.select else None
        sinks = more.pop() if self.sinks else None
        kernel = call.names.kernels.get(self.kernel_key(call.op))
        if kernel is not None and not call.serving:
            return self._emit_kernel(call, kernel, more[0] if more else None, sinks)
        mask = call.mask(self.mask, more[0] if more else None) if self.mask else None
        return call.reference("attention")(
            q,
            k,
            v,
            mask=mask,
            scale=call.number(self.scale) if self.scale is not None else None,
            dropout=call.number(self.dropout) if self.dropout else None,
            training=call.text("self.training") if self.dropout else None,
            softcap=call.number(self.softcap) if self.softcap is not None else None,
            sinks=sinks,
            select=select,
        )

    def kernel_key(self, op: Op) -> tuple[Attend, Dim, Dim]:
        """What tells its kernel from those of other attentions."""
        return self, op.operands[0].type.axes[-1].size, op.operands[2].type.axes[-1].size

    def _emit_kernel(self, call: Call, kernel: str, documents: Text | None, sinks: Text | None) -> Text:
        call.names.use(".", "kernels")
        arguments = [*call.operands[:3]]
        arguments += [call.text(f"documents_BT={documents}")] if documents is not None else []
        arguments += [call.text(f"sinks_H={sinks}")] if sinks is not None else []
        arguments += [call.text(f"training={call.training}")] if self.dropout else []
        return call.apply(f"kernels.{kernel}", *arguments)


def _attend(site: Site) -> Value:
    q, k, v = (concatenated(site, name) for name in ("q", "k", "v"))
    mask = site["mask"]
    operands = [q, k, v]
    if isinstance(mask, Mask) and "documents" in mask.names:
        operands.append(site.builder.documents(q))
    operands += [site.tensor(name) for name in ("sinks", "select") if site[name] is not None]
    scale = site["scale"]
    return site.add(
        Attend(
            mask if isinstance(mask, Mask) else None,
            float(scale) if isinstance(scale, Fraction) else None,
            _probability(site, "dropout"),
            site.positive("softcap") if site["softcap"] is not None else None,
            site["sinks"] is not None,
            site["select"] is not None,
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
                Parameter("softcap", Kind.FLOAT, None, doc="bounds the scaled scores, before the mask: `softcap`"),
                Parameter("sinks", Kind.TENSOR, None, doc="a logit of each head that has no value, [H]"),
                Parameter("select", Kind.TENSOR, None, doc="the only positions that each query may see, [B, S, K]"),
            ),
            "softmax(scale * q kᵀ where the mask allows) v (arXiv:1706.03762, equation 1).",
        ),
        _attend,
    ),
)
