"""expand: blocks become operations, and every weight gets its path.

Statements run in order over a frame; repeats whose body does not depend on the index are read once, others once for
each index and then grouped by what they turned out to be.
"""

from __future__ import annotations

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics, Mark
from dskc.dsl.dims import Dim
from dskc.dsl.suggest import did_you_mean

from ..bindings import assigned, bound_once, first_line
from ..builder import Builder
from ..calls import Calls
from ..dims import model_dims
from ..evaluate import describe
from ..frame import Frame, Shared
from ..ir import Axis, Graph, Value
from ..ops.base import ShapeError
from ..ops.elementwise import Elementwise
from ..ops.structure import Keep
from ..program import ModelSource
from ..repeats import Repeats
from ..requirements import Requirement
from ..reserved import result_problem
from ..types import check_type, declared_type
from ..values import POISON, BlockValue, Expressed, Poison, named


def expand(model: ModelSource, problems: Diagnostics) -> tuple[Graph, list[Requirement]] | None:
    """The graph of a model and what it requires of itself; None when problems stand in the way."""
    return _Expander(model, problems).model()


class _Expander:
    def __init__(self, model: ModelSource, problems: Diagnostics) -> None:
        self.source = model
        self.problems = problems
        self.calls = Calls(self.body)
        self.evaluator = self.calls.evaluator
        self.repeats = Repeats(self.evaluator, self._statements, self._once)
        self.requirements: list[Requirement] = []
        self.optional: tuple[str, ...] = ()  # inputs that a batch may come without
        self.bound_once: dict[int, frozenset[str]] = {}  # of bodies by identity: iterations read one again and again

    # --- the model

    def model(self) -> tuple[Graph, list[Requirement]] | None:
        syntax = self.source.base
        builder = Builder("")
        shared = Shared(self.problems, {}, self.source.overrides)
        frame = Frame(shared, self.source.scope, builder, block=self.source.name.text)
        infos = model_dims(self.source, frame, self.evaluator)
        self._inputs(syntax, frame)
        frame.once = self._once(syntax.body)
        returned = self.body(syntax.body, frame)
        if returned:
            frame.report("DSK0143", "a model has no `return`: its results are the names after `->`", syntax.name.span)
        self._overridden_requires(frame)
        if not shared.failed:  # else an override may have met nothing because of them
            self._unused_overrides(shared)
        results = self._results(syntax, frame)
        if results is None or shared.failed:
            return None
        losses = tuple(sorted(builder.losses))
        arguments = tuple(builder.inputs.values())
        region = builder.region(arguments, (*results, *(builder.losses[name] for name in losses)))
        names = tuple(result.name.text for result in syntax.results)
        graph = Graph(
            self.source.name.text, self.source.doc, self.source.name.span, infos, region,
            tuple(builder.inputs), names, losses, self.optional,
        )  # fmt: skip
        return graph, self.requirements

    def _inputs(self, syntax: s.Model, frame: Frame) -> None:
        self._name(self.source.name, frame)
        for param in syntax.params:
            self._name(param.name, frame)
            if not isinstance(param.kind, s.Type):
                frame.report("DSK0144", "what goes into a model is a tensor", param.span, "write `name: ids[B, S]`")
                continue
            for node in param.kind.axes:
                if isinstance(node, s.Name) and node.text not in frame.dims:
                    frame.dims[node.text] = Axis(node.text, Dim.of(node.text))
                    frame.bound_at[node.text] = node.span
            kind = declared_type(param.kind, frame, self.evaluator)
            frame.names[param.name.text] = POISON
            if kind is not None:
                value = Value(kind, param.name.text)
                frame.shared.bound_values[param.name.text] = param.name.span
                frame.builder.inputs[param.name.text] = value
                frame.names[param.name.text] = value
                if param.kind.optional:
                    self._optional(param.name, param.kind, frame)

    def _optional(self, name: s.Name, kind: s.Type, frame: Frame) -> None:
        """Notes an input that a batch may come without: it is then empty along its second axis."""
        self.optional = (*self.optional, name.text)
        if len(kind.axes) < 2:
            title = "an input that may be absent is empty along its second axis"
            frame.report("DSK0144", title, kind.span, "write `name: [B, N, ..]?`")

    def _results(self, syntax: s.Model, frame: Frame) -> tuple[Value, ...] | None:
        found: list[Value] = []
        for result in syntax.results:
            self._name(result.name, frame)
            name = result.name.text
            value = frame.names.get(name)
            if value is None:
                near = did_you_mean(name, [n for n, v in frame.names.items() if isinstance(v, Value)])
                label = f"did you mean `{near}`?" if near else "nothing of this name is bound in the body"
                if near is None and frame.shared.unread_values:
                    continue
                place = frame.shared.bound_values.get(near or "")
                marks = (Mark(place, f"`{near}` is this"),) if place else ()
                title = f"the result `{name}` is never computed"
                frame.report("DSK0145", title, result.name.span, label, marks)
            elif isinstance(value, Value):
                place = frame.shared.bound_values.get(name)
                if check_type(result.type, value, frame, self.evaluator, place):
                    found.append(value)
            elif not isinstance(value, Poison):
                frame.report("DSK0145", f"the result `{name}` is {describe(value)}", result.name.span)
        return tuple(found) if len(found) == len(syntax.results) else None

    def _overridden_requires(self, frame: Frame) -> None:
        if self.source.altered:  # as if another model came from this one
            self.requirements.clear()
            return
        if self.source.base.name.text != self.source.name.text:
            self.requirements.clear()  # requirements are not inherited
        for statement, _scope in self.source.requires:
            self.requirements.append(Requirement(statement.condition, frame))

    def _unused_overrides(self, shared: Shared) -> None:
        for index, override in enumerate(self.source.overrides):
            if index in shared.used:
                continue
            what = {"dim": "dim", "repeat": "repeat", "call": "call"}[override.kind]
            if override.kind == "call" and override.path in shared.seen_paths:
                takes = shared.seen_paths[override.path]
                near = did_you_mean(override.argument or "", takes)
                label = f"did you mean `{near}`?" if near else f"it takes {', '.join(takes)}"
                title = f"`{override.path}` takes no `{override.argument}`"
            else:
                seen = list(shared.dim_spans if override.kind == "dim" else shared.seen_paths)
                near = did_you_mean(override.path, seen)
                label = f"did you mean `{near}`?" if near else ""
                if not near and seen:
                    label = f"there are {', '.join(seen[:8])}"
                title = f"`{self.source.name.text}` has no {what} `{override.path}` to override"
            self.problems.add(Diagnostic("DSK0140", title, override.span, label))

    # --- statements

    def body(self, body: s.Body, frame: Frame) -> tuple[Expressed, ...] | None:
        """Runs a body; what it returns, or an empty tuple when it has no `return`, or None when that failed."""
        if not frame.once:
            frame.once = self._once(body)
        returned = self._statements(body, frame)
        return () if returned is None else returned if POISON not in returned else None

    def _once(self, body: s.Body) -> frozenset[str]:
        found = self.bound_once.get(id(body))
        if found is None:
            found = self.bound_once[id(body)] = bound_once(body)
        return found

    def _statements(self, body: s.Body, frame: Frame) -> tuple[Expressed, ...] | None:
        for index, statement in enumerate(body.statements):
            returned = self._statement(statement, frame)
            if returned is not None:
                if index + 1 < len(body.statements):
                    after = body.statements[index + 1]
                    frame.report("DSK0146", "nothing after `return` is reached", first_line(after.span))
                return returned
        return None

    def _statement(self, statement: s.Statement, frame: Frame) -> tuple[Expressed, ...] | None:
        match statement:
            case s.Assign():
                self._assign(statement, frame)
            case s.Residual():
                self._residual(statement, frame)
            case s.Repeat():
                self.repeats.repeat(statement, frame)
            case s.Group():
                self.repeats.group(statement, frame)
            case s.If():
                return self._if(statement, frame)
            case s.Return():
                return tuple(self.evaluator.evaluate(value, frame) for value in statement.values)
            case s.Keep():
                self._keep(statement, frame)
            case s.Loss():
                self._loss(statement, frame)
            case s.Require():
                self.requirements.append(Requirement(statement.condition, frame))
            case s.Dims() | s.Weights():
                if frame.caller is not None:
                    word = "dims" if isinstance(statement, s.Dims) else "weights"
                    frame.report("DSK0147", f"`{word}` belongs to a model", first_line(statement.span))
            case s.RepeatOverride() | s.CallOverride():
                frame.report(
                    "DSK0148",
                    "this changes something inherited",
                    first_line(statement.span),
                    "only in a model that comes `from` another",
                )
            case s.Bad():
                frame.shared.failed = True
                frame.shared.unread_values = frame.shared.unread_values or not statement.names
                for name in statement.names:
                    frame.names[name] = POISON
        return None

    def _assign(self, statement: s.Assign, frame: Frame) -> None:
        first = statement.targets[0]
        hint = None
        if len(statement.targets) == 1 and isinstance(statement.value, s.Call) and first.text in frame.once:
            hint = first.text
        value = self.evaluator.evaluate(statement.value, frame, hint)
        if len(statement.targets) == 1:
            self._bind(first, value, frame)
            return
        self._distinct(statement.targets, frame)
        if isinstance(value, tuple) and len(value) == len(statement.targets):
            for target, part in zip(statement.targets, value, strict=True):
                self._bind(target, part, frame)
            return
        if not isinstance(value, Poison):
            count = len(value) if isinstance(value, tuple) else 1
            title = f"{len(statement.targets)} names for {count} value{'s' if count > 1 else ''}"
            frame.report("DSK0149", title, first.span.to(statement.targets[-1].span), f"this is {describe(value)}")
        for target in statement.targets:
            frame.names[target.text] = POISON

    def _distinct(self, targets: tuple[s.Name, ...], frame: Frame) -> None:
        first: dict[str, s.Name] = {}
        reported: set[str] = set()
        for target in targets:
            name = target.text
            before = first.setdefault(name, target)
            if before is not target and name not in reported:
                reported.add(name)
                marks = (Mark(before.span, "first here"),)
                frame.report("DSK0102", f"`{name}` is defined twice", target.span, "again here", marks)

    def _bind(self, target: s.Name, value: Expressed, frame: Frame) -> None:
        if target.is_dim:
            frame.report("DSK0151", f"`{target.text}` would be a dim", target.span, "values start with a small letter")
        if isinstance(value, BlockValue) and value.path is None and value.builder is frame.builder:
            value.path = frame.builder.join(target.text)
        frame.names[target.text] = named(value, target.text)
        if frame.caller is None:
            frame.shared.bound_values[target.text] = target.span

    def _residual(self, statement: s.Residual, frame: Frame) -> None:
        name = statement.target.text
        before = frame.names.get(name)
        if name not in frame.names:
            near = did_you_mean(name, list(frame.names))
            label = f"did you mean `{near}`?" if near else "nothing of this name has been bound before this line"
            others = frame.shared.unread_values
            frame.report_unknown("value", name, statement.target.span, label, near, others)
        value = self.evaluator.evaluate(statement.value, frame)
        if not isinstance(before, Value) or not isinstance(value, Value):
            if isinstance(before, Value) and not isinstance(value, Poison):
                frame.report("DSK0114", f"`+=` needs a tensor, not {describe(value)}", statement.value.span)
            frame.names[name] = POISON if name not in frame.names else before
            return
        try:
            total = frame.builder.one(Elementwise("add"), (before, value), statement.span)
        except ShapeError as error:
            frame.report(error.code, str(error), statement.span)
            return
        frame.names[name] = named(total, name)

    def _if(self, statement: s.If, frame: Frame) -> tuple[Expressed, ...] | None:
        condition = self.evaluator.condition(statement.condition, frame)
        if condition is None:
            for name in assigned(statement):
                frame.names[name] = POISON
            return None
        chosen = statement.then if condition else statement.otherwise
        if isinstance(chosen, s.If):
            return self._if(chosen, frame)
        return self._statements(chosen, frame) if chosen else None

    def _keep(self, statement: s.Keep, frame: Frame) -> None:
        values = [v for name in statement.names if (v := self._tensor(name, frame, "keep")) is not None]
        if len(values) != len(statement.names):
            return
        for said, value in zip(statement.names, values, strict=True):
            axes = value.type.axes
            if len(axes) < 2 or not frame.builder.inputs_along(axes[1]):
                title = "what is kept grows along its second axis, the sequence: [B, S, ..]"
                frame.report("DSK0126", title, said.span, f"this is {value.type}")
                return
        names = tuple(name.text for name in statement.names)
        kept = frame.builder.add(Keep(names), tuple(values), statement.span)
        for name, value in zip(names, kept, strict=True):
            frame.names[name] = named(value, name)

    def _loss(self, statement: s.Loss, frame: Frame) -> None:
        value = self.evaluator.evaluate(statement.value, frame)
        if isinstance(value, Poison):
            return
        if not isinstance(value, Value) or value.type.axes:
            shown = describe(value)
            frame.report("DSK0152", f"a loss is one number, not {shown}", statement.value.span)
            return
        self._name(statement.name, frame)
        frame.builder.add_loss(statement.name.text, named(value, statement.name.text), statement.span)

    def _name(self, name: s.Name, frame: Frame) -> None:
        problem = result_problem(name.text)
        if problem is not None:
            frame.report("DSK0119", f"this cannot be called `{name.text}`", name.span, problem)

    def _tensor(self, name: s.Name, frame: Frame, what: str) -> Value | None:
        value = frame.names.get(name.text)
        if isinstance(value, Value):
            return value
        if value is None:
            near = did_you_mean(name.text, list(frame.names))
            label = f"did you mean `{near}`?" if near else ""
            frame.report_unknown("value", name.text, name.span, label, near, frame.shared.unread_values)
        elif not isinstance(value, Poison):
            frame.report("DSK0126", f"`{what}` needs tensors", name.span, f"this is {describe(value)}")
        return None
