"""The graph: typed values, operations with regions, and nothing that emission or a plan decides.

An operation's attributes are a frozen dataclass whose class says what the operation is (`ops/`); a `repeat` stays a
region until emission. Values are compared by identity: a graph is in single-assignment form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from dskc.dsl.dims import Dim
from dskc.dsl.source import Span


class DType(StrEnum):
    """What a value holds. COMPUTE and PARAMS stand for the dtypes that the recipe, plan or command line choose."""

    COMPUTE = "compute"
    PARAMS = "params"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT64 = "int64"
    INT8 = "int8"
    FP8 = "fp8"
    BOOL = "bool"


FLOATING = frozenset({DType.COMPUTE, DType.PARAMS, DType.FP32, DType.BF16, DType.FP16})


@dataclass(frozen=True, slots=True)
class Axis:
    """A named axis. Its identity is the symbol: `H * E` and `D` are different axes even when equally large."""

    name: str
    size: Dim

    def __str__(self) -> str:
        text = str(self.size)
        return text if text == self.name else f"{self.name}: {text}"


@dataclass(frozen=True, slots=True)
class TensorType:
    axes: tuple[Axis, ...]
    dtype: DType = DType.COMPUTE

    def __str__(self) -> str:
        """As specs write it: `[B, S, D]`, `ids[B, S]`."""
        shape = f"[{', '.join(str(axis.size) for axis in self.axes)}]"
        return f"ids{shape}" if self.dtype is DType.INT64 else shape

    @property
    def typed(self) -> str:
        """With its dtype, as graphs are printed."""
        return f"{self.dtype}[{', '.join(str(axis.size) for axis in self.axes)}]"

    def with_axes(self, axes: tuple[Axis, ...]) -> TensorType:
        return TensorType(axes, self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(self.axes, dtype)

    @property
    def elements(self) -> Dim:
        return product(axis.size for axis in self.axes)


def product(sizes: Iterator[Dim]) -> Dim:
    total = Dim.of(1)
    for size in sizes:
        total = total * size
    return total


_identity = count()


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """One result of one operation. `name` is what the spec calls it (None: it only passes through)."""

    type: TensorType
    name: str | None = None
    id: int = field(default_factory=lambda: next(_identity))

    def renamed(self, name: str) -> Value:
        return Value(self.type, name)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A body: its arguments, its operations in order, and what it gives back. It sees the values around it."""

    arguments: tuple[Value, ...]
    ops: tuple[Op, ...]
    results: tuple[Value, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation. What it does is the class of its attributes; see `ops/base.py` for what that class knows."""

    attributes: Attributes
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    span: Span
    regions: tuple[Region, ...] = ()

    @property
    def kind(self) -> str:
        return self.attributes.kind

    @property
    def result(self) -> Value:
        assert len(self.results) == 1, f"{self.kind} has {len(self.results)} results"
        return self.results[0]


@dataclass(frozen=True, slots=True)
class Attributes:
    """Base of every operation's attributes; subclasses are declared in `ops/`, one file a family."""

    @property
    def kind(self) -> str:
        return _snake(type(self).__name__)


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


@dataclass(frozen=True, slots=True)
class DimInfo:
    """A dim of the model: its equation, its value (None: known only when data comes), and what it means."""

    name: str
    equation: Dim | None
    value: int | None
    doc: str | None
    span: Span | None


@dataclass(frozen=True, slots=True)
class Graph:
    """A model, expanded: what goes in, one region of operations, what comes out, and its auxiliary losses."""

    name: str
    doc: str | None
    span: Span
    dims: tuple[DimInfo, ...]
    body: Region
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    losses: tuple[str, ...]  # the last `len(losses)` results of the body, summed over layers
    optional: tuple[str, ...] = ()  # inputs that a batch may come without: then they are empty along their second axis

    @property
    def sizes(self) -> dict[str, int]:
        """The dims whose value is known, by name."""
        return {dim.name: dim.value for dim in self.dims if dim.value is not None}


def walk(region: Region, times: int = 1) -> Iterator[tuple[Op, int]]:
    """Every operation with how often it runs, outer ones before what they hold."""
    for op in region.ops:
        yield op, times
        for inner, often in zip(op.regions, region_counts(op), strict=True):
            yield from walk(inner, times * often)


def region_counts(op: Op) -> tuple[int, ...]:
    """How often each region of an operation runs."""
    counts = getattr(op.attributes, "region_counts", None)
    return counts if counts is not None else (1,) * len(op.regions)


def captures(op: Op) -> tuple[Value, ...]:
    """The values that an operation's bodies see from outside, in order of first use."""
    found: dict[Value, None] = {}
    for region in op.regions:
        for value in free_values(region):
            found[value] = None
    return tuple(found)


def free_values(region: Region) -> tuple[Value, ...]:
    """Values used in a region, or in those within it, that it does not define."""
    inside = set(region.arguments)
    found: dict[Value, None] = {}
    for op in region.ops:
        for value in (*op.operands, *captures(op)):
            if value not in inside:
                found[value] = None
        inside |= set(op.results)
    for value in region.results:
        if value not in inside:
            found[value] = None
    return tuple(found)
