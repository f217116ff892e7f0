"""Compressed memory: groups of positions summed into one entry each, the entries a query chooses, attention to them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import Mask
from .base import Operation, Saved, ShapeError, check_floating
from .position import Positions, group_axis

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Compress(Operation):
    """Operands: x and gate [B, S, W], bias [M, W]. One entry for every whole group of M positions: [B, C, E].

    With `overlap` W is 2 E: an entry is made of the first half of the group before and the second half of its own.
    """

    size: int
    width: Axis
    overlap: bool = False
    number: int = 1  # among those of its block: a cache keeps them apart
    pure: ClassVar[bool] = False
    stateful: ClassVar[bool] = True

    def infer(self, x: TensorType, gate: TensorType, bias: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        if len(x.axes) != 3:
            raise ShapeError(f"`compress` needs [B, S, W], and gets {x}", "x")
        if tuple(a.size for a in x.axes) != tuple(a.size for a in gate.axes):
            raise ShapeError(f"there is a gate for every number of x, {x}, and this is {gate}", "gate")
        if len(bias.axes) != 2 or bias.axes[1].size != x.axes[2].size:
            raise ShapeError(f"the bias is [M, {x.axes[2].size}], and this is {bias}", "bias")
        if self.width.size * (2 if self.overlap else 1) != x.axes[2].size:
            raise ShapeError(f"`{self.width.size}` is not half of `{x.axes[2].size}`", "x")
        return (x.with_axes((x.axes[0], group_axis(x.axes[1], self.size), self.width)),)

    def saved(self, op: Op) -> Saved:
        x = op.operands[0].type
        return Saved(op.operands[:1], ((x.elements, "fp32"),))

    def emit(self, call: Call) -> Text:
        overlap = call.text("True") if self.overlap else None
        if call.serving:
            name = call.text(f'"entries{self.number if self.number > 1 else ""}"')
            return call.apply("cache.compress", name, *call.operands, *([overlap] if overlap else []))
        return call.reference("compress")(*call.operands, overlap=overlap)


@dataclass(frozen=True, slots=True)
class ChooseEntries(Operation):
    """Operands: q [B, S, H, E], k [B, C, E], weight [B, S, H], position [S]. What each query sees: bool [B, S, C]."""

    k: int
    size: int

    def infer(self, q: TensorType, k: TensorType, weight: TensorType, position: TensorType) -> tuple[TensorType, ...]:
        if len(q.axes) != 4 or len(k.axes) != 3 or q.axes[3].size != k.axes[2].size:
            raise ShapeError(f"`choose_entries` needs q [B, S, H, E] and k [B, C, E], not {q} and {k}", "k")
        if tuple(a.size for a in weight.axes) != tuple(a.size for a in q.axes[:3]):
            raise ShapeError(f"there is a weight for every head of {q}, and this is {weight}", "weight")
        return (TensorType((*q.axes[:2], k.axes[1]), DType.BOOL),)

    def flops(self, op: Op) -> Dim:
        q, k = (value.type for value in op.operands[:2])
        return Dim.of(2) * q.elements * k.axes[1].size

    def emit(self, call: Call) -> Text:
        return call.reference("choose_entries")(
            *call.operands, k=call.text(str(self.k)), size=call.text(str(self.size))
        )


@dataclass(frozen=True, slots=True)
class AttendCompressed(Operation):
    """Operands: q [B, S, H, E], kv [B, T, E], sinks [H], entries [B, C, E], each for `size` positions, and where some
    of them were chosen, which: bool [B, S, C]."""

    size: int
    mask: Mask | None = None  # of positions
    scale: float | None = None
    pure: ClassVar[bool] = False

    def infer(
        self, q: TensorType, kv: TensorType, sinks: TensorType, entries: TensorType, *chosen: TensorType
    ) -> tuple[TensorType, ...]:
        for name, t in (("q", q), ("kv", kv), ("entries", entries), ("sinks", sinks)):
            check_floating(t, name)
        if len(q.axes) != 4:
            raise ShapeError(f"queries are [B, S, H, E], and these are {q}", "q")
        for name, t in (("kv", kv), ("entries", entries)):
            if len(t.axes) != 3 or t.axes[2].size != q.axes[3].size:
                raise ShapeError(f"`{name}` is [B, T, {q.axes[3].size}], and this is {t}", name)
        if tuple(a.size for a in sinks.axes) != (q.axes[2].size,):
            raise ShapeError(f"there is a sink for each of `{q.axes[2].size}` heads, and this is {sinks}", "sinks")
        if chosen and chosen[0].dtype is not DType.BOOL:
            raise ShapeError(f"`chosen` is what `choose_entries` gives, and this is {chosen[0]}", "chosen")
        return (q,)

    def flops(self, op: Op) -> Dim:
        kv, _, entries = (value.type for value in op.operands[1:4])
        return Dim.of(4) * op.operands[0].type.elements * (kv.axes[1].size + entries.axes[1].size)

    def saved(self, op: Op) -> Saved:
        """q, keys and values in fp32, the probabilities, and which keys are seen."""
        q, kv, _, entries = (value.type for value in op.operands[:4])
        batch, queries, heads, width = (axis.size for axis in q.axes)
        keys = kv.axes[1].size + entries.axes[1].size
        scores = batch * heads * queries * (keys + 1)
        seen = queries * keys * (batch if len(op.operands) > 4 else 1)
        return Saved(extra=((q.elements + 2 * batch * keys * width + scores, "fp32"), (seen, "bool")))

    def emit(self, call: Call) -> Text:
        return call.reference("attend_compressed")(
            *call.operands,
            mask=call.mask(self.mask, None) if self.mask else None,
            size=call.text(str(self.size)),
            scale=call.number(self.scale) if self.scale is not None else None,
        )


def _whole(site: Site, name: str) -> int:
    value = int(site.number(name))
    if value < 1:
        raise ShapeError(f"`{name}` is at least 1, not {value}", name, code="DSK0131")
    return value


def _compress(site: Site) -> Value:
    x, overlap = site.tensor("x"), bool(site["overlap"])
    if len(x.type.axes) != 3:
        raise ShapeError(f"`compress` needs [B, S, W], and gets {x.type}", "x")
    bias = site.tensor("bias")
    size = bias.type.axes[0].size if bias.type.axes else Dim.of(0)
    if not size.is_constant:
        raise ShapeError(f"the first axis of the bias is a number, and this is `{size}`", "bias")
    whole = x.type.axes[2]
    width = Axis("E", whole.size / 2) if overlap else whole
    number = 1 + sum(isinstance(op.attributes, Compress) for op in site.builder.ops)
    return site.add(Compress(int(size.constant), width, overlap, number), x, site.tensor("gate"), bias)


def _choose(site: Site) -> Value:
    q, k, weight = (site.tensor(name) for name in ("q", "k", "weight"))
    axis = q.type.axes[1] if len(q.type.axes) > 1 else None
    inputs = site.builder.inputs_along(axis) if axis is not None else ()
    if axis is None or not inputs:
        raise ShapeError(f"queries stand along the axis of an input, and these are {q.type}", "q")
    position = site.builder.one(Positions(axis), inputs, site.span, "position")
    return site.add(ChooseEntries(_whole(site, "top"), _whole(site, "every")), q, k, weight, position)


def _attend_compressed(site: Site) -> Value:
    operands = [site.tensor(name) for name in ("q", "kv", "sinks", "entries")]
    if site["chosen"] is not None:
        operands.append(site.tensor("chosen"))
    scale = site["scale"]
    number = float(scale) if isinstance(scale, Fraction) else None
    mask = site["mask"] if isinstance(site["mask"], Mask) else None
    if mask is not None and "documents" in mask.names:
        title = "entries stand for groups of positions, whatever documents these are of: a mask cannot tell them apart"
        raise ShapeError(title, "mask", code="DSK0190")
    return site.add(AttendCompressed(_whole(site, "every"), mask, number), *operands)


_EVERY = Parameter("every", Kind.INT, doc="how many positions an entry stands for")
PRIMITIVES = (
    Primitive(
        Signature(
            "compress",
            (
                Parameter("x", Kind.TENSOR, doc="[B, S, W]"),
                Parameter("gate", Kind.TENSOR, doc="how much of each position, before its softmax over the group"),
                Parameter("bias", Kind.TENSOR, doc="[M, W], added to the gates of each group of M positions"),
                Parameter("overlap", Kind.BOOL, False, doc="an entry also draws on the group before, by half of W"),
            ),
            "One entry for every whole group of M positions, their gated mean (DeepSeek-V4, section 2.3). With a cache "
            "it gives the entries of all groups so far, and holds the positions of the unfinished one.",
        ),
        _compress,
    ),
    Primitive(
        Signature(
            "choose_entries",
            (
                Parameter("q", Kind.TENSOR, doc="queries [B, S, H, E]"),
                Parameter("k", Kind.TENSOR, doc="a key for each entry, [B, C, E]"),
                Parameter("weight", Kind.TENSOR, doc="of each head, [B, S, H]"),
                Parameter("top", Kind.INT, doc="how many entries a query sees at most"),
                _EVERY,
            ),
            "For each query the entries before it that score best by the sum over heads of weight * relu(q k) "
            "(DeepSeek-V4, section 2.3.1; arXiv:2512.02556, equation 1). No gradient flows through a choice.",
        ),
        _choose,
    ),
    Primitive(
        Signature(
            "attend_compressed",
            (
                Parameter("q", Kind.TENSOR, doc="queries [B, S, H, E]"),
                Parameter("kv", Kind.TENSOR, doc="key and value of each position, for all heads: [B, S, E]"),
                Parameter("entries", Kind.TENSOR, doc="key and value of each group of positions, [B, C, E]"),
                Parameter("sinks", Kind.TENSOR, doc="a logit of each head that has no value, [H]"),
                _EVERY,
                Parameter("mask", Kind.MASK, None, doc="which positions a query sees; all unless told"),
                Parameter("chosen", Kind.TENSOR, None, doc="which entries a query sees, of those before it; else all"),
                Parameter("scale", Kind.FLOAT, None, doc="of the scores; 1 / sqrt(width) unless told"),
            ),
            "Attention to positions as the mask allows, and to the entries of whole groups up to the query's own "
            "(DeepSeek-V4, section 2.3).",
        ),
        _attend_compressed,
    ),
)
