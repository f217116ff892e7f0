"""Expressions over the columns of one row: the form in which kernels are differentiated, planned and written.

A node is a number for every row (`columns` is None) or one for every column of every row; `rows` says whether it varies
from row to row at all (a norm's weight does not). Equal expressions are one node: a `Nodes` makes each but once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Columns:
    """A run of columns. `size`: how many, None where data decides. A half of an axis is one too: rotations have two."""

    name: str
    size: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One expression. `label` is what its kind needs to know beyond operands: a number, an argument's name."""

    kind: str
    operands: tuple[Node, ...]
    columns: Columns | None
    rows: bool
    label: float | str | int | None = None
    number: int = 0  # in the order of making: operands come before what uses them

    def __repr__(self) -> str:
        label = f"[{self.label}]" if self.label is not None else ""
        return f"{self.kind}{label}({', '.join(map(repr, self.operands))})"


_FOLDS: dict[str, Callable[[float, float], float]] = {
    "add": operator.add, "sub": operator.sub, "div": operator.truediv, "maximum": max, "minimum": min,
}  # fmt: skip
REDUCTIONS = frozenset({"sum", "max"})
COMPARISONS = frozenset({"less", "less_equal", "equal"})
UNARY = ("neg", "exp", "log", "tanh", "sigmoid", "sqrt", "rsqrt", "erf", "abs", "round_even")


@dataclass(slots=True)
class Nodes:
    """Makes nodes, each once, in their simplest form."""

    made: dict[tuple[object, ...], Node] = field(default_factory=dict)
    hints: dict[Node, str] = field(default_factory=dict)  # what a node's variable is called in code

    def make(
        self,
        kind: str,
        operands: tuple[Node, ...] = (),
        columns: Columns | None = None,
        rows: bool = False,
        label: float | str | int | None = None,
    ) -> Node:
        key = (kind, tuple(operand.number for operand in operands), columns, rows, label)
        if key not in self.made:
            self.made[key] = Node(kind, operands, columns, rows, label, len(self.made))
        return self.made[key]

    def _of(self, kind: str, *operands: Node, label: float | str | int | None = None) -> Node:
        """A node whose operands broadcast: from one number a row to all of its columns."""
        wide = [operand.columns for operand in operands if operand.columns is not None]
        assert all(columns == wide[0] for columns in wide), f"{kind} of {operands} over different columns"
        return self.make(kind, operands, wide[0] if wide else None, any(o.rows for o in operands), label)

    # --- leaves

    def constant(self, value: float) -> Node:
        return self.make("constant", label=float(value))

    def scalar(self, name: str) -> Node:
        """A number that the launch passes, such as a probability."""
        return self.make("scalar", label=name)

    def load(self, name: str, columns: Columns | None, rows: bool) -> Node:
        """What an argument holds, widened."""
        return self.make("load", (), columns, rows, name)

    def index(self, columns: Columns) -> Node:
        """0, 1, 2, ... along columns."""
        return self.make("index", (), columns)

    def uniform(self, number: int, columns: Columns) -> Node:
        """Evenly distributed over [0, 1): a function of the launch's seed, of `number` and of the element's place."""
        return self.make("uniform", (), columns, True, number)

    # --- arithmetic

    def add(self, a: Node, b: Node) -> Node:
        if _is(a, 0.0):
            return b
        if _is(b, 0.0):
            return a
        if _negated(b):
            return self.sub(a, self.neg(b))
        return self.sub(b, self.neg(a)) if _negated(a) else self._folded("add", a, b)

    def sub(self, a: Node, b: Node) -> Node:
        if _is(b, 0.0):
            return a
        if _negated(b):
            return self.add(a, self.neg(b))
        return self.neg(b) if _is(a, 0.0) else self._folded("sub", a, b)

    def mul(self, a: Node, b: Node) -> Node:
        """A product, its constant factors in front and as one; -1 of them is a sign."""
        (c, x), (d, y) = _factor(a), _factor(b)
        return self._scaled(c * d, self._of("mul", x, y) if x is not None and y is not None else x or y)

    def div(self, a: Node, b: Node) -> Node:
        (c, a_), (d, b_) = _factor(a), _factor(b)
        if b_ is None:  # a constant stays below: 1 / d would round
            return a if d == 1.0 else self._folded("div", a, b)
        if d != 1.0 or a_ is None:
            return self._of("div", a, b)
        return self._scaled(c, self._of("div", a_, b_))

    def neg(self, a: Node) -> Node:
        c, rest = _factor(a)
        return self._scaled(-c, rest)

    def _scaled(self, c: float, rest: Node | None) -> Node:
        if rest is None:
            return self.constant(c)
        if c == 1.0:
            return rest
        return self._of("neg", rest) if c == -1.0 else self._of("mul", self.constant(c), rest)

    def maximum(self, a: Node, b: Node) -> Node:
        return self._folded("maximum", a, b)

    def minimum(self, a: Node, b: Node) -> Node:
        return self._folded("minimum", a, b)

    def unary(self, kind: str, a: Node) -> Node:
        assert kind in UNARY, kind
        return self.neg(a) if kind == "neg" else self._of(kind, a)

    def compare(self, kind: str, a: Node, b: Node) -> Node:
        assert kind in COMPARISONS, kind
        return self._of(kind, a, b)

    def where(self, condition: Node, a: Node, b: Node) -> Node:
        return self._of("where", condition, a, b)

    def round_as(self, a: Node, name: str) -> Node:
        """`a` as the dtype of argument or result `name` can hold it."""
        return a if a.kind == "round_as" and a.label == name else self._of("round_as", a, label=name)

    def stop(self, a: Node) -> Node:
        """`a`, through which no gradient flows."""
        return self._of("stop", a)

    def _folded(self, kind: str, a: Node, b: Node) -> Node:
        if a.kind == b.kind == "constant":
            return self.constant(_FOLDS[kind](_value(a), _value(b)))
        return self._of(kind, a, b)

    # --- along a row

    def size(self, columns: Columns) -> Node:
        """How many columns there are."""
        return self.make("size", label=columns.name)

    def sum(self, a: Node) -> Node:
        """Over columns."""
        assert a.columns is not None, a
        c, rest = _factor(a)
        if rest is None or rest.kind == "spread":  # the same in every column
            same = rest.operands[0] if rest is not None else self.constant(1.0)
            return self.mul(self.constant(c), self.mul(same, self.size(a.columns)))
        return self.make("sum", (a,), None, a.rows)

    def spread(self, a: Node, columns: Columns) -> Node:
        """One number a row as that of each of its columns."""
        c, rest = _factor(a)
        if rest is None or a.columns is not None:
            return a
        return self._scaled(c, self.make("spread", (rest,), columns, rest.rows))

    def max(self, a: Node) -> Node:
        """Over columns. It has no derivative: it only shifts what is exponentiated."""
        assert a.columns is not None, a
        return self.make("max", (a,), None, a.rows)

    def top_k(self, a: Node, chosen: Columns) -> Node:
        """The indices of the greatest, best first, ties to the lower index: [K]."""
        assert a.columns is not None and chosen.size is not None
        return self.make("top_k", (a,), chosen, a.rows)

    def gather(self, a: Node, index: Node) -> Node:
        """`a` at the columns that `index` [K] names."""
        return self.make("gather", (a, index), index.columns, a.rows or index.rows)

    def scatter(self, a: Node, index: Node, columns: Columns) -> Node:
        """For each column the sum of those of `a` [K] whose `index` [K] names it."""
        return self.make("scatter", (a, index), columns, a.rows or index.rows)


def _is(node: Node, value: float) -> bool:
    return node.kind == "constant" and node.label == value


def _factor(node: Node) -> tuple[float, Node | None]:
    """A constant factor of an expression and the rest of it, None where there is no more."""
    if node.kind == "constant":
        return _value(node), None
    if node.kind == "neg":
        return -1.0, node.operands[0]
    if node.kind == "mul" and node.operands[0].kind == "constant":
        return _value(node.operands[0]), node.operands[1]
    return 1.0, node


def _negated(node: Node) -> bool:
    return node.kind != "constant" and _factor(node)[0] < 0


def _value(node: Node) -> float:
    assert isinstance(node.label, float) and math.isfinite(node.label), node
    return node.label


def reachable(results: Iterable[Node], cut: frozenset[Node] = frozenset()) -> list[Node]:
    """The nodes that results are computed from, operands first; not beyond those in `cut`."""
    found: dict[Node, None] = {}
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            if node not in cut:
                waiting += node.operands
    return sorted(found, key=lambda node: node.number)
