"""What every operation declares: its shape rule, its costs, and how generated code calls it.

An operation is one frozen dataclass, its attributes, with these methods; a primitive is how specs call it. Adding one
is a file here (listed in `primitives.py`), its function of the same name in `runtime/reference/`, and a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import FLOATING, Attributes, Axis, DType, Op, TensorType, Value

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.row import Row, Writing

ZERO = Dim.of(0)


class ShapeError(Exception):
    """Operands that do not fit. `argument` names the parameter at fault where there is one; `note` draws the values."""

    def __init__(self, message: str, argument: str | None = None, note: str | None = None, code: str = "DSK0201"):
        super().__init__(message)
        self.argument = argument
        self.note = note
        self.code = code


@dataclass(frozen=True, slots=True)
class Saved:
    """What backward holds on to: values that exist anyway, and elements that only the operation knows of.

    An extra's kind is a dtype by name. (The ledger counts copies of weights in the compute dtype, for all alike.)
    """

    values: tuple[Value, ...] = ()
    extra: tuple[tuple[Dim, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Operation(Attributes):
    """Base of all operations."""

    pure: ClassVar[bool] = True  # equal operands give equal results: may be shared and hoisted
    invariant: ClassVar[bool] = False  # depends on no activation: `canonicalize` moves it out of repeats and blocks
    result_names: ClassVar[tuple[str, ...]] = ()  # what results are called where the spec does not name them
    stateful: ClassVar[bool] = False  # carries something along the sequence, which decoding goes on from
    reference: ClassVar[str | None] = None  # its function in runtime/reference, where the name differs from `kind`
    infer: ClassVar[Callable[..., tuple[TensorType, ...]]]  # from operands' types to results', or ShapeError

    def verify(self, op: Op) -> None:
        """An assertion on what must hold between passes."""
        inferred = self.infer(*(value.type for value in op.operands))
        assert len(inferred) == len(op.results), f"{self.kind}: {len(op.results)} results, {len(inferred)} inferred"
        for value, expected in zip(op.results, inferred, strict=True):
            found = tuple(axis.size for axis in value.type.axes)
            assert found == tuple(axis.size for axis in expected.axes), f"{self.kind}: {value.type}, not {expected}"

    def flops(self, op: Op) -> Dim:
        """Floating-point operations of matrix products in one forward run: 2 * m * n * k, as torch counts them."""
        return ZERO

    def saved(self, op: Op) -> Saved:
        """What the reference holds for backward."""
        return Saved()

    def written_sizes(self) -> tuple[Dim, ...]:
        """Sizes that generated code writes down, and so must be known before data comes."""
        return ()

    def emit(self, call: Call) -> Text:
        """The Python expression that computes the results from the operands' texts."""
        raise NotImplementedError(type(self).__name__)

    def describe(self) -> str:
        """Attributes as `dskc ir` prints them, without those at their defaults."""
        shown = []
        for info in fields(self):
            value = getattr(self, info.name)
            if value is not None and value != info.default:
                shown.append(f"{info.name}={_shown(value)}")
        return ", ".join(shown)


@dataclass(frozen=True, slots=True)
class RowOperation(Operation):
    """What works along the last axis, each row by itself: `fuse` makes kernels of chains of these."""

    alone: ClassVar[bool] = True  # worth a kernel by itself: torch would need several

    def rows(self, writing: Writing, *operands: Row) -> tuple[Row, ...]:
        """The results' rows from the operands'. From these the kernel is written, and its derivative derived."""
        raise NotImplementedError(type(self).__name__)


def _shown(value: object) -> str:
    if isinstance(value, Axis):
        return value.name
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    return str(value)


def common_dtype(*types: TensorType) -> DType:
    """The dtype that operands meet in: the wider wins, fp32 over the compute dtype, any of them over integers."""
    dtypes = {t.dtype for t in types}
    order = (DType.FP32, DType.PARAMS, DType.COMPUTE, DType.BF16, DType.FP16, DType.INT64, DType.BOOL)
    return next(dtype for dtype in order if dtype in dtypes)


def last_axis(x: TensorType, argument: str) -> Axis:
    """The last axis. Raises ShapeError for a single number, which has none."""
    if not x.axes:
        raise ShapeError("this works along the last axis, and a single number has none", argument)
    return x.axes[-1]


def check_floating(x: TensorType, argument: str) -> None:
    """Raises ShapeError for integers."""
    if x.dtype not in FLOATING:
        raise ShapeError(f"this needs floating point, and gets {x}", argument)


def check_all_but_last(x: TensorType, other: TensorType, argument: str | None = None) -> None:
    """Raises ShapeError unless `other` has the axes of `x`, but for the last."""
    last_axis(x, "x")
    last_axis(other, argument or "x")
    if tuple(a.size for a in x.axes[:-1]) != tuple(a.size for a in other.axes[:-1]):
        raise ShapeError(f"only the last axis may differ between {x} and {other}", argument)
