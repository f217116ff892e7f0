"""precision: activations run in the compute dtype, whatever weights are stored in; casts are written out.

An embedding looks rows up in the dtype that they are stored in, so what it gives is cast. What asks for fp32
(`compute: fp32`) keeps it, until it joins what a repeat carries.
"""

from __future__ import annotations

from ..ir import DType, Graph, Op, Value
from ..ops.elementwise import Cast, Elementwise
from ..ops.linear import Embed
from ..rebuild import Rebuilder


def precision(graph: Graph) -> Graph:
    """The graph with its casts."""
    return Rebuilder(_rewrite).graph(graph)


def _rewrite(build: Rebuilder, op: Op, operands: tuple[Value, ...]) -> tuple[Value, ...] | None:
    if isinstance(op.attributes, Embed):
        rows = build.add(op.attributes, operands, op)  # without a name: that goes to what is cast
        return (build.add(Cast(DType.COMPUTE), (rows,), op, op.result.name),)
    if isinstance(op.attributes, Elementwise) and op.attributes.operator == "add" and len(operands) == 2:
        first, second = operands
        named = op.result.name is not None and op.result.name == first.name
        if first.type.dtype is DType.COMPUTE and second.type.dtype is DType.FP32 and named:
            operands = (first, build.add(Cast(DType.COMPUTE), (second,), op))  # the residual stream keeps its dtype
            return build.copy(op, operands)
    return None
