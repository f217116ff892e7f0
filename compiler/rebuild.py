"""Making a graph again with some operations changed: the one way that passes rewrite, so that types stay true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .ir import Graph, Op, Region, Value
from .ops.base import Operation
from .ops.experts import Experts
from .ops.structure import Block, Repeat

Rewrite = Callable[["Rebuilder", Op, tuple[Value, ...]], "tuple[Value, ...] | None"]


class Rebuilder:
    """Copies a graph, inferring every type anew. `rewrite` may take an operation over, giving its new results."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.rewrite = rewrite
        self.new: dict[Value, Value] = {}
        self.ops: list[Op] = []

    def graph(self, graph: Graph) -> Graph:
        return replace(graph, body=self.region(graph.body, graph.body.arguments))

    def region(self, region: Region, arguments: tuple[Value, ...]) -> Region:
        """A region again, its arguments standing for `arguments`."""
        outer, self.ops = self.ops, []
        self.new.update(zip(region.arguments, arguments, strict=True))
        for op in region.ops:
            operands = tuple(self.new[value] for value in op.operands)
            results = self.rewrite(self, op, operands)
            self.new.update(zip(op.results, results or self.copy(op, operands), strict=True))
        made = Region(arguments, tuple(self.ops), tuple(self.new[value] for value in region.results))
        self.ops = outer
        return made

    def copy(self, op: Op, operands: tuple[Value, ...]) -> tuple[Value, ...]:
        """The same operation on new operands."""
        attributes = op.attributes
        if isinstance(attributes, Block | Repeat | Experts):
            return self._nested(op, operands)
        assert isinstance(attributes, Operation)
        types = attributes.infer(*(value.type for value in operands))
        results = tuple(Value(t, v.name) for t, v in zip(types, op.results, strict=True))
        self.ops.append(Op(attributes, operands, results, op.span))
        return results

    def add(self, attributes: Operation, operands: tuple[Value, ...], like: Op, name: str | None = None) -> Value:
        """A new operation at this place, standing for the spec line of `like`."""
        (kind,) = attributes.infer(*(value.type for value in operands))
        result = Value(kind, name)
        self.ops.append(Op(attributes, operands, (result,), like.span))
        return result

    def _nested(self, op: Op, operands: tuple[Value, ...]) -> tuple[Value, ...]:
        regions = []
        for region in op.regions:
            arguments = tuple(
                Value(value.type.with_dtype(given.type.dtype), value.name)
                for value, given in zip(region.arguments, self._given(op, region, operands), strict=True)
            )
            regions.append(self.region(region, arguments))
        results: tuple[Value, ...]
        if isinstance(op.attributes, Experts):
            results = (Value(operands[0].type, op.result.name),)
        else:
            results = tuple(
                Value(made.type, old.name) for made, old in zip(regions[0].results, op.results, strict=True)
            )
        self.ops.append(Op(op.attributes, operands, results, op.span, tuple(regions)))
        return results

    def _given(self, op: Op, region: Region, operands: tuple[Value, ...]) -> tuple[Value, ...]:
        if isinstance(op.attributes, Experts):
            return (operands[0], region.arguments[1])
        return operands
