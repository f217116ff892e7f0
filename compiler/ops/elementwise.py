"""Arithmetic and activations, element by element; axes broadcast by name from the right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..ir import FLOATING, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import Operation, Saved, ShapeError, check_floating, common_dtype, last_axis

if TYPE_CHECKING:
    from ..emit.expression import Call, Text

_SIGNS = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}


@dataclass(frozen=True, slots=True)
class Elementwise(Operation):
    """add, sub, mul or div of two tensors, or of one and the number `by` (`reverse`: the number comes first)."""

    operator: str
    by: float | None = None
    reverse: bool = False

    @property
    def kind(self) -> str:
        return self.operator

    def infer(self, x: TensorType, *other: TensorType) -> tuple[TensorType, ...]:
        if not all(t.dtype in FLOATING for t in (x, *other)):
            self._check_integers(x, *other)
        if not other:
            return (x,)
        longer, shorter = (x, other[0]) if len(x.axes) >= len(other[0].axes) else (other[0], x)
        skip = len(longer.axes) - len(shorter.axes)
        for a, b in zip(longer.axes[skip:], shorter.axes, strict=True):
            if a.size != b.size:
                raise ShapeError(f"{_shape(x)} and {_shape(other[0])} do not meet: `{a.size}` is not `{b.size}`")
        return (TensorType(longer.axes, common_dtype(x, other[0])),)

    def _check_integers(self, *operands: TensorType) -> None:
        """Integers alone give integers; with a tensor of floating point they give that."""
        alone = not any(t.dtype in FLOATING for t in operands)
        if alone and (self.operator == "div" or not float(self.by or 0).is_integer()):
            raise ShapeError(f"{' and '.join(map(str, operands))} cannot give fractions: they are integers")

    def saved(self, op: Op) -> Saved:
        if len(op.operands) == 2 and self.operator in ("mul", "div"):
            return Saved(op.operands)
        return Saved((op.result,)) if self.operator == "div" and self.reverse else Saved()

    def emit(self, call: Call) -> Text:
        sign, level = _SIGNS[self.operator]
        left = call.operand(0)
        right = call.operand(1) if self.by is None else call.number(self.by)
        if self.reverse:
            left, right = right, left
        return call.infix(left, sign, right, level)

    def describe(self) -> str:
        return "" if self.by is None else f"by={self.by:g}" + (", reverse" if self.reverse else "")


def _shape(t: TensorType) -> str:
    return f"[{', '.join(str(a.size) for a in t.axes)}]"


@dataclass(frozen=True, slots=True)
class Activation(Operation):
    """A function of one number, applied to all: silu, gelu, gelu_tanh, sigmoid, tanh, relu."""

    function: str

    @property
    def kind(self) -> str:
        return self.function

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved((op.result,) if self.function in ("sigmoid", "tanh", "relu") else op.operands)

    def emit(self, call: Call) -> Text:
        return call.reference(self.function)(call.operand(0))

    def describe(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Softmax(Operation):
    """Over the last axis, in fp32 at least."""

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        last_axis(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        if op.result.type.dtype is DType.FP32:
            return Saved((op.result,))
        return Saved(extra=((op.result.type.elements, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("softmax")(call.operand(0))


@dataclass(frozen=True, slots=True)
class Softcap(Operation):
    """cap * tanh(x / cap)."""

    cap: float

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=((op.result.type.elements, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("softcap")(call.operand(0), call.number(self.cap))


@dataclass(frozen=True, slots=True)
class Dropout(Operation):
    """Zeroes each element with probability p while training, and scales the others by 1 / (1 - p)."""

    p: float
    pure: ClassVar[bool] = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=((op.result.type.elements, "bool"),))

    def emit(self, call: Call) -> Text:
        return call.reference("dropout")(call.operand(0), call.number(self.p), call.text("self.training"))


@dataclass(frozen=True, slots=True)
class Cast(Operation):
    """The same numbers in another dtype."""

    dtype: DType

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_dtype(self.dtype),)

    def emit(self, call: Call) -> Text:
        return call.operand(0).method(f"to({call.dtype(self.dtype)})")


def _activation(name: str, doc: str) -> Primitive:
    def build(site: Site) -> Value:
        return site.add(Activation(name), site.tensor("x"))

    return Primitive(Signature(name, (Parameter("x", Kind.TENSOR),), doc), build)


def _probability(site: Site, name: str) -> float:
    p = float(site.number(name))
    if not 0.0 <= p < 1.0:
        raise ShapeError(f"`{name}` is a probability: from 0 to under 1, not {p:g}", name, code="DSK0131")
    return p


def _dropout(site: Site) -> Value:
    p = _probability(site, "p")
    return site.add(Dropout(p), site.tensor("x")) if p else site.tensor("x")


PRIMITIVES = (
    _activation("silu", "x * sigmoid(x)."),
    _activation("gelu", "x * Φ(x), exact (arXiv:1606.08415)."),
    _activation("gelu_tanh", "GELU in its tanh form (arXiv:1606.08415)."),
    _activation("sigmoid", "1 / (1 + exp(-x))."),
    _activation("tanh", "The hyperbolic tangent."),
    _activation("relu", "max(x, 0)."),
    Primitive(
        Signature("softmax", (Parameter("x", Kind.TENSOR),), "exp(x) / sum(exp(x)) over the last axis, in fp32."),
        lambda site: site.add(Softmax(), site.tensor("x")),
    ),
    Primitive(
        Signature(
            "softcap",
            (Parameter("x", Kind.TENSOR), Parameter("cap", Kind.FLOAT)),
            "cap * tanh(x / cap) (arXiv:2408.00118).",
        ),
        lambda site: site.add(Softcap(site.positive("cap")), site.tensor("x")),
    ),
    Primitive(
        Signature(
            "dropout",
            (Parameter("x", Kind.TENSOR), Parameter("p", Kind.FLOAT, doc="the probability of zero")),
            "Zeroes elements at random while training (arXiv:1207.0580).",
        ),
        _dropout,
    ),
)
