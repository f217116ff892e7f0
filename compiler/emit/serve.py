"""serve.py: prefill and decode. The same graph as functions over the model's modules, with a cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dskc.dsl.source import Span

from ..ir import Axis, DType, Graph, Op, Region, TensorType, Value, captures, walk
from ..ops.attend import Attend
from ..ops.base import Operation
from ..ops.experts import Experts
from ..ops.heads import Choose
from ..ops.structure import Block, Keep, Repeat
from ..passes.absorb import absorb_region
from .classes import Classes, capture_parameters, return_lines, return_type, user_site
from .expression import Call
from .function import Function, Line, suffixed, use_counts
from .model import signature
from .names import Names, body_path, last_part
from .text import ATOM, Text, call, fit, singular


@dataclass(slots=True)
class ServeFile:
    """The functions of serve.py, innermost first, each once for each class that keeps something."""

    names: Names
    classes: Classes
    functions: dict[str, list[Line]] = field(default_factory=dict)
    site: Span | None = None

    def of_region(self, region: Region, op: Op) -> str:
        """The function for the region of a block or of a layer."""
        made = self.classes.by_region[id(region)]
        name = f"_{_snake(made)}"
        if name not in self.functions:
            outer, self.site = self.site, user_site(op.span, self.site)
            self.functions[name] = [line.within(self.site) for line in self._function(region, op, name, made)]
            self.site = outer
        return name

    def _function(self, region: Region, op: Op, name: str, made: str) -> list[Line]:
        self.names.use(".model", made)
        function = Serving(self.names, body_path(op), op.span, serving=True, indent="    ", file=self)
        parameters = [f"self: {made}"]
        parameters += [f"{function.bind(value, parameter=True)}: Tensor" for value in region.arguments]
        parameters += capture_parameters(function, op, serving_captures(op), self.classes, imported=True)
        parameters.append("cache: Cache")
        wanted = region.results[: kept_results(op)]
        function.part(region, wanted)
        results = [function.take(value) for value in wanted]
        head = fit("", f"def {name}", tuple(parameters), f" -> {return_type(results)}:")
        last = region.ops[-1].span if region.ops else op.span
        closing = [Line(line.text[4:], line.span) for line in return_lines(results, last)]
        return [*(Line(text, op.span) for text in head), *function.lines, *closing]


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() and i else c.lower() for i, c in enumerate(name))


def kept_results(op: Op) -> int:
    """How many results of a block or repeat are not losses: those that serving has use for."""
    attributes = op.attributes
    assert isinstance(attributes, Block | Repeat)
    return attributes.results if isinstance(attributes, Block) else attributes.carried


def keeps(op: Op) -> bool:
    """Whether decoding holds on to something within an operation."""
    return _keeps(op) or any(_keeps(inner) for region in op.regions for inner, _ in walk(region))


def _keeps(op: Op) -> bool:
    return isinstance(op.attributes, Keep) or _is_stateful(op)


def _is_stateful(op: Op) -> bool:
    return isinstance(op.attributes, Operation) and op.attributes.stateful


def serving_captures(op: Op) -> tuple[Value, ...]:
    """What bodies see from outside while serving: there are no documents to tell apart."""
    return tuple(value for value in captures(op) if value.name != "documents")


@dataclass(slots=True)
class Serving(Function):
    """A body with a cache: kept values come back with all positions so far, and only what is wanted is computed."""

    file: ServeFile | None = None
    shared: set[Value] = field(default_factory=set)  # what both bodies of a choice read
    applied: Counter[str] = field(default_factory=Counter)  # a block applied twice keeps what it keeps apart

    def part(self, region: Region, wanted: tuple[Value, ...], newest_only: bool = False) -> None:
        """The operations that `wanted` needs. `newest_only`: of the newest position, behind the last that keeps any."""
        region = absorb_region(region, self.names.owners, self.names.graph.sizes)
        ops = live(region, wanted)
        looking = [op for op in ops if keeps(op)] if newest_only else []
        if any(isinstance(op.attributes, Keep) for op in looking):
            looking = []  # what reads it follows in this body
        uses = _uses(ops, wanted)
        self.left.update(uses)
        self.spell(ops)
        if newest_only:  # the pass is over when the cache advances, so nothing may be left to write behind that
            self.spelled.update(value for op in ops if keeps(op) for value in op.results)
        final = ops[-1] if ops and ops[-1].results == wanted else None
        for i, op in enumerate(ops):
            if not looking or op is not looking[-1]:
                self.operation(op, uses, last=op is final)
            else:
                self.operation(op, uses + Counter(op.results), last=False)  # as a statement of its own
                self.newest(region, _uses(ops[i + 1 :], wanted), op.span)

    def spell(self, ops: Iterable[Op]) -> None:
        """Has what either body of a choice reads assigned to variables first: it is written in both."""
        ops = tuple(ops)
        Function.spell(self, ops)
        for op in ops:
            if isinstance(op.attributes, Choose):
                self.shared.update((*op.operands, *captures(op)))

    def operation(self, op: Op, uses: Counter[Value], last: bool) -> None:
        if isinstance(op.attributes, Choose):
            self.choose(op)
        elif self.shared & set(op.results):
            Function.operation(self, op, uses + Counter(op.results), last=False)  # as a statement of its own
        else:
            Function.operation(self, op, uses, last)

    def choose(self, op: Op) -> None:
        """`if` and `else` over the numbers of positions, both of which give the same variable its value."""
        attributes = op.attributes
        assert isinstance(attributes, Choose)
        counts = [use_counts(region) for region in op.regions]
        for uses in counts:
            self.left.update(uses)
        lengths = (Value(TensorType((), DType.INT64), name) for name in ("new", "kept"))
        new, kept = (self.bind(length) for length in lengths)
        shapes = ", ".join(f"{self.take(value).at(ATOM)}.shape[1]" for value in op.operands)
        self.write(f"{new}, {kept} = {shapes}", op.span)
        target = self.bind(op.result, suffixed(op.result.name or "o", op.result.type))
        words = (f"if {attributes.condition(new, kept)}:", "else:")
        notes = (f"{attributes.layers} at the queries and behind attention", f"{attributes.layers} of all positions")
        outer = self.indent
        for word, note, region, uses in zip(words, notes, op.regions, counts, strict=True):
            self.indent = outer
            self.write(f"{word}  # {note}", op.span)
            self.indent = f"{outer}    "
            self.spell(region.ops)
            for inner in region.ops:
                self.operation(inner, uses, last=inner is region.ops[-1])
            self.assign(target, self.take(region.results[0]), region.ops[-1].span)
        self.indent = outer
        for value in captures(op):
            self.left[value] -= 1

    def take(self, value: Value) -> Text:
        if value.name == "documents" and value not in self.texts:
            return Text("None")  # a cache holds one document a row: masks leave the term out
        return Function.take(self, value)

    def newest(self, region: Region, needed: Counter[Value], span: Span) -> None:
        """Keeps the newest position of what goes on from here, where that is tensors: only its logits are wanted."""
        sequence = region.arguments[0].type.axes[1].size
        along = [v for v in needed if v in self.texts and any(axis.size == sequence for axis in v.type.axes)]
        if any(v in region.arguments or v.type.axes[1].size != sequence for v in along):
            return
        inlined = [v for v in along if self.waiting[v] != (v,)]
        for value in (*inlined, *(v for v in along if v not in inlined)):
            text = self.texts[value].at(ATOM)
            if value in inlined:
                self.take(value)
                self.bind(value)
            self.write(f"{self.texts[value]} = {text}[:, -1:]  # only the newest position goes on", span)

    def keep(self, op: Op) -> None:
        assert isinstance(op.attributes, Keep)
        arguments = tuple(
            f"{name}={self.take(value)}" for name, value in zip(op.attributes.names, op.operands, strict=True)
        )
        targets = []
        for name, value in zip(op.attributes.names, op.results, strict=True):
            axes = value.type.axes
            kind = value.type.with_axes((axes[0], Axis("T", axes[1].size), *axes[2:]))
            targets.append(self.bind(value, suffixed(name, kind)))
        spelled = f"({targets[0]},)" if len(targets) == 1 else ", ".join(targets)
        self.assign(spelled, call("cache.keep", arguments), op.span)

    def invoke(self, op: Op, operands: tuple[Text, ...]) -> Text:
        attributes = op.attributes
        if not keeps(op) or isinstance(attributes, Experts):
            return Function.invoke(self, op, operands)
        assert isinstance(attributes, Block) and self.file is not None
        cache = f"cache.at({self.place(last_part(attributes.path))})"
        function = self.file.of_region(op.regions[0], op)
        return call(function, (self.module(attributes.path), *map(str, operands), *self.captured(op), cache))

    def call(self, op: Op, operands: tuple[Text, ...]) -> Call:
        made = Function.call(self, op, operands)
        if _is_stateful(op):
            owner = next((self.names.owners[v] for v in op.operands if v in self.names.owners), None)
            made.state = Text(f"cache.state({self.place(owner.name if owner else op.kind)})")
        return made

    def place(self, name: str) -> str:
        """Where something of this name keeps what it keeps, as arguments: apart from others of the name."""
        self.applied[name] += 1
        return f'"{name}"' if self.applied[name] == 1 else f'"{name}", {self.applied[name]}'

    def captured(self, op: Op) -> tuple[str, ...]:
        return tuple(text for text in Function.captured(self, op) if text != "None")

    def targets(self, op: Op) -> str:
        if isinstance(op.attributes, Block) and keeps(op):
            kept = op.results[: kept_results(op)]
            return ", ".join(
                self.bind(v, suffixed(v.name or op.attributes.path.rsplit(".", 1)[-1], v.type)) for v in kept
            )
        return Function.targets(self, op)

    def enter_loop(self, op: Op) -> tuple[str, ...]:
        carried = []
        for operand, result in zip(op.operands, op.results, strict=False):
            text = str(self.take(operand))
            chosen = self.bind(result, suffixed(result.name or "x", result.type))
            if text != chosen:
                self.write(f"{chosen} = {text}", op.span)
            carried.append(chosen)
        return tuple(carried)

    def repeat(self, op: Op) -> None:
        attributes = op.attributes
        assert isinstance(attributes, Repeat) and self.file is not None
        carried = self.enter_loop(op)
        name = attributes.path.rsplit(".", 1)[-1]
        item = singular(name)
        captured = self.captured(op)
        if not keeps(op):
            self.write(f"for {item} in self.{name}:", op.span)
            outer, self.indent = self.indent, f"{self.indent}    "
            targets = ", ".join((*carried, *("_" for _ in attributes.losses)))
            self.assign(targets, call(item, (*carried, *captured)), op.span)
            self.indent = outer
            return
        functions = [self.file.of_region(region, op) for region in op.regions]
        self.write(f"for i, {item} in enumerate(self.{name}):", op.span)
        outer, self.indent = self.indent, f"{self.indent}    "
        arguments = (item, *carried, *captured, f'cache.at("{name}", i)')
        for n, (region, function) in enumerate(zip(op.regions, functions, strict=True)):
            made = self.file.classes.by_region[id(region)]
            if len(functions) > 1:
                word = "if" if n == 0 else "elif"
                self.file.names.use(".model", made)
                self.write(f"{word} isinstance({item}, {made}):", op.span)
                self.indent = f"{outer}        "
            self.assign(", ".join(carried), call(function, arguments), op.span)
            self.indent = f"{outer}    "
        self.indent = outer


def live(region: Region, wanted: tuple[Value, ...]) -> list[Op]:
    """The operations of a region that `wanted` depends on: heads that only training has use for are left out."""
    needed = set(wanted)
    kept: list[Op] = []
    for op in reversed(region.ops):
        if needed & set(op.results):
            needed |= {*op.operands, *captures(op)}
            kept.append(op)
    return kept[::-1]


def _uses(ops: list[Op], wanted: tuple[Value, ...]) -> Counter[Value]:
    counts: Counter[Value] = Counter(wanted)
    for op in ops:
        counts.update(op.operands)
        counts.update(captures(op))
    return counts


def emit_serve(graph: Graph, classes: Classes) -> list[Line]:
    """The lines of serve.py below its header; `classes` are those of model.py."""
    names = Names(graph, kernels=classes.names.kernels)
    file = ServeFile(names, classes)
    span = graph.span
    function = Serving(names, "", span, serving=True, indent="    ", file=file)
    parameters = ["self: Model"]
    given = [(n, v) for n, v in zip(graph.inputs, graph.body.arguments, strict=True) if n != "documents"]
    for name, value in given:
        parameters.append(f"{function.bind(value, suffixed(name, value.type), parameter=True)}: Tensor")
    wanted = graph.body.results[:1]
    if any(isinstance(op.attributes, Attend) and op.attributes.looks_ahead(op) for op, _ in walk(graph.body)):
        function.write("cache.whole()  # positions see later ones: a text comes at once", span)
    function.part(graph.body, wanted, newest_only=True)
    logits = function.take(wanted[0])
    tokens = suffixed(given[0][0], given[0][1].type)
    names.use("dskc.runtime.serve.cache", "Cache")
    names.use(".model", "Model")
    axes = [axis.name for axis in wanted[0].type.axes if axis.name != "S"]
    head = fit("", "def forward", (*parameters, "cache: Cache"), " -> Tensor:")
    top = [Line(text, span) for text in head]
    what = f"{graph.results[0].capitalize()} [{', '.join(axes)}] of the last position"
    doc = f"{what}; what the blocks keep joins the cache."
    top.append(Line(f'    """{doc}"""', span))
    top += function.lines
    top.append(Line(f"    cache.advance({tokens}.shape[1])", span))
    top.append(Line(f"    return {logits.at(3)}[:, -1]", span))
    lines = [
        f'"""Prefill and decode of {graph.name}: the same graph, with what its blocks keep in a cache.',
        "",
        signature(graph),
        '"""',
        "",
        "from __future__ import annotations",
        "",
        *(["import torch"] if names.torch else []),
        "from torch import Tensor",
        "",
    ]
    out = [Line(text) for text in lines]
    for dim in sorted(names.used_dims):
        names.use(".model", dim)
    local: dict[str, set[str]] = {
        module: names.imports.pop(module) for module in (".", ".model") if module in names.imports
    }
    names.imports.pop("torch", None)
    out += [Line(text) for text in names.import_lines()]
    out.append(Line(""))
    out += [Line(text) for text in Names(graph, local).import_lines()]
    out += [Line(""), Line("")]
    out += top
    for body in reversed(file.functions.values()):
        out += [Line(""), Line(""), *body]
    return out
