"""Operations with bodies, and those that only say something: scopes, repeats, what decoding keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import DType, Op, TensorType
from .base import Operation

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class Block(Operation):
    """One use of a block, or a group. Its results are those of the block, then its losses."""

    path: str
    block: str | None  # None: a group
    results: int
    losses: tuple[str, ...] = ()
    doc: str | None = None
    pure: ClassVar[bool] = False

    @property
    def kind(self) -> str:
        return "block" if self.block else "group"

    def verify(self, op: Op) -> None:
        (region,) = op.regions
        assert len(op.operands) == len(region.arguments)
        assert len(op.results) == len(region.results) == self.results + len(self.losses)

    def emit(self, call: Call) -> Text:
        return call.apply(call.submodule(self.path), *call.operands)

    def describe(self) -> str:
        return f"{self.path}: {self.block or 'group'}"


@dataclass(frozen=True, slots=True)
class Repeat(Operation):
    """`variants[i]` says which region is iteration i. Regions map the carried values on, then give losses."""

    path: str
    variants: tuple[int, ...]
    carried: int
    losses: tuple[str, ...] = ()
    pure: ClassVar[bool] = False

    @property
    def count(self) -> int:
        return len(self.variants)

    @property
    def region_counts(self) -> tuple[int, ...]:
        return tuple(self.variants.count(i) for i in range(max(self.variants, default=-1) + 1))

    def verify(self, op: Op) -> None:
        assert len(op.operands) == self.carried
        for region in op.regions:
            assert len(region.arguments) == self.carried
            assert len(region.results) == self.carried + len(self.losses)

    def describe(self) -> str:
        return f"{self.path} x {self.count}"


@dataclass(frozen=True, slots=True)
class Keep(Operation):
    """What decoding holds on to: with a cache its results run over all positions so far, without one it is nothing."""

    names: tuple[str, ...]
    pure: ClassVar[bool] = False

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        return operands

    def describe(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True, slots=True)
class Constant(Operation):
    """A number as a tensor without axes."""

    value: float

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        return (TensorType((), DType.FP32),)

    def emit(self, call: Call) -> Text:
        return call.number(self.value)


@dataclass(frozen=True, slots=True)
class Extern(Operation):
    """A module written elsewhere, with its cost as its author states it."""

    path: str
    target: str
    types: tuple[TensorType, ...]
    options: tuple[tuple[str, object], ...]
    stated_flops: Dim
    stated_saved: Dim
    pure: ClassVar[bool] = False

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        return self.types

    def flops(self, op: Op) -> Dim:
        return self.stated_flops

    def emit(self, call: Call) -> Text:
        return call.apply(call.submodule(self.path), *call.operands)

    def describe(self) -> str:
        return f"{self.path}: {self.target}"
