"""A group of row operations that one kernel computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..ir import Op, product
from .base import Operation, Saved

if TYPE_CHECKING:
    from ..emit.expression import Call, Text
    from ..rows.program import RowProgram


@dataclass(frozen=True, slots=True)
class Fused(Operation):
    """Operands: tensors, then weights. Its region is closed, and holds what the kernel computes, in order.

    names, labels: of operands and results in kernels; variables: of results where the spec does not name them.
    """

    name: str
    names: tuple[str, ...]
    labels: tuple[str, ...]
    variables: tuple[str, ...]
    program: RowProgram = field(compare=False)

    def verify(self, op: Op) -> None:
        (region,) = op.regions
        assert len(op.operands) == len(region.arguments) == len(self.names)
        assert len(op.results) == len(region.results) == len(self.labels)
        types = [(a.type, b.type) for a, b in zip(op.operands, region.arguments, strict=True)]
        types += [(a.type, b.type) for a, b in zip(op.results, region.results, strict=True)]
        assert all(a == b for a, b in types), f"{self.name}: {types}"

    def saved(self, op: Op) -> Saved:
        """What backward reads of operands and results, and a number a row for each that forward leaves for it."""
        kept = set(self.program.kept)
        labelled = (*zip(self.names, op.operands, strict=True), *zip(self.labels, op.results, strict=True))
        values = tuple(value for name, value in labelled if name in kept)
        longest = max((v.type for v in op.results), key=lambda kind: len(kind.axes))
        rows = product(axis.size for axis in longest.axes[:-1])
        return Saved(values, tuple((rows, "fp32") for _ in self.program.saved))

    def emit(self, call: Call) -> Text:
        call.names.use(".", "kernels")
        arguments = [call.tensor(i) for i in range(len(call.operands))]
        if self.program.probabilities:
            arguments.append(call.text(f"training={call.training}"))
        return call.apply(f"kernels.{call.names.kernels[id(self.program)]}", *arguments)

    def describe(self) -> str:
        return self.name
