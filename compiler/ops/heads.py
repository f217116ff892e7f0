"""One linear map for each head, and the choice between two ways to compute the same: what `absorb` makes of attention.

No spec calls these: see `passes/absorb.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, Op, TensorType
from .base import Operation, Saved, ShapeError

if TYPE_CHECKING:
    from ..emit.expression import Call, Text


@dataclass(frozen=True, slots=True)
class HeadMaps(Operation):
    """Operand: the weight [H * E, R] of a linear layer, E cut into these. Results: one [H, part, R] for each."""

    heads: Axis
    into: tuple[Axis, ...]
    source: Axis

    def written_sizes(self) -> tuple[Dim, ...]:
        return (self.heads.size, *(axis.size for axis in self.into))

    def infer(self, weight: TensorType) -> tuple[TensorType, ...]:
        return tuple(weight.with_axes((self.heads, axis, self.source)) for axis in self.into)

    def emit(self, call: Call) -> Text:
        sizes = [call.size(axis.size) for axis in self.into]
        heads = call.tensor(0).method(f"unflatten(0, ({call.size(self.heads.size)}, {' + '.join(sizes)}))")
        return heads if len(sizes) == 1 else heads.method(f"split(({', '.join(sizes)}), dim=1)")


@dataclass(frozen=True, slots=True)
class MapHeads(Operation):
    """Operands: x [B, S, H, E], weight [H, F, E]. Each head by its map: [B, S, H, F]. `turned`: weight [H, E, F]."""

    turned: bool = False

    def infer(self, x: TensorType, weight: TensorType) -> tuple[TensorType, ...]:
        heads, target, source = weight.axes
        if self.turned:
            target, source = source, target
        if (x.axes[-2].size, x.axes[-1].size) != (heads.size, source.size):
            raise ShapeError(f"these are maps of [{heads.size}, {source.size}], and get {x}")
        return (x.with_axes((*x.axes[:-1], target)),)

    def flops(self, op: Op) -> Dim:
        return Dim.of(2) * op.operands[0].type.elements * op.result.type.axes[-1].size

    def saved(self, op: Op) -> Saved:
        return Saved(op.operands)

    def emit(self, call: Call) -> Text:
        x, weight = call.operands
        return call.reference("map_heads")(x, weight.method("mT") if self.turned else weight)


@dataclass(frozen=True, slots=True)
class Choose(Operation):
    """Two bodies without arguments that give the same; which of them needs fewer multiplications, lengths decide.

    Operands: something along the S new positions, and along all T. The first body needs `pair` more for each pair of a
    new and any position, and the second `position` more for each that is not new. `layers` are those that it applies.
    """

    pair: int
    position: int
    layers: str
    pure: ClassVar[bool] = False

    def verify(self, op: Op) -> None:
        assert len(op.regions) == 2 and not any(region.arguments for region in op.regions)
        for region in op.regions:
            sizes = [[axis.size for axis in value.type.axes] for value in region.results]
            assert sizes == [[axis.size for axis in value.type.axes] for value in op.results], f"choose: {sizes}"

    def condition(self, new: str, kept: str) -> str:
        """That the first body needs fewer, over the lengths' variables: S T pair < (T - S) position."""
        if self.pair <= 0:
            return f"{new} < {kept}"
        return f"{new} * {kept} * {self.pair:_} < ({kept} - {new}) * {self.position:_}"

    def describe(self) -> str:
        return f"first: {self.condition('S', 'T')}"
