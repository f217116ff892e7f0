"""`require`: what a model says must hold of itself, with the values drawn when it does not."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics, Mark
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .evaluate import Evaluator
from .frame import Frame
from .ir import Graph
from .ops.structure import Repeat
from .parameters import Entry, count_under, parameter_tree
from .values import POISON, Expressed


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition, and the frame it is read in."""

    condition: s.Expression
    frame: Frame


def check_requirements(graph: Graph, requirements: list[Requirement], problems: Diagnostics) -> None:
    """Reports every requirement that does not hold."""
    tree = parameter_tree(graph)
    for requirement in requirements:
        _Checker(graph, tree, problems).check(requirement)


class _Checker:
    def __init__(self, graph: Graph, tree: list[Entry], problems: Diagnostics) -> None:
        self.graph = graph
        self.tree = tree
        self.problems = problems

    def check(self, requirement: Requirement) -> None:
        frame = requirement.frame
        frame.names["params"] = Fraction(sum(entry.total for entry in self.tree))
        evaluator = Evaluator(lambda node, frame, hint, consumer: self._call(node, frame))
        node = requirement.condition
        holds = evaluator.condition(node, frame)
        if holds is None or holds:
            return
        inner = node.inner if isinstance(node, s.Parenthesized) else node
        if isinstance(inner, s.Binary):
            left = evaluator.number(evaluator.evaluate(inner.left, frame), frame)
            right = evaluator.number(evaluator.evaluate(inner.right, frame), frame)
            if left is not None and right is not None:
                self._compared(inner, left, right, frame)
                return
        self._report(frame, node.span, "is false", ())

    def _call(self, node: s.Call, frame: Frame) -> Expressed:
        if node.callee.text == "params" and len(node.arguments) == 1:
            path = node.arguments[0].value.span.text
            total = count_under(self.graph, path)
            if total is not None:
                return Fraction(total)
            frame.report("DSK0101", f"no weights are called `{path}`", node.arguments[0].span, _known(self.tree))
            return POISON
        frame.report("DSK0154", "a requirement speaks of `params`, `params(path)`, dims and numbers", node.span)
        return POISON

    def _compared(self, node: s.Binary, left: Fraction, right: Fraction, frame: Frame) -> None:
        difference = left - right
        label = f"is {show_number(left)}"
        notes: list[tuple[str, str]] = []
        if node.operator == "==":
            far = show_number(abs(difference))
            label += f": {far} too {'few' if difference < 0 else 'many'}"
        if not isinstance(node.right, s.Number):
            notes.append(("note", f"`{node.right.span.text}` is {show_number(right)}"))
        if "params" in node.left.span.text:
            notes.append(("note", " + ".join(str(entry) for entry in self.tree)))
            if node.operator == "==" and (way_out := self._way_out(-difference)):
                notes.append(("help", way_out))
        self._report(frame, node.left.span, label, tuple(notes))

    def _report(self, frame: Frame, span: Span, label: str, notes: tuple[tuple[str, str], ...]) -> None:
        title = "this requirement does not hold"
        self.problems.add(Diagnostic("DSK0150", title, span, marks=(Mark(span, label),), notes=notes))

    def _way_out(self, missing: Fraction) -> str | None:
        """A change of a repeat's count that gives the number exactly."""
        for op in self.graph.body.ops:
            if not isinstance(op.attributes, Repeat) or len(op.regions) != 1:
                continue
            each = next((e.each for e in self.tree if e.name == op.attributes.path), 0)
            if not each or missing % each:
                continue
            layers = int(missing / each)
            if op.attributes.count + layers < 1:
                continue
            count = "one" if abs(layers) == 1 else show_number(abs(layers))
            more = "more" if layers > 0 else "fewer"
            return f"{count} {more} of `{op.attributes.path}` (line {op.span.line}) gives the number exactly"
        return None


def _known(tree: list[Entry]) -> str:
    return f"there are {', '.join(entry.name for entry in tree)}"
