"""A learned tensor by itself: what belongs to no linear map, norm or embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..ir import DType, TensorType, Value
from ..primitive import Primitive, Site
from ..signature import DTYPES, Kind, Parameter, Signature
from ..values import Size
from .base import Operation, ShapeError
from .weights import Weight

if TYPE_CHECKING:
    from ..emit.expression import Call, Text

STARTS = ("zeros", "ones", "normal")


@dataclass(frozen=True, slots=True)
class Read(Operation):
    """Operand: the weight. Its numbers in the dtype that they are worked with in."""

    dtype: DType = DType.COMPUTE

    def infer(self, weight: TensorType) -> tuple[TensorType, ...]:
        return (weight.with_dtype(self.dtype),)

    def emit(self, call: Call) -> Text:
        return call.apply(call.module(0), call.text(call.dtype(self.dtype)))


def _parameter(site: Site) -> Value:
    axes, start, compute = site["axes"], site["start"], site["compute"]
    assert isinstance(axes, tuple) and isinstance(start, str)
    if not axes:
        raise ShapeError("a parameter has at least one axis", "axes")
    groups = tuple((size.axis,) for size in axes if isinstance(size, Size))
    (weight,) = site.weights("Parameter", Weight("weight", groups, start), start=start)
    dtype = DType(compute) if isinstance(compute, str) else DType.COMPUTE
    return site.add(Read(dtype), weight)


PRIMITIVES = (
    Primitive(
        Signature(
            "parameter",
            (
                Parameter("axes", Kind.SIZES, doc="its axes, such as `[H, E]`"),
                Parameter("start", Kind.SYMBOL, "zeros", STARTS, doc="its numbers before training"),
                Parameter("compute", Kind.DTYPE, None, DTYPES, doc="read in it; in that of activations unless told"),
            ),
            "A learned tensor.",
        ),
        _parameter,
        weighted=True,
    ),
)
