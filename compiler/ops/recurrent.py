"""What goes along the sequence and carries something with it: a convolution its last inputs, a delta rule its memory.

Decoding needs no `keep` for them: what they carry has a constant size, and each goes on from where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim, ceil

from ..ir import Axis, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import Operation, Saved, ShapeError, check_floating
from .weights import Weight

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Conv(Operation):
    """Operands: x [B, S, C], weight [C, 1, W], then the bias [C] and the documents where there are any."""

    width: int
    bias: bool = False
    documents: bool = False
    stateful: ClassVar[bool] = True

    def infer(self, x: TensorType, weight: TensorType, *rest: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        if len(x.axes) != 3:
            raise ShapeError(f"`conv` needs [B, S, C], and gets {x}", "x")
        return (x,)

    def flops(self, op: Op) -> Dim:
        return Dim.of(2 * self.width) * op.result.type.elements

    def saved(self, op: Op) -> Saved:
        batch, sequence, channels = (axis.size for axis in op.result.type.axes)
        if self.documents:
            seen = batch * sequence * self.width
            return Saved(extra=((seen * channels, "fp32"), (seen, "bool")))
        return Saved(extra=((batch * (sequence + self.width - 1) * channels, "fp32"),))

    def emit(self, call: Call) -> Text:
        options = _rest(call, self.documents)
        return call.apply(call.module(1), call.operand(0), *(call.text(f"{n}={t}") for n, t in options.items()))


@dataclass(frozen=True, slots=True)
class GatedDelta(Operation):
    """Operands: q and k [B, S, G, E], v [B, S, H, F], gate and beta [B, S, H], and the documents where they count.

    Source: arXiv:2412.06464, section 3.
    """

    scale: float | None = None
    chunk: int = 64
    documents: bool = False
    stateful: ClassVar[bool] = True

    def infer(
        self, q: TensorType, k: TensorType, v: TensorType, gate: TensorType, beta: TensorType, *rest: TensorType
    ) -> tuple[TensorType, ...]:
        for name, found, axes in (("q", q, "[B, S, G, E]"), ("k", k, "[B, S, G, E]"), ("v", v, "[B, S, H, F]")):
            check_floating(found, name)
            if len(found.axes) != 4:
                raise ShapeError(f"`gated_delta` needs {axes}, and `{name}` is {found}", name)
        if _sizes(q) != _sizes(k):
            raise ShapeError(f"queries are {q}, and keys {k}", "k")
        if _sizes(v)[:2] != _sizes(k)[:2]:
            raise ShapeError(f"keys are {k}, and values {v}", "v")
        for name, found in (("gate", gate), ("beta", beta)):
            check_floating(found, name)
            if _sizes(found) != _sizes(v)[:3]:
                raise ShapeError(f"there is one `{name}` for each value, {v.with_axes(v.axes[:3])}, not {found}", name)
        return (TensorType(v.axes, q.dtype),)

    def flops(self, op: Op) -> Dim:
        """In chunks, the last one filled; of the triangular system half of what a product takes."""
        batch, sequence, groups, keys = (axis.size for axis in op.operands[1].type.axes)
        heads, values = (axis.size for axis in op.operands[2].type.axes[2:])
        chunk = Dim.of(self.chunk)
        inside = 4 * groups * chunk * keys + heads * chunk * (keys + 3 * values)
        return batch * ceil(sequence / chunk) * chunk * (inside + 6 * heads * keys * values)

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands)

    def emit(self, call: Call) -> Text:
        options: dict[str, Text | str | None] = {**_rest(call, self.documents)}
        options["scale"] = call.number(self.scale) if self.scale is not None else None
        options["chunk"] = str(self.chunk) if self.chunk != 64 else None
        return call.reference("gated_delta")(*call.operands[:5], **options)


def _rest(call: Call, documents: bool) -> dict[str, Text]:
    """While training the documents, where they count; while serving, of one document a row, what comes before."""
    if call.serving:
        assert call.state is not None
        return {"state": call.state}
    return {"documents_BS": call.operands[-1]} if documents else {}


def _sizes(kind: TensorType) -> tuple[Dim, ...]:
    return tuple(axis.size for axis in kind.axes)


def _documents(site: Site, x: Value) -> tuple[Value, ...]:
    axis = x.type.axes[1] if len(x.type.axes) > 1 else None
    if axis is None or site.builder.tokens_along(axis) is None:
        title = f"this goes along the second axis, which is none of an input's in {x.type}"
        raise ShapeError(title, "x" if "x" in site.arguments else "q")
    return (site.builder.documents(x),) if site["documents"] else ()


def _conv(site: Site) -> Value:
    x, width, bias = site.tensor("x"), int(site.positive("width")), bool(site["bias"])
    documents = _documents(site, x)
    channels = x.type.axes[-1]
    weights = [Weight("weight", ((channels,), (Axis("one", Dim.of(1)),), (Axis("W", Dim.of(width)),)))]
    if bias:
        weights.append(Weight("bias", ((channels,),), "zeros"))
    made = site.weights("Conv", *weights, **({"bias": True} if bias else {}))
    return site.add(Conv(width, bias, bool(documents)), x, *made, *documents)


def _gated_delta(site: Site) -> Value:
    operands = tuple(site.tensor(name) for name in ("q", "k", "v", "gate", "beta"))
    documents = _documents(site, operands[0])
    scale = site["scale"]
    attributes = GatedDelta(
        float(scale) if isinstance(scale, Fraction) else None, int(site.positive("chunk")), bool(documents)
    )
    return site.add(attributes, *operands, *documents)


_DOCUMENTS = Parameter("documents", Kind.BOOL, False, doc="begins anew with each document of a packed sequence")

PRIMITIVES = (
    Primitive(
        Signature(
            "conv",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("width", Kind.INT, doc="positions that one result sees, its own the last"),
                Parameter("bias", Kind.BOOL, False, doc="adds a learned bias"),
                _DOCUMENTS,
            ),
            "A learned causal convolution along the second axis, of each channel by itself (arXiv:2312.00752).",
        ),
        _conv,
        weighted=True,
    ),
    Primitive(
        Signature(
            "gated_delta",
            (
                Parameter("q", Kind.TENSOR, doc="what each position asks of the memory, `[B, S, G, E]`"),
                Parameter("k", Kind.TENSOR, doc="where it writes; of length 1 or less"),
                Parameter("v", Kind.TENSOR, doc="what, `[B, S, H, F]`"),
                Parameter("gate", Kind.TENSOR, doc="the logarithm of what the memory keeps, 0 or less, `[B, S, H]`"),
                Parameter("beta", Kind.TENSOR, doc="how far the memory moves towards the value, `[B, S, H]`"),
                Parameter("scale", Kind.FLOAT, None, doc="of the queries; 1 / sqrt(E) unless told"),
                Parameter("chunk", Kind.INT, 64, doc="positions worked on at once: the result is the same"),
                _DOCUMENTS,
            ),
            "Linear attention by the gated delta rule, its memory a matrix for each head (arXiv:2412.06464).",
        ),
        _gated_delta,
    ),
)
