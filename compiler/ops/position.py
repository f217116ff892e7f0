"""Positions and rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, Op, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import REQUIRED, Default, Kind, Parameter, Record, Signature
from ..values import Size
from .base import Operation, RowOperation, Saved, ShapeError, check_floating

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing


@dataclass(frozen=True, slots=True)
class Positions(Operation):
    """0, 1, 2, ... along an axis of the operand; behind a cache, on from what it holds."""

    axis: Axis
    invariant: ClassVar[bool] = True

    def infer(self, like: TensorType) -> tuple[TensorType, ...]:
        return (TensorType((self.axis,), DType.INT64),)

    def emit(self, call: Call) -> Text:
        like = call.operand(0)
        if call.serving:
            return call.text("cache").method(f"positions({like})")
        axis = [a.size for a in call.op.operands[0].type.axes].index(self.axis.size)
        return call.text(f"torch.arange({like}.shape[{axis}], device={like}.device)")


@dataclass(frozen=True, slots=True)
class RopeTable(Operation):
    """Operand: positions [S]. Results: cos and sin [S, width / 2] in fp32. Source: arXiv:2104.09864."""

    theta: float
    width: Axis
    scaling: Record | None = None
    invariant: ClassVar[bool] = True
    result_names: ClassVar[tuple[str, ...]] = ("cos", "sin")

    def written_sizes(self) -> tuple[Dim, ...]:
        return (self.width.size,)

    def infer(self, position: TensorType) -> tuple[TensorType, ...]:
        half = Axis(self.width.name, self.width.size / 2)
        table = TensorType((*position.axes, half), DType.FP32)
        return (table, table)

    def emit(self, call: Call) -> Text:
        scaling = call.record(self.scaling, _SCALING_CLASSES) if self.scaling else None
        return call.reference("rope_table")(
            call.operand(0), width=call.size(self.width.size), theta=call.number(self.theta), scaling=scaling
        )


@dataclass(frozen=True, slots=True)
class Rope(RowOperation):
    """Operands: x [B, S, .., E], cos and sin. Rotates the first `width` of the last axis."""

    pairs: str = "half"

    def infer(self, x: TensorType, cos: TensorType, sin: TensorType) -> tuple[TensorType, ...]:
        return (x,)

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands[1:])

    def emit(self, call: Call) -> Text:
        pairs = call.string(self.pairs) if self.pairs != "half" else None
        return call.reference("rope")(*call.operands, pairs=pairs)

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        x, cos, sin = operands
        a, b, *rest = x.divided()
        return ((a * cos - b * sin).joined(b * cos + a * sin, *rest),)


_SCALING_CLASSES = {"linear": "LinearScaling", "llama3": "Llama3Scaling", "yarn": "YarnScaling"}


def _number(name: str, default: Default = REQUIRED, doc: str = "") -> Parameter:
    return Parameter(name, Kind.FLOAT, default, doc=doc)


_FROM = Parameter("from", Kind.INT, doc="the context the model was first trained on")
SCALINGS = (
    Signature("linear", (_number("factor"),), "Positions divided by `factor` (arXiv:2306.15595)."),
    Signature(
        "llama3",
        (_number("factor", 8.0), _number("low", 1.0), _number("high", 4.0), _FROM),
        "Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a blend between (arXiv:2407.21783).",
    ),
    Signature(
        "yarn",
        (
            _number("factor"),
            _FROM,
            _number("beta_fast", 32.0),
            _number("beta_slow", 1.0),
            _number("mscale", None),
            _number("mscale_all", None),
            _number("attention", None),
            Parameter("truncate", Kind.BOOL, True, doc="rounds the ends of the ramp to whole pairs"),
        ),
        "YaRN (arXiv:2309.00071).",
    ),
)


def _rope(site: Site) -> Value:
    x = site.tensor("x")
    check_floating(x.type, "x")
    if len(x.type.axes) < 3:
        raise ShapeError(f"`rope` needs [B, S, .., E], and gets {x.type}", "x")
    axis = x.type.axes[1]
    tokens = site.builder.tokens_along(axis)
    if tokens is None:
        raise ShapeError(
            f"`rope` turns by position along the second axis, and `{axis.size}` is no axis of an input", "x"
        )
    width = site["width"]
    last = width.axis if isinstance(width, Size) else x.type.axes[-1]
    add = site.builder.one
    positions = add(Positions(axis), (tokens,), site.span, "position")
    scaling = site["scaling"]
    assert scaling is None or isinstance(scaling, Record)
    for name, value in scaling.arguments if scaling else ():
        if isinstance(value, Fraction) and value <= 0 and not name.startswith("mscale"):  # where 0 stands for none
            raise ShapeError(f"`{name}` of the scaling is over 0", "scaling", code="DSK0131")
    table = RopeTable(site.positive("theta"), last, scaling)
    cos, sin = site.builder.add(table, (positions,), site.span)
    return site.add(Rope(str(site["pairs"])), x, cos, sin)


PRIMITIVES = (
    Primitive(
        Signature(
            "rope",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("theta", Kind.FLOAT, 10_000.0, doc="the base of the wavelengths"),
                Parameter("pairs", Kind.SYMBOL, "half", ("half", "interleaved"), doc="which two turn together"),
                Parameter("width", Kind.SIZE, None, doc="how much of the last axis turns; all of it unless told"),
                Parameter("scaling", Kind.RECORD, None, records=SCALINGS, doc="to reach longer contexts"),
            ),
            "Rotary position embedding along the second axis (arXiv:2104.09864).",
        ),
        _rope,
    ),
)
