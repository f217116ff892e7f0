"""Reverse-mode differentiation of row programs: gradients of arguments, as expressions of the same kind.

One rule for each kind of node says what a gradient of its value gives each operand. A gradient that is wider than its
operand is summed over columns here; over rows it is summed where weights are stored, in two stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from .node import Columns, Node, Nodes, reachable

Rule = Callable[[Nodes, Node, Node], Sequence["Node | None"]]  # nodes, the node, its gradient: one for each operand


def derive(nodes: Nodes, gradients: Mapping[Node, Node], wanted: Sequence[Node]) -> tuple[Node | None, ...]:
    """What `gradients` of results come to for each wanted node; None where nothing reaches it."""
    total: dict[Node, Node] = dict(gradients)
    for node in reversed(reachable(gradients)):
        if node not in total or node.kind not in RULES:
            continue
        for operand, part in zip(node.operands, RULES[node.kind](nodes, node, total[node]), strict=True):
            if part is not None:
                part = _fit(nodes, part, operand.columns)
                total[operand] = nodes.add(total[operand], part) if operand in total else part
    return tuple(total.get(node) for node in wanted)


def _fit(nodes: Nodes, gradient: Node, columns: Columns | None) -> Node:
    """A gradient over the columns of what it belongs to: what was spread over a row is summed over it."""
    return nodes.sum(gradient) if columns is None and gradient.columns is not None else gradient


def _mul(n: Nodes, y: Node, g: Node) -> tuple[Node, Node | None]:
    a, b = y.operands
    if a is b:
        return n.mul(n.constant(2.0), n.mul(g, a)), None
    return n.mul(g, b), n.mul(g, a)


def _div(n: Nodes, y: Node, g: Node) -> tuple[Node, Node]:
    _, b = y.operands
    return n.div(g, b), n.neg(n.div(n.mul(g, y), b))


def _where(n: Nodes, y: Node, g: Node) -> tuple[None, Node, Node]:
    condition, zero = y.operands[0], n.constant(0.0)
    return None, n.where(condition, g, zero), n.where(condition, zero, g)


def _maximum(n: Nodes, y: Node, g: Node) -> tuple[Node, Node]:
    """To the greater; to the first where both are equal."""
    a, b = y.operands
    less, zero = n.compare("less", a, b), n.constant(0.0)
    return n.where(less, zero, g), n.where(less, g, zero)


def _minimum(n: Nodes, y: Node, g: Node) -> tuple[Node, Node]:
    a, b = y.operands
    less, zero = n.compare("less", b, a), n.constant(0.0)
    return n.where(less, zero, g), n.where(less, g, zero)


def _tanh(n: Nodes, y: Node, g: Node) -> tuple[Node]:
    return (n.mul(g, n.sub(n.constant(1.0), n.mul(y, y))),)


def _sigmoid(n: Nodes, y: Node, g: Node) -> tuple[Node]:
    return (n.mul(g, n.mul(y, n.sub(n.constant(1.0), y))),)


def _rsqrt(n: Nodes, y: Node, g: Node) -> tuple[Node]:
    return (n.mul(g, n.mul(n.constant(-0.5), n.mul(y, n.mul(y, y)))),)


def _erf(n: Nodes, y: Node, g: Node) -> tuple[Node]:
    (x,) = y.operands
    slope = n.mul(n.constant(2.0 / math.sqrt(math.pi)), n.unary("exp", n.neg(n.mul(x, x))))
    return (n.mul(g, slope),)


def _abs(n: Nodes, y: Node, g: Node) -> tuple[Node]:
    (x,) = y.operands
    zero = n.constant(0.0)
    falling = n.where(n.compare("less", x, zero), n.neg(g), zero)
    return (n.where(n.compare("less", zero, x), g, falling),)


def _sum(n: Nodes, y: Node, g: Node) -> tuple[Node]:
    (x,) = y.operands
    assert x.columns is not None
    return (n.spread(g, x.columns),)


def _gather(n: Nodes, y: Node, g: Node) -> tuple[Node, None]:
    x, index = y.operands
    assert x.columns is not None
    return n.scatter(g, index, x.columns), None


RULES: dict[str, Rule] = {
    "add": lambda n, y, g: (g, g),
    "sub": lambda n, y, g: (g, n.neg(g)),
    "mul": _mul,
    "div": _div,
    "neg": lambda n, y, g: (n.neg(g),),
    "maximum": _maximum,
    "minimum": _minimum,
    "where": _where,
    "exp": lambda n, y, g: (n.mul(g, y),),
    "log": lambda n, y, g: (n.div(g, y.operands[0]),),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "sqrt": lambda n, y, g: (n.div(n.mul(n.constant(0.5), g), y),),
    "rsqrt": _rsqrt,
    "erf": _erf,
    "abs": _abs,
    "round_as": lambda n, y, g: (g,),  # as torch has it: a cast's gradient is the gradient, cast
    "sum": _sum,
    "spread": lambda n, y, g: (n.sum(g),),
    "gather": _gather,
}
# Through these nothing flows: choices, comparisons, what only shifts, and leaves.
assert not RULES.keys() & {"max", "stop", "top_k", "round_even", "less", "less_equal", "equal", "load", "index"}
