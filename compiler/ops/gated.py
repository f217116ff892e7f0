"""Experts of three products with an activation between them, which kernels compute with the sort around them."""

from __future__ import annotations

from dataclasses import dataclass

from dskc.dsl.dims import Dim

from ..ir import Op
from ..rows.facts import draws, is_flat
from ..rows.node import Node, reachable
from ..rows.program import Kernel, RowProgram
from .base import Saved
from .fused import Fused
from .linear import Linear
from .weights import Weights


@dataclass(frozen=True, slots=True)
class Gated:
    """`down(activation(gate(x), up(x)))`: its operations. The activation works element by element."""

    gate: Op
    up: Op
    activation: Op
    down: Op

    @property
    def program(self) -> RowProgram:
        assert isinstance(self.activation.attributes, Fused)
        return self.activation.attributes.program

    @property
    def maps(self) -> tuple[Op, Op, Op]:
        return self.gate, self.up, self.down

    @property
    def bias(self) -> bool:
        assert isinstance(self.down.attributes, Linear)
        return self.down.attributes.bias

    def saved(self, op: Op) -> Saved:
        """What comes in, both products, and how rows are sorted: order and home of each, and offsets, in 32 bits."""
        x, _, weight = op.operands
        rows, offsets = op.regions[0].arguments
        sort = 2 * rows.type.axes[0].size + offsets.type.elements
        return Saved((x, weight, self.gate.result, self.up.result), ((Dim.of(4) * sort, "int8"),))


def gated(op: Op) -> Gated | None:
    """What the body of `Experts` is made of, where it is gated and kernels can take it."""
    (region,) = op.regions
    ops = [inner for inner in region.ops if not isinstance(inner.attributes, Weights)]
    activations = [inner for inner in ops if isinstance(inner.attributes, Fused)]
    maps = {inner.result: inner for inner in ops if isinstance(inner.attributes, Linear)}
    if len(ops) != 4 or len(activations) != 1 or len(maps) != 3:
        return None
    (activation,) = activations
    if len(activation.operands) != 2 or len(activation.results) != 1 or not set(activation.operands) <= maps.keys():
        return None
    gate, up = (maps[value] for value in activation.operands)
    (down,) = (inner for inner in maps.values() if inner not in (gate, up))
    rows = region.arguments[0]
    if [inner.operands[0] for inner in (gate, up, down)] != [rows, rows, activation.result]:
        return None
    found = Gated(gate, up, activation, down)
    fits = region.results == (down.result,) and _plain_maps(found) and _element_by_element(found.program)
    return found if fits else None


def _plain_maps(found: Gated) -> bool:
    """Whether the products are such as one kernel knows: in the dtype of rows, biases for all or none."""
    attributes = [inner.attributes for inner in found.maps]
    return all(
        isinstance(a, Linear) and a.grouped and a.compute is None and a.bias == found.bias
        and len(a.source) == len(a.target) == 1
        for a in attributes
    )  # fmt: skip


def _element_by_element(program: RowProgram) -> bool:
    """Whether an activation and its gradient read nothing but the two products at one place, and are rounded once."""
    backward = program.backward
    if backward is None or program.saved or program.probabilities:
        return False
    names = [tensor.name for tensor in program.arguments]
    kernels = (program.forward, backward)
    return (
        all(is_flat(kernel) and not draws(kernel) and not _rounds(kernel) for kernel in kernels)
        and set(program.kept) <= set(names)
        and [gradient.argument for gradient in program.gradients] == names
    )


def _rounds(kernel: Kernel) -> bool:
    """Whether something is rounded before it is stored, or stored twice."""
    stored = set(kernel.results)
    if len(stored) < len(kernel.results):
        return True
    inner: set[Node] = {operand for node in reachable(kernel.results) for operand in node.operands}
    return any(node.kind == "round_as" and (node not in stored or node in inner) for node in reachable(kernel.results))
