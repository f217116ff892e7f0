"""A tensor's row while a program is built: operations say what they do to rows in the arithmetic of this class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from ..ir import Axis
from .node import Columns, Node, Nodes

Number = float | int | Fraction


@dataclass(frozen=True, slots=True)
class Row:
    """The expressions of one row: one of them, or one for each part of an axis that a rotation divides."""

    nodes: Nodes
    parts: tuple[Node, ...]

    def __add__(self, other: Row | Number) -> Row:
        return self._with(other, self.nodes.add)

    def __sub__(self, other: Row | Number) -> Row:
        return self._with(other, self.nodes.sub)

    def __rsub__(self, other: Number) -> Row:
        return self._row(other) - self

    def __mul__(self, other: Row | Number) -> Row:
        return self._with(other, self.nodes.mul)

    def __truediv__(self, other: Row | Number) -> Row:
        return self._with(other, self.nodes.div)

    def __rtruediv__(self, other: Number) -> Row:
        return self._row(other) / self

    def __neg__(self) -> Row:
        return self.map(self.nodes.neg)

    def maximum(self, other: Row | Number) -> Row:
        return self._with(other, self.nodes.maximum)

    def minimum(self, other: Row | Number) -> Row:
        return self._with(other, self.nodes.minimum)

    def less(self, other: Row | Number) -> Row:
        return self._with(other, lambda a, b: self.nodes.compare("less", a, b))

    def less_equal(self, other: Row | Number) -> Row:
        return self._with(other, lambda a, b: self.nodes.compare("less_equal", a, b))

    def equal(self, other: Row | Number) -> Row:
        return self._with(other, lambda a, b: self.nodes.compare("equal", a, b))

    def where(self, condition: Row, other: Row | Number) -> Row:
        """This where the condition holds, else `other`."""
        other = self._row(other)
        width = max(len(self.parts), len(condition.parts), len(other.parts))
        spread = (row._spread(width) for row in (condition, self, other))
        return Row(self.nodes, tuple(map(self.nodes.where, *spread)))

    def exp(self) -> Row:
        return self._unary("exp")

    def log(self) -> Row:
        return self._unary("log")

    def tanh(self) -> Row:
        return self._unary("tanh")

    def sigmoid(self) -> Row:
        return self._unary("sigmoid")

    def sqrt(self) -> Row:
        return self._unary("sqrt")

    def rsqrt(self) -> Row:
        return self._unary("rsqrt")

    def erf(self) -> Row:
        return self._unary("erf")

    def abs(self) -> Row:
        return self._unary("abs")

    def round_even(self) -> Row:
        """To the nearest integer; of two equally near, to the even one."""
        return self._unary("round_even")

    def stop(self) -> Row:
        """The same numbers, through which no gradient flows."""
        return self.map(self.nodes.stop)

    # --- along the row

    def sum(self) -> Row:
        """Over all columns."""
        total = self.nodes.sum(self.parts[0])
        for part in self.parts[1:]:
            total = self.nodes.add(total, self.nodes.sum(part))
        return Row(self.nodes, (total,))

    def mean(self) -> Row:
        return self.sum() / self.width()

    def max(self) -> Row:
        """Over all columns, without a gradient."""
        most = self.nodes.max(self.parts[0])
        for part in self.parts[1:]:
            most = self.nodes.maximum(most, self.nodes.max(part))
        return Row(self.nodes, (self.nodes.stop(most),))

    def width(self) -> Row:
        """How many columns there are."""
        total = self.nodes.constant(0.0)
        for part in self.parts:
            assert part.columns is not None
            total = self.nodes.add(total, self.nodes.size(part.columns))
        return Row(self.nodes, (total,))

    def numbered(self) -> Row:
        """The number of each column."""
        (part,) = self.parts
        assert part.columns is not None
        return Row(self.nodes, (self.nodes.index(part.columns),))

    def top_k(self, chosen: Columns) -> Row:
        (part,) = self.parts
        return Row(self.nodes, (self.nodes.top_k(part, chosen),))

    def gather(self, index: Row) -> Row:
        (part,), (where,) = self.parts, index.parts
        return Row(self.nodes, (self.nodes.gather(part, where),))

    # --- parts of an axis that a rotation divides

    def divided(self) -> tuple[Row, ...]:
        """Each part by itself."""
        return tuple(Row(self.nodes, (part,)) for part in self.parts)

    def joined(self, *others: Row) -> Row:
        """Parts as one row again."""
        return Row(self.nodes, (*self.parts, *(part for other in others for part in other.parts)))

    # --- making rows of nodes

    def map(self, function: Callable[[Node], Node]) -> Row:
        return Row(self.nodes, tuple(function(part) for part in self.parts))

    def called(self, name: str) -> Row:
        """The same row, whose variable in kernels takes this name."""
        if len(self.parts) == 1:
            self.nodes.hints.setdefault(self.parts[0], name)
        else:
            for i, part in enumerate(self.parts, start=1):
                self.nodes.hints.setdefault(part, f"{name}{i}")
        return self

    def _unary(self, kind: str) -> Row:
        return self.map(lambda node: self.nodes.unary(kind, node))

    def _row(self, other: Row | Number) -> Row:
        return other if isinstance(other, Row) else Row(self.nodes, (self.nodes.constant(float(other)),))

    def _with(self, other: Row | Number, function: Callable[[Node, Node], Node]) -> Row:
        other = self._row(other)
        width = max(len(self.parts), len(other.parts))
        return Row(self.nodes, tuple(map(function, self._spread(width), other._spread(width))))

    def _spread(self, width: int) -> tuple[Node, ...]:
        """As many expressions as the other operand has: one number a row goes with each part of it."""
        if len(self.parts) == width:
            return self.parts
        (part,) = self.parts
        assert part.columns is None, "rows divided in different ways"
        return (part,) * width


@dataclass(slots=True)
class Writing:
    """What a program gathers while its operations say what they do: numbers from the launch, and further axes."""

    nodes: Nodes
    columns: Callable[[Axis], Columns]  # those of a last axis
    probabilities: list[float] = field(default_factory=list)  # of dropouts, in the order of their parameters p0, p1, ..

    def number(self, value: Number) -> Row:
        return Row(self.nodes, (self.nodes.constant(float(value)),))

    def dropout(self, x: Row, p: float) -> Row:
        """x with each element zero with probability p and scaled by 1 / (1 - p) otherwise. The launch passes p, or 0.

        What is drawn is a function of the call's seed, of which dropout it is, and of the element's place: backward
        draws the same again.
        """
        number, (part,) = len(self.probabilities), x.parts
        assert part.columns is not None
        self.probabilities.append(p)
        chance = Row(self.nodes, (self.nodes.scalar(f"p{number}"),))
        drawn = Row(self.nodes, (self.nodes.uniform(number, part.columns),))
        return (x / (1.0 - chance)).where(chance.less_equal(drawn), 0.0)
