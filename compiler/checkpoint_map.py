"""`checkpoint` items as the rules that `runtime/weights` reads: which tensors each parameter is made of."""

from __future__ import annotations

from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics, Mark
from dskc.dsl.dims import Dim
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean, looks_like

from .builder import Builder
from .evaluate import Evaluator
from .frame import Frame, Shared
from .ir import Axis, Graph, walk
from .parameters import parameters
from .program import ModelSource, Scope
from .signature import Kind, Parameter, Signature
from .values import POISON

Json = dict[str, "str | int | Json"]
_OF = Parameter("of", Kind.TENSOR, doc="a name in quotes, or another transform")
IGNORE, TIED = "ignore", "tied"
ENTRIES = {
    IGNORE: "tensors of others that no parameter wants, by a pattern in quotes",
    TIED: "two tensors that are one, a list of two names in quotes: the copy, the original",
}
# What a rule may do to a tensor on its way in; each has an inverse, for the way out.
TRANSFORMS: dict[str, Signature] = {
    transform.name: transform
    for transform in (
        Signature("stack", (_OF,), "The tensors that `#`, the index of an expert, counts through, one upon another."),
        Signature("transpose", (_OF,), "The last two axes exchanged."),
        Signature(
            "rows",
            (_OF, Parameter("from", Kind.INT, doc="the first row"), Parameter("to", Kind.INT, doc="behind the last")),
            "Some rows of a tensor that holds several.",
        ),
        Signature(
            "interleave",
            (
                _OF,
                Parameter("parts", Kind.INT, doc="how many"),
                Parameter("part", Kind.INT, doc="which, from 0"),
                Parameter("block", Kind.INT, 1, doc="rows of a turn"),
            ),
            "Every `parts`-th row, or block of rows, of a tensor whose parts take turns.",
        ),
        Signature(
            "permute_rope",
            (
                _OF,
                Parameter("heads", Kind.INT, doc="that the rows make"),
            ),
            "Rows in the order of rotated halves, from that of rotated neighbours.",
        ),
    )
}


def checkpoint_rules(model: ModelSource, graph: Graph, problems: Diagnostics) -> list[Json]:
    """The rules of a model's `weights`; those of parameters that it lacks too, for they say what a tensor would be."""
    rules: list[Json] = []
    for name in model.weights:
        assert model.weights_scope is not None
        rules += _Reader(graph, problems).rules(name, model.weights_scope)
    if model.weights:
        _check_names(model, graph, rules, problems)
    return rules


def _check_names(model: ModelSource, graph: Graph, rules: list[Json], problems: Diagnostics) -> None:
    """Warns of weights that no rule makes, where a rule makes one that the model lacks and that is spelled alike.

    A map may speak of weights that a model lacks, and a model may have some of its own; only both at once is odd.
    """
    has = list(dict.fromkeys(info.pattern for info in parameters(graph)))
    mapped = {str(rule["parameter"]) for rule in rules if "parameter" in rule}
    unused = [pattern.split(".") for pattern in sorted(mapped - set(has))]
    reported: set[str] = set()
    for pattern in has:
        parts = pattern.split(".")
        if pattern in mapped:
            continue
        for other in unused:
            differing = [(a, b) for a, b in zip(parts, other, strict=False) if a != b]
            if len(parts) != len(other) or len(differing) != 1 or not looks_like(*differing[0]):
                continue
            ((name, meant),) = differing
            if name not in reported:
                reported.add(name)
                _warn(name, meant, model, graph, problems)


def _warn(name: str, meant: str, model: ModelSource, graph: Graph, problems: Diagnostics) -> None:
    said = model.weights[0].span
    named = (op.span for op, _ in walk(graph.body) if str(getattr(op.attributes, "path", "")).split(".")[-1] == name)
    place = next((span for span in named if span.source is said.source), said)
    marks = () if place is said else (Mark(said, f"`{meant}` is in this map, and `{name}` is not"),)
    title = f"the weights of `{name}` are in no checkpoint that `{said.text}` maps"
    problems.add(Diagnostic("DSK0175", title, place, f"did you mean `{meant}`?", marks, severity="warning"))


def check_maps(model: ModelSource, problems: Diagnostics) -> None:
    """Reports names after `weights` that are no checkpoint maps: all that can be said of a model without a graph."""
    for name in model.weights:
        assert model.weights_scope is not None
        if not isinstance(model.weights_scope.names.get(name.text), s.Checkpoint):
            _no_map(name, model.weights_scope, problems)


def _no_map(name: s.Name, scope: Scope, problems: Diagnostics) -> None:
    if scope.may_have(name.text):
        return
    near = did_you_mean(name.text, [n for n, d in scope.names.items() if isinstance(d, s.Checkpoint)])
    label = f"did you mean `{near}`?" if near else "name a `checkpoint` of this file, or import one"
    problems.add(Diagnostic("DSK0101", f"no checkpoint map is called `{name.text}`", name.span, label))


def _tensors(value: str | int | Json) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [str(value["name"])] if value["op"] == "tensor" else _tensors(value["of"])


class _Reader:
    def __init__(self, graph: Graph, problems: Diagnostics) -> None:
        self.graph = graph
        self.problems = problems
        self.patterns = {info.pattern for info in parameters(graph)}

    def rules(self, name: s.Name, scope: Scope, seen: tuple[str, ...] = ()) -> list[Json]:
        item = scope.names.get(name.text)
        if not isinstance(item, s.Checkpoint) or name.text in seen:
            _no_map(name, scope, self.problems)
            return []
        owner = scope.owners[name.text]
        found: dict[str, Json] = {}
        if item.base is not None:
            found = {_key(rule): rule for rule in self.rules(item.base, owner, (*seen, name.text))}
        said: dict[str, Span] = {}
        for entry in item.section.entries:
            rule = self._entry(entry, owner)
            if rule is None:
                continue
            key = _key(rule)
            if key in said:
                marks = (Mark(said[key], "first here"),)
                self._report("DSK0108", f"`{key}` is mapped twice", entry.span, "again here", marks)
            said[key] = entry.span
            found[key] = rule
        return list(found.values())

    def _entry(self, entry: s.Entry, scope: Scope) -> Json | None:
        if isinstance(entry, s.Bad):
            return None
        if (
            isinstance(entry, s.Setting)
            and entry.bare
            and entry.key.text == IGNORE
            and isinstance(entry.value, s.String)
        ):
            return {"ignore": entry.value.value}
        if isinstance(entry, s.Setting) and entry.bare and entry.key.text == TIED and isinstance(entry.value, s.List):
            names = [item.value for item in entry.value.items if isinstance(item, s.String)]
            if len(names) == 2:
                return {"same": names[0], "as": names[1]}
        if not isinstance(entry, s.Setting) or entry.bare:
            help_ = 'entries are `path = "name"`, `ignore "pattern"` and `tied ["copy", "original"]`'
            self._report("DSK0174", "this is no entry of a checkpoint map", entry.span, help_)
            return None
        value = self._value(entry.value, scope)
        if value is None:
            return None
        pattern = entry.key.text
        if pattern not in self.patterns and not pattern.endswith((".weight", ".bias")):
            pattern = f"{pattern}.weight"
        if pattern in self.patterns and not self._indices(entry, pattern, value):
            return None
        return {"parameter": pattern, "value": value}

    def _indices(self, entry: s.Setting, pattern: str, value: Json) -> bool:
        for tensor in _tensors(value):
            if tensor.count("*") != pattern.count("*"):
                title = f"`{entry.key.text}` has {pattern.count('*')} `*`, and the name it maps to {tensor.count('*')}"
                self._report("DSK0174", title, entry.value.span)
                return False
        return True

    def _value(self, node: s.Expression, scope: Scope) -> Json | None:
        if isinstance(node, s.String):
            return {"op": "tensor", "name": node.value}
        if isinstance(node, s.Call) and node.callee.text in TRANSFORMS and node.arguments:
            return self._transform(node, scope)
        text = node.callee.text if isinstance(node, s.Call) else node.span.text
        near = did_you_mean(text, TRANSFORMS)
        label = f"did you mean `{near}`?" if near else f"write a name in quotes, or {', '.join(TRANSFORMS)} of one"
        self._report("DSK0174", f"`{text}` is no tensor of a checkpoint", node.span, label)
        return None

    def _transform(self, node: s.Call, scope: Scope) -> Json | None:
        of = self._value(node.arguments[0].value, scope)
        if of is None:
            return None
        found: Json = {"op": node.callee.text, "of": of}
        frame = Frame(Shared(self.problems, self.graph.sizes), scope, Builder(""))
        for dim in self.graph.dims:
            frame.dims[dim.name] = Axis(dim.name, dim.equation or Dim.of(dim.name))
        evaluator = Evaluator(lambda *_: POISON)
        parameters = TRANSFORMS[node.callee.text].parameters[1:]
        options = [p.name for p in parameters]
        for argument in node.arguments[1:]:
            label = argument.label.text if argument.label else None
            number = evaluator.number(evaluator.evaluate(argument.value, frame), frame)
            if label not in options or not isinstance(number, Fraction):
                takes = ", ".join(options) or "nothing else"
                self._report("DSK0174", f"`{node.callee.text}` takes {takes}", argument.span)
                return None
            found[label] = int(number)
        missing = [p.name for p in parameters if p.required and p.name not in found]
        if missing:
            self._report("DSK0174", f"`{node.callee.text}` also needs {', '.join(missing)}", node.span)
            return None
        return found

    def _report(self, code: str, title: str, span: Span, label: str = "", marks: tuple[Mark, ...] = ()) -> None:
        self.problems.add(Diagnostic(code, title, span, label, marks))


def _key(rule: Json) -> str:
    """What a rule is about: one rule of a kind about the same thing replaces the other."""
    return next(f"{kind} {rule[kind]}" for kind in ("parameter", "ignore", "same") if kind in rule)
