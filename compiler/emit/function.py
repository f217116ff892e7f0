"""One function body: operations to statements, in order, values that only pass through written where they go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from dskc.dsl.source import Span

from ..ir import Op, Region, TensorType, Value, captures
from ..ops.attend import Attend
from ..ops.base import Operation
from ..ops.experts import Experts
from ..ops.fused import Fused
from ..ops.structure import Block, Keep, Repeat
from ..ops.weights import Weights
from ..reserved import CALLED, PYTHON
from .expression import Call, Modules
from .names import Names, below, body_path, is_below, last_part
from .text import Text, call, fit, singular

LONGEST = 96  # a kernel call that passes through and is longer than this becomes a statement of its own


@dataclass(frozen=True, slots=True)
class Line:
    """A line of generated code and the place that it comes from; within the library, also the call that led there."""

    text: str
    span: Span | None = None
    site: Span | None = None

    def within(self, site: Span | None) -> Line:
        """The same line, in the body of what `site` called."""
        return Line(self.text, self.span, self.site or site)


def suffixed(name: str, kind: TensorType) -> str:
    """A tensor's name in code: `x_BSD`."""
    axes = "".join(axis.name for axis in kind.axes)
    return f"{name}_{axes}" if axes else name


@dataclass(slots=True)
class Function:
    """Writes the body of one function. `texts` says what each value is called; `left` how often it is still needed."""

    names: Names
    path: str
    span: Span
    serving: bool = False
    indent: str = "        "
    lines: list[Line] = field(default_factory=list)
    texts: dict[Value, Text] = field(default_factory=dict)
    left: Counter[Value] = field(default_factory=Counter)
    holders: dict[str, Value] = field(default_factory=dict)
    waiting: dict[Value, tuple[Value, ...]] = field(default_factory=dict)  # inlined: the variables within
    modules: Modules = field(default_factory=dict)
    handles: dict[str, str] = field(default_factory=dict)  # modules from outside, by path: the parameters that they are
    spelled: set[Value] = field(default_factory=set)  # never written within another call: kernels take variables

    def __post_init__(self) -> None:
        for value, owner in self.names.owners.items():
            if is_below(owner.path, self.path):
                self.modules[value] = (self.module(owner.path), owner.module)

    # --- modules

    def module(self, path: str) -> str:
        """The expression for the module at a path: an attribute of this body's own, or a parameter."""
        if is_below(path, self.path):
            return f"self.{below(path, self.path)}"
        return self.handles[path]

    def receive(self, weight: Value) -> str | None:
        """A parameter's name for the module that holds a weight from outside; None where it has come already."""
        owner = self.names.owners[weight]
        root = self.names.module_path(weight)
        fresh = root not in self.handles
        if fresh:
            name, taken, n = last_part(root), set(self.handles.values()), 2
            while name in taken:
                name, n = f"{last_part(root)}{n}", n + 1
            self.handles[root] = name
        self.modules[weight] = (self.handles[root] + owner.path[len(root) :], owner.module)
        return self.handles[root] if fresh else None

    # --- values

    def bind(self, value: Value, name: str | None = None, parameter: bool = False) -> str:
        """A variable for a value: its own name where no other living value has it. No two parameters have the same."""
        base = name or suffixed(value.name or "y", value.type)
        chosen, n = base, 2
        while chosen in CALLED or chosen in PYTHON or (chosen in self.holders and (parameter or self.living(chosen))):
            chosen = f"{base}{n}"
            n += 1
        self.holders[chosen] = value
        self.texts[value] = Text(chosen)
        self.waiting[value] = (value,)
        return chosen

    def living(self, variable: str) -> bool:
        return self.left[self.holders[variable]] > 0

    def take(self, value: Value) -> Text:
        """The text of an operand, whose need for it is thereby met."""
        if value not in self.texts:
            assert value in self.modules, f"{value} is used before it is computed"
            return Text(self.modules[value][0])
        for variable in self.waiting[value]:
            self.left[variable] -= 1
        return self.texts[value]

    def write(self, text: str, span: Span | None = None) -> None:
        self.lines.append(Line(f"{self.indent}{text}" if text else "", span or self.span))

    def assign(self, targets: str, value: Text, span: Span) -> None:
        """`targets = value`, broken at the arguments of the outermost call where it is long."""
        if value.parts:
            callee, arguments = value.parts
            for line in fit(self.indent, f"{targets} = {callee}", arguments, ""):
                self.lines.append(Line(line, span))
        else:
            self.lines.append(Line(f"{self.indent}{targets} = {value}", span))

    # --- operations

    def region(self, region: Region) -> None:
        """All operations of a region. Its results are left for the caller to take."""
        uses = use_counts(region)
        self.left.update(uses)
        self.spell(region.ops)
        last = region.ops[-1] if region.ops and region.ops[-1].results == region.results else None
        for op in region.ops:
            self.operation(op, uses, last=op is last)

    def spell(self, ops: Iterable[Op]) -> None:
        """Has what kernels read assigned to variables first."""
        for op in ops:
            if isinstance(op.attributes, Fused):
                self.spelled.update(op.operands)

    def operation(self, op: Op, uses: Counter[Value], last: bool) -> None:
        attributes = op.attributes
        if not op.results or isinstance(attributes, Weights):  # nothing has use for what a body without results does
            return
        if isinstance(attributes, Keep):
            self.keep(op)
        elif isinstance(attributes, Repeat):
            self.repeat(op)
        else:
            self.compute(op, uses, last)

    def compute(self, op: Op, uses: Counter[Value], last: bool) -> None:
        """A statement; or, for what only passes through or is returned, text to be written where it is used."""
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        inline = len(op.results) == 1 and uses[op.result] == 1 and (last or op.result.name is None)
        inline = inline and not (op.result in self.spelled and _is_statement(attributes))
        seen = (*op.operands, *captures(op))
        variables: tuple[Value, ...] = ()
        if inline:
            variables = tuple(v for value in seen for v in self.waiting.get(value, ()))
            self.left.update(variables)  # taking them here must not free them: they are used where the text ends up
        operands = tuple(self.take(v) for v in op.operands)
        if isinstance(attributes, Block | Experts):
            value = self.invoke(op, operands)
        else:
            value = attributes.emit(self.call(op, operands))
        if inline and len(str(value)) > LONGEST and isinstance(attributes, Fused):
            inline = False
            self.left.subtract(variables)
        if inline:
            self.texts[op.result] = value
            self.waiting[op.result] = variables
        else:
            self.assign(self.targets(op), value, op.span)

    def targets(self, op: Op) -> str:
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        defaults = attributes.result_names or (default_name(op),) * len(op.results)
        if isinstance(attributes, Fused):
            defaults = attributes.variables
        losses = attributes.losses if isinstance(attributes, Block) else ()
        if losses:
            defaults = (*defaults[: len(op.results) - len(losses)], *losses)
        spelled = []
        for value, default in zip(op.results, defaults, strict=True):
            used = self.left[value] > 0
            spelled.append(self.bind(value, suffixed(value.name or default, value.type)) if used else "_")
            if not used:
                self.texts[value] = Text("_")
                self.waiting[value] = ()
        return ", ".join(spelled)

    def call(self, op: Op, operands: tuple[Text, ...]) -> Call:
        return Call(op, operands, self.names, self.modules, self.serving)

    # --- what subclasses of code do differently: training and serving

    def keep(self, op: Op) -> None:
        """Without a cache nothing is kept: the results are the operands."""
        for value, result in zip(op.operands, op.results, strict=True):
            self.texts[result] = self.texts[value]
            self.waiting[result] = self.waiting[value]
            self.left[value] += self.left[result] - 1

    def invoke(self, op: Op, operands: tuple[Text, ...]) -> Text:
        """The call of a block's module: its arguments, then what it sees from outside."""
        attributes = op.attributes
        assert isinstance(attributes, Block | Experts)
        return call(self.module(attributes.path), (*map(str, operands), *self.captured(op)))

    def captured(self, op: Op) -> tuple[str, ...]:
        """What an operation's bodies see from outside, as arguments; a module of several weights is passed once."""
        found: dict[str, None] = {}
        for value in captures(op):
            owner = self.names.owners.get(value)
            if owner is None:
                found[str(self.take(value))] = None
            elif not is_below(owner.path, body_path(op)):
                found[self.module(self.names.module_path(value))] = None
        return tuple(found)

    def repeat(self, op: Op) -> None:
        """A loop over the modules of a repeat; what is carried keeps its variable, losses add up."""
        attributes = op.attributes
        assert isinstance(attributes, Repeat)
        carried = self.enter_loop(op)
        losses = self.zero_losses(op)
        name = attributes.path.rsplit(".", 1)[-1]
        item = singular(name)
        captured = self.captured(op)
        self.write(f"for {item} in self.{name}:", op.span)
        made = tuple(f"{loss}_of_{item}" for loss in attributes.losses)
        value = call(item, (*carried, *captured))
        outer, self.indent = self.indent, f"{self.indent}    "
        self.assign(", ".join((*carried, *made)), value, op.span)
        for loss, one in zip(losses, made, strict=True):
            self.write(f"{loss} = {loss} + {one}", op.span)
        self.indent = outer

    def enter_loop(self, op: Op) -> tuple[str, ...]:
        """Gives the carried values their variables."""
        attributes = op.attributes
        assert isinstance(attributes, Repeat)
        carried = []
        for operand, result in zip(op.operands, op.results, strict=False):
            text = str(self.take(operand))
            name = suffixed(result.name or "x", result.type)
            self.left[result] += 0
            chosen = self.bind(result, name)
            if text != chosen:
                self.write(f"{chosen} = {text}", op.span)
            carried.append(chosen)
        return tuple(carried)

    def zero_losses(self, op: Op) -> tuple[str, ...]:
        """Gives losses their variables."""
        attributes = op.attributes
        assert isinstance(attributes, Repeat)
        losses = zip(op.results[attributes.carried :], attributes.losses, strict=True)
        chosen = tuple(self.bind(value, name) for value, name in losses)
        for loss in chosen:
            self.write(f"{loss} = 0.0", op.span)
        return chosen


def _is_statement(attributes: Operation) -> bool:
    """Whether an operation is too much to be written within a kernel's call."""
    return isinstance(attributes, Block | Experts | Attend) or attributes.stateful


def default_name(op: Op) -> str:
    """What a result is called that the spec does not name: after its module or operation."""
    path = getattr(op.attributes, "path", None)
    if path:
        return last_part(str(path))
    return op.kind


def use_counts(region: Region) -> Counter[Value]:
    """How often each value is used by this region's operations and results; once for each body that sees it."""
    counts: Counter[Value] = Counter(region.results)
    for op in region.ops:
        counts.update(op.operands)
        counts.update(captures(op))
    return counts
