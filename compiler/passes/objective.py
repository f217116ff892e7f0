"""objective: the terms of an objective, checked against the model that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean

from ..ir import Graph
from ..recipe import Term
from ..sections import CLASSIFY, NEXT_TOKEN, REGRESS
from ..signature import Kind

_CALLS = (NEXT_TOKEN.name, CLASSIFY.name, REGRESS.name)


@dataclass(slots=True)
class Objective:
    """Reads one objective. What is wrong is reported; `unknown` holds the names that have been."""

    graph: Graph
    problems: Diagnostics
    unknown: set[tuple[str, str]]

    def read(self, node: s.Expression) -> tuple[Term, ...] | None:
        """Its terms, or None when something was reported."""
        terms: list[Term] = []
        sound = self._terms(node, Fraction(1), terms)
        return tuple(terms) if sound else None

    def _terms(self, node: s.Expression, weight: Fraction, into: list[Term]) -> bool:
        match node:
            case s.Parenthesized():
                return self._terms(node.inner, weight, into)
            case s.Binary(operator="+"):
                return all([self._terms(node.left, weight, into), self._terms(node.right, weight, into)])
            case s.Binary(operator="*", left=s.Number(value=factor)):
                return self._terms(node.right, weight * factor, into)
            case s.Path() if len(node.parts) == 1 and node.text in self.graph.losses:
                into.append(Term(weight, node.text))
                return True
            case s.Call() if node.callee.text == NEXT_TOKEN.name:
                return self._next_token(node, weight, into)
            case s.Call() if node.callee.text in _CALLS:
                return self._task(node, weight, into)
        names = [*_CALLS, *self.graph.losses]
        text = node.callee.text if isinstance(node, s.Call) else node.span.text
        near = did_you_mean(text, names)
        label = f"did you mean `{near}`?" if near else f"there are {', '.join(names)}"
        span = node.callee.span if isinstance(node, s.Call) else node.span
        if ("loss", text) in self.unknown:
            return False
        self.unknown.add(("loss", text))
        self._report(f"`{text}` is no loss of `{self.graph.name}`", span, label)
        return False

    def _next_token(self, node: s.Call, weight: Fraction, into: list[Term]) -> bool:
        result = None
        numbers = {p.name: Fraction(str(p.default)) for p in NEXT_TOKEN.parameters if p.kind is not Kind.NAMES}
        for argument in node.arguments:
            if argument.label is None and isinstance(argument.value, s.Path):
                result = argument.value
            elif argument.label and argument.label.text in numbers and isinstance(argument.value, s.Number):
                numbers[argument.label.text] = argument.value.value
            else:
                self._report("`next_token` takes a result, `ahead`, `z` and `smoothing`", argument.span)
                return False
        if not self._is_result(result, node):
            return False
        ahead, z, smoothing = numbers.values()
        if ahead.denominator != 1 or ahead < 1 or z < 0 or not 0 <= smoothing < 1:
            self._report("`ahead` is a whole number from 1, `z` 0 or more, `smoothing` from 0 to under 1", node.span)
            return False
        assert result is not None
        into.append(Term(weight, NEXT_TOKEN.name, result.text, int(ahead), float(z), float(smoothing)))
        return True

    def _task(self, node: s.Call, weight: Fraction, into: list[Term]) -> bool:
        """`classify(result)` or `regress(result)`: terms whose targets come with the batch, by the result's name."""
        name = node.callee.text
        paths = [a.value for a in node.arguments if a.label is None and isinstance(a.value, s.Path)]
        if len(paths) != len(node.arguments) or len(paths) > 1:
            self._report(f"`{name}` takes a result", node.span, f"`{name}(RESULT)`")
            return False
        result = paths[0] if paths else None
        if not self._is_result(result, node):
            return False
        assert result is not None
        kind = dict(zip(self.graph.results, self.graph.body.results, strict=False))[result.text].type
        if name == CLASSIFY.name and len(kind.axes) != 2:
            wanted = "`classify` compares [B, C], the scores of each row's classes, with a label for each row"
            self._report(wanted, result.span, f"`{result.text}` is {kind}; `pool` makes one row of a sequence")
            return False
        if any(term.loss == name and term.result == result.text for term in into):
            self._report(f"`{name}({result.text})` stands here twice", node.span, "give it one weight")
            return False
        into.append(Term(weight, name, result.text))
        return True

    def _is_result(self, result: s.Path | None, node: s.Call) -> bool:
        """Whether a term is given a result of the model; reports it otherwise."""
        results = self.graph.results
        if result is not None and result.text in results:
            return True
        near = did_you_mean(result.text, results) if result else None
        label = f"did you mean `{near}`?" if near else f"results are {', '.join(results)}"
        name = node.callee.text
        shown = f"`{result.text}` is no result of `{self.graph.name}`" if result else f"`{name}` needs a result"
        self._report(shown, result.span if result else node.span, label)
        return False

    def _report(self, title: str, span: Span, label: str = "") -> None:
        self.problems.add(Diagnostic("DSK0173", title, span, label))
