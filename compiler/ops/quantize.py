"""Quantization of activations, a scale for every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..ir import DType, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import Kind, Parameter, Signature
from .base import RowOperation, check_floating, last_axis

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing

GREATEST = {"int8": 127.0, "fp8": 448.0}  # of int8, kept symmetric; of float8_e4m3fn (arXiv:2209.05433, table 1)


@dataclass(frozen=True, slots=True)
class Quantize(RowOperation):
    """x [.., D] as integers or 8-bit floats with one scale a row: x is about `values * scale`. No gradient flows."""

    to: str
    result_names: ClassVar[tuple[str, ...]] = ("values", "scale")

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floating(x, "x")
        last_axis(x, "x")
        return (x.with_dtype(DType(self.to)), TensorType(x.axes[:-1], DType.FP32))

    def emit(self, call: Call) -> Text:
        return call.reference("quantize")(call.operand(0), call.text(call.string(self.to)))

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        x, greatest = operands[0].stop(), GREATEST[self.to]
        scale = (x.abs().max() / greatest).maximum(1e-12).called("scale")
        values = x / scale
        if self.to == "int8":
            values = values.round_even()
        return values.maximum(-greatest).minimum(greatest), scale


def _quantize(site: Site) -> tuple[Value, ...]:
    return site.builder.add(Quantize(str(site["to"])), (site.tensor("x"),), site.span)


PRIMITIVES = (
    Primitive(
        Signature(
            "quantize",
            (
                Parameter("x", Kind.TENSOR),
                Parameter("to", Kind.SYMBOL, "int8", ("int8", "fp8"), doc="what values are stored in"),
            ),
            "Values of 8 bits and a scale for each row, whose product is about x; no gradient flows through it.",
        ),
        _quantize,
    ),
)
