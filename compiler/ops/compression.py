"""Residual compression: what backward holds is the compressed form alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskc.dsl.dims import Dim

from ..ir import Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from ..values import ArrowValue, BlockValue
from .base import Operation, Saved, ShapeError, check_floating, last_axis
from .linear import linear_weights
from .norm import layer_norm_weights

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Compressed(Operation):
    """Operands: x [.., D], weights and biases of `down` [R, D] and `up` [D, R], and of a layer norm [D]."""

    eps: float

    def infer(self, x: TensorType, *weights: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def flops(self, op: Op) -> Dim:
        x, down = op.operands[0].type, op.operands[1].type
        return Dim.of(4) * x.elements * down.axes[0].size

    def saved(self, op: Op) -> Saved:
        x, down = op.operands[0].type, op.operands[1].type
        return Saved(extra=((x.elements / x.axes[-1].size * down.axes[0].size, "compute"),))

    def emit(self, call: Call) -> Text:
        weights = (call.tensor(i) for i in range(1, 7))
        return call.reference("compressed")(call.operand(0), *weights, eps=call.number(self.eps))


def _compressed(site: Site) -> Value:
    x = site.tensor("x")
    width = last_axis(x.type, "x")
    down, up = _layer(site, "down", "linear"), _layer(site, "up", "linear")
    norm = _layer(site, "norm", "layer_norm")
    there, back = down["axes"], up["axes"]
    assert isinstance(there, ArrowValue) and isinstance(back, ArrowValue)
    for name, axes, ends in (("down", there, there.source), ("up", back, back.target)):
        if ends is None or axes.source is None or tuple(a.size for a in ends) != (width.size,):
            raise ShapeError(f"`{name}` maps `{width.size}`, written out", name)
    if len(there.target) != 1 or tuple(a.size for a in there.target) != tuple(a.size for a in back.source or ()):
        raise ShapeError("`up` maps back what `down` makes", "up")
    if not (down["bias"] and up["bias"] and norm["bias"]):
        raise ShapeError("the three layers have biases: `bias: true`", "down", code="DSK0131")
    weights = (*linear_weights(down, there), *linear_weights(up, back), *layer_norm_weights(norm, width))
    return site.add(Compressed(norm.positive("eps", zero=True)), x, *weights)


def _layer(site: Site, name: str, kind: str) -> Site:
    """The site of a layer that is given as a value: its weights stand where it was made."""
    value = site[name]
    assert isinstance(value, BlockValue)
    if not isinstance(value.callee, Primitive) or value.callee.name != kind:
        raise ShapeError(f"`{name}` is a `{kind}(..)` that still wants its tensor", name, code="DSK0126")
    value.path = value.path or value.builder.join(name)
    arguments = {**value.callee.signature.defaults, **value.arguments}
    return Site(site.builder, site.span, value.path, arguments, value)


PRIMITIVES = (
    Primitive(
        Signature(
            "compressed",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("down", Kind.BLOCK, doc="`linear(D -> R, bias: true)`"),
                Parameter("up", Kind.BLOCK, doc="`linear(R -> D, bias: true)`"),
                Parameter("norm", Kind.BLOCK, doc="`layer_norm()`"),
            ),
            "norm(x + up(gelu(down(x)))), of which backward holds down(x) alone: what is restored stands for x there.",
        ),
        _compressed,
        weighted=True,
    ),
)
