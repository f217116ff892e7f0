"""What must hold of every graph, between any two passes."""

from __future__ import annotations

from .ir import Graph, Op, Region, Value, free_values
from .ops.base import Operation
from .ops.weights import Weights


def verify(graph: Graph) -> None:
    """Asserts that values are defined once and before their use, that types agree."""
    defined: set[Value] = set()
    _region(graph.body, defined)
    assert len(graph.body.results) == len(graph.results) + len(graph.losses), f"{graph.name}: results"
    outside = free_values(graph.body)
    assert not outside, f"{graph.name}: {outside[0]} comes from nowhere"


def _region(region: Region, defined: set[Value]) -> None:
    _define(region.arguments, defined)
    for op in region.ops:
        _op(op, defined)
    for value in region.results:
        assert value in defined, f"a region gives {value}, which is not defined"


def _op(op: Op, defined: set[Value]) -> None:
    attributes = op.attributes
    assert isinstance(attributes, Operation), op.kind
    for value in op.operands:
        assert value in defined, f"{op.kind} at {op.span}: an operand is used before it is defined"
    for region in op.regions:
        _region(region, defined)
    attributes.verify(op)
    if isinstance(attributes, Weights):
        assert attributes.path and not attributes.path.startswith("."), attributes.path
    _define(op.results, defined)


def _define(values: tuple[Value, ...], defined: set[Value]) -> None:
    for value in values:
        assert value not in defined, f"{value} is defined twice"
        defined.add(value)
