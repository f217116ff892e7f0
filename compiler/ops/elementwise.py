"""Arithmetic and activations, element by element; axes broadcast by name from the right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import FLOATING, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import Operation, RowOperation, Saved, ShapeError, check_floating, common_dtype, last_axis

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing

_ONE = Dim.of(1)
_SIGNS = {"add": ("+", 1), "sub": ("-", 1), "mul": ("*", 2), "div": ("/", 2)}


@dataclass(frozen=True, slots=True)
class Elementwise(RowOperation):
    """add, sub, mul or div of two tensors, or of one and the number `by` (`reverse`: the number comes first).

    An axis of size 1 of the one with fewer axes meets any: a weight [H, 1] for each head of [B, S, H, E].
    """

    operator: str
    by: float | None = None
    reverse: bool = False
    alone: ClassVar[bool] = False

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
            if a.size != b.size and b.size != _ONE:
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

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        left, right = operands if self.by is None else (operands[0], writing.number(self.by))
        if self.reverse:
            left, right = right, left
        function = {"add": left.__add__, "sub": left.__sub__, "mul": left.__mul__, "div": left.__truediv__}
        return (function[self.operator](right),)

    def describe(self) -> str:
        return "" if self.by is None else f"by={self.by:g}" + (", reverse" if self.reverse else "")


def _shape(t: TensorType) -> str:
    return f"[{', '.join(str(a.size) for a in t.axes)}]"


@dataclass(frozen=True, slots=True)
class Activation(RowOperation):
    """A function of one number, for all: silu, gelu, gelu_tanh, sigmoid, tanh, relu, exp, log, softplus, sqrt."""

    function: str
    alone: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        return self.function

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved((op.result,) if self.function in ("sigmoid", "tanh", "relu", "exp", "sqrt") else op.operands)

    def emit(self, call: Call) -> Text:
        return call.reference(self.function)(call.operand(0))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        return (_FUNCTIONS[self.function](*operands),)

    def describe(self) -> str:
        return ""


def _softplus(x: Row) -> Row:
    """log(1 + exp(x)) without an exponential that overflows."""
    most = x.where((-x).less(0.0), 0.0)
    return most + ((x - most * 2.0).exp() + 1.0).log()


_FUNCTIONS: dict[str, Callable[[Row], Row]] = {
    "silu": lambda x: x * x.sigmoid(),
    "gelu": lambda x: x * 0.5 * ((x * math.sqrt(0.5)).erf() + 1.0),
    "gelu_tanh": lambda x: x * 0.5 * (((x + x * x * x * 0.044715) * math.sqrt(2.0 / math.pi)).tanh() + 1.0),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: x.tanh(),
    "relu": lambda x: x.where((-x).less(0.0), 0.0),
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "softplus": _softplus,
    "sqrt": lambda x: x.sqrt(),
}


@dataclass(frozen=True, slots=True)
class Softmax(RowOperation):
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

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        (x,) = operands
        grown = (x - x.max().called("most")).exp().called("grown")
        return (grown / grown.sum().called("total"),)


@dataclass(frozen=True, slots=True)
class Softcap(RowOperation):
    """cap * tanh(x / cap)."""

    cap: float

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=((op.result.type.elements, "fp32"),))

    def emit(self, call: Call) -> Text:
        return call.reference("softcap")(call.operand(0), call.number(self.cap))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        return ((operands[0] / self.cap).tanh() * self.cap,)


@dataclass(frozen=True, slots=True)
class Clamp(RowOperation):
    """x kept from `least` to `most`; None where there is no bound."""

    least: float | None
    most: float | None
    alone: ClassVar[bool] = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands)

    def emit(self, call: Call) -> Text:
        bounds = (None if bound is None else call.number(bound) for bound in (self.least, self.most))
        least, most = (call.text("None") if bound is None else bound for bound in bounds)
        return call.reference("clamp")(call.operand(0), least, most)

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        (x,) = operands
        y = x
        # Written as choices: the gradient passes where x is within the bounds, and at them, as torch has it.
        if self.least is not None:
            y = y.where(writing.number(self.least).less_equal(x), self.least)
        if self.most is not None:
            y = y.where(x.less_equal(self.most), self.most)
        return (y,)


@dataclass(frozen=True, slots=True)
class Dropout(RowOperation):
    """Zeroes each element with probability p while training, and scales the others by 1 / (1 - p)."""

    p: float
    pure: ClassVar[bool] = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(extra=((op.result.type.elements, "bool"),))

    def emit(self, call: Call) -> Text:
        return call.reference("dropout")(call.operand(0), call.number(self.p), call.text(call.training))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        return (writing.dropout(operands[0], self.p),)


@dataclass(frozen=True, slots=True)
class Noise(Operation):
    """Standard normal numbers while training, otherwise zeros."""

    pure: ClassVar[bool] = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        return (x,)

    def emit(self, call: Call) -> Text:
        return call.reference("noise")(call.operand(0), call.text(call.training))


@dataclass(frozen=True, slots=True)
class Cast(RowOperation):
    """The same numbers in another dtype."""

    dtype: DType
    alone: ClassVar[bool] = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_dtype(self.dtype),)

    def emit(self, call: Call) -> Text:
        return call.operand(0).method(f"to({call.dtype(self.dtype)})")

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        return operands  # rounded where it is stored


def _activation(name: str, doc: str) -> Primitive:
    def build(site: Site) -> Value:
        return site.add(Activation(name), site.tensor("x"))

    return Primitive(Signature(name, (Parameter("x", Kind.TENSOR),), doc), build)


def _clamp(site: Site) -> Value:
    least, most = (None if site[name] is None else float(site.number(name)) for name in ("min", "max"))
    if least is None and most is None:
        raise ShapeError("`clamp` needs `min`, `max` or both", code="DSK0131")
    if least is not None and most is not None and least > most:
        raise ShapeError(f"`min` is over `max`: {least:g} > {most:g}", "min", code="DSK0131")
    return site.add(Clamp(least, most), site.tensor("x"))


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
    _activation("exp", "e to the power of x."),
    _activation("log", "The natural logarithm."),
    _activation("softplus", "log(1 + exp(x))."),
    _activation("sqrt", "The square root."),
    Primitive(
        Signature(
            "clamp",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("min", Kind.FLOAT, None, doc="no bound below unless told"),
                Parameter("max", Kind.FLOAT, None, doc="no bound above unless told"),
            ),
            "x kept between `min` and `max`.",
        ),
        _clamp,
    ),
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
    Primitive(
        Signature(
            "noise", (Parameter("x", Kind.TENSOR),), "Standard normal numbers, as many as x, while training; else 0."
        ),
        lambda site: site.add(Noise(), site.tensor("x")),
    ),
)
