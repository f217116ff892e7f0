"""Which keys each query attends to: what sparse attention selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import Mask, Size
from .base import Operation, ShapeError, check_floating

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class IndexKeys(Operation):
    """Operands: q [B, S, H, E], k [B, T, E], weight [B, S, H], and the documents where the mask asks for them."""

    top: Axis
    mask: Mask | None = None
    pure: ClassVar[bool] = False  # behind a cache, the queries are the last of the positions

    def written_sizes(self) -> tuple[Dim, ...]:
        return (self.top.size,)

    def infer(self, q: TensorType, k: TensorType, weight: TensorType, *documents: TensorType) -> tuple[TensorType, ...]:
        for name, t, axes, shape in (
            ("q", q, 4, "[B, S, H, E]"),
            ("k", k, 3, "[B, T, E]"),
            ("weight", weight, 3, "[B, S, H]"),
        ):
            check_floating(t, name)
            if len(t.axes) != axes:
                raise ShapeError(f"`index_keys` needs {shape}, and `{name}` is {t}", name)
        if q.axes[-1].size != k.axes[-1].size:
            raise ShapeError(f"queries are `{q.axes[-1].size}` wide and keys `{k.axes[-1].size}`", "k")
        if [axis.size for axis in weight.axes] != [axis.size for axis in q.axes[:3]]:
            raise ShapeError(f"there is a weight for each head of {q}, and these are {weight}", "weight")
        return (TensorType((*q.axes[:2], self.top), DType.INT64),)

    def flops(self, op: Op) -> Dim:
        q, k = (value.type for value in op.operands[:2])
        pairs = q.axes[0].size * q.axes[1].size * k.axes[1].size
        return Dim.of(2) * pairs * q.axes[2].size * (q.axes[3].size + Dim.of(1))

    def emit(self, call: Call) -> Text:
        q, k, weight, *documents = call.operands
        mask = call.mask(self.mask, documents[0] if documents else None) if self.mask else None
        return call.reference("index_keys")(q, k, weight, top=call.size(self.top.size), mask=mask)


def _index_keys(site: Site) -> Value:
    operands, mask, top = [site.tensor(name) for name in ("q", "k", "weight")], site["mask"], site["top"]
    assert isinstance(top, Size)
    if isinstance(mask, Mask) and "documents" in mask.names:
        operands.append(site.builder.documents(operands[0]))
    axis = Axis(top.axis.name or "K", top.axis.size)
    return site.add(IndexKeys(axis, mask if isinstance(mask, Mask) else None), *operands)


PRIMITIVES = (
    Primitive(
        Signature(
            "index_keys",
            (
                Parameter("q", Kind.TENSOR, doc="queries of the index, [B, S, H, E]"),
                Parameter("k", Kind.TENSOR, doc="keys of the index, [B, S, E]"),
                Parameter("weight", Kind.TENSOR, doc="of each head's scores, [B, S, H]"),
                Parameter("top", Kind.SIZE, doc="keys that each query takes"),
                Parameter("mask", Kind.MASK, None, doc="which keys a query may take; all unless told"),
            ),
            "The positions of the `top` keys with the greatest sum_h weight * relu(q · k), for `attend` to select; -1 "
            "where there are fewer (arXiv:2512.02556, equation 1).",
        ),
        _index_keys,
    ),
)
