"""nn.Modules from regions: one class for each block as it is used, shared by uses that come out the same."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field

from dskc.dsl.dims import Dim
from dskc.dsl.source import Span

from ..ir import Op, Region, Value, free_values
from ..ops.experts import Experts
from ..ops.structure import Block, Extern, Repeat
from ..ops.weights import Weights
from .expression import TORCH_DTYPES, Modules
from .function import Function, Line, suffixed
from .names import Names
from .text import WIDTH, Text, camel, fit, number, singular


@dataclass(slots=True)
class Classes:
    """The classes of a file in the order of their need, innermost first."""

    names: Names
    made: dict[str, tuple[str, list[Line]]] = field(default_factory=dict)  # body text -> class name and lines
    by_region: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: {"Model", "Output"})
    computing: set[str] = field(default_factory=set)  # those that must be told the dtype of activations
    site: Span | None = None  # the user's line whose call is being written

    def of_region(self, region: Region, wanted: str, doc: str | None, span: Span, op: Op | None = None) -> str:
        """The class for a region, written when there is none like it yet."""
        key = id(region)
        if key in self.by_region:
            return self.by_region[key]
        outer, self.site = self.site, user_site(span, self.site)
        body = [line.within(self.site) for line in ClassBody(self, region, span, op).lines()]
        self.site = outer
        text = "\n".join(line.text for line in body)
        if text in self.made:
            self.by_region[key] = self.made[text][0]
            return self.by_region[key]
        name, n = wanted, 2
        while name in self.taken:
            name, n = f"{wanted}{n}", n + 1
        self.taken.add(name)
        head = [Line(f"class {name}(nn.Module):  # {_place(span)}", span)]
        if doc:
            head += [Line(line, span) for line in docstring(doc)]
            head.append(Line(""))
        self.made[text] = (name, [*head, *body])
        self.by_region[key] = name
        return name

    def lines(self) -> list[Line]:
        """All classes, two blank lines between."""
        out: list[Line] = []
        for _, lines in self.made.values():
            out += [*lines, Line(""), Line("")]
        return out


def user_site(span: Span, around: Span | None) -> Span | None:
    """The place of a call in the user's own files: its own, or that of the library's call around it."""
    return around if is_library(span) else span


def is_library(span: Span) -> bool:
    return span.source.path.startswith("std/")


def docstring(doc: str, indent: str = "    ") -> list[str]:
    """A doc comment as a docstring, its paragraphs filled anew."""
    lines: list[str] = []
    for paragraph in doc.split("\n\n"):
        filled = textwrap.wrap(" ".join(paragraph.split()), WIDTH - len(indent) - 3)
        lines += ([""] if lines else []) + filled
    if len(lines) == 1 and len(lines[0]) + len(indent) + 6 <= WIDTH:
        return [f'{indent}"""{lines[0]}"""']
    return [f'{indent}"""{lines[0]}', *(f"{indent}{line}".rstrip() for line in lines[1:]), f'{indent}"""']


def _place(span: Span) -> str:
    return f"{span.source.path.rsplit('/', 1)[-1]}:{span.line}"


@dataclass(slots=True)
class ClassBody:
    """`__init__` and `forward` of one region."""

    classes: Classes
    region: Region
    span: Span
    op: Op | None = None

    def lines(self) -> list[Line]:
        names = self.classes.names
        init = self.init_lines()
        modules = own_modules(self.region)
        outside = free_values(self.region)
        function = Function(names, modules, self.span)
        parameters = ["self"]
        for value in self.region.arguments:
            parameters.append(f"{function.bind(value)}: Tensor")
        parameters += capture_parameters(function, outside)
        if isinstance(self.op.attributes if self.op else None, Experts):
            return [*init, Line(""), *self.experts_forward(function, parameters)]
        function.region(self.region)
        body = function.lines
        results = [function.take(value) for value in self.region.results]
        returned = "Tensor" if len(results) == 1 else f"tuple[{', '.join(['Tensor'] * len(results))}]"
        head = fit("    ", "def forward", tuple(parameters), f" -> {returned}:")
        signature = [Line(text, self.span) for text in head]
        return [*init, Line(""), *signature, *body, *return_lines(results, self._last_span())]

    def _last_span(self) -> Span:
        return self.region.ops[-1].span if self.region.ops else self.span

    # --- __init__

    def init_lines(self) -> list[Line]:
        lines = [Line("    def __init__(self) -> None:"), Line("        super().__init__()")]
        return [*lines, *module_lines(self.classes, self.region)]

    # --- experts

    def experts_forward(self, function: Function, parameters: list[str]) -> list[Line]:
        """Rows sorted by expert through the stacked block, and back."""
        assert self.op is not None
        attributes = self.op.attributes
        assert isinstance(attributes, Experts)
        names = self.classes.names
        rows, offsets = self.region.arguments
        x, chosen, weight = self.op.operands
        spelled = [suffixed(n, v.type) for n, v in (("x", x), ("chosen", chosen), ("weight", weight))]
        for name in ("dispatch", "combine"):
            names.use("dskc.runtime.reference", name)
        function.holders.clear()
        for value, text in ((rows, "rows.x_RD"), (offsets, "rows.offsets_X")):
            function.texts[value] = Text(text)
            function.waiting[value] = (value,)
        count = names.size(attributes.count.size)
        function.write(f"rows = dispatch({spelled[0]}, {spelled[1]}, {count})")
        function.region(self.region)
        (result,) = self.region.results
        y = function.take(result)
        function.write(f"return combine({y}, rows, {spelled[2]})")
        rest = parameters[3:]
        head = fit("    ", "def forward", ("self", *(f"{s}: Tensor" for s in spelled), *rest), " -> Tensor:")
        return [*(Line(text, self.span) for text in head), *function.lines]


def return_lines(results: list[Text], span: Span) -> list[Line]:
    if len(results) == 1 and results[0].parts:
        callee, arguments = results[0].parts
        return [Line(text, span) for text in fit("        ", f"return {callee}", arguments, "")]
    return [Line(f"        return {', '.join(str(r) for r in results)}", span)]


def capture_parameters(function: Function, outside: tuple[Value, ...]) -> list[str]:
    """Parameters for what a body sees from outside, which the function learns to call by these names."""
    parameters = []
    for value in outside:
        owner = function.names.owners.get(value)
        if owner is not None:
            if owner.name not in (text for text, _ in function.modules.values()):
                parameters.append(f"{owner.name}: {function.names.use('dskc.runtime.modules', owner.module)}")
            function.modules[value] = (owner.name, owner.module)
            continue
        kind = "Tensor | None" if value.name == "documents" else "Tensor"
        parameters.append(f"{function.bind(value)}: {kind}")
    return parameters


def own_modules(region: Region) -> Modules:
    """The weights declared in a region, as attributes of its class."""
    modules: Modules = {}
    for op in region.ops:
        if isinstance(op.attributes, Weights):
            for value in op.results:
                modules[value] = (f"self.{op.attributes.name}", op.attributes.module)
    return modules


def module_lines(classes: Classes, region: Region) -> list[Line]:
    """One line for each module that a class owns, in the order of the spec."""
    lines: list[Line] = []
    seen: set[str] = set()
    for op in region.ops:
        attributes = op.attributes
        path = getattr(attributes, "path", None)
        if path is None or not isinstance(attributes, Weights | Block | Experts | Repeat | Extern):
            continue
        name = str(path).rsplit(".", 1)[-1]
        if name in seen:
            continue
        seen.add(name)
        for text in _module(classes, op, name):
            lines.append(Line(text, op.span))
    return lines


def _module(classes: Classes, op: Op, name: str) -> list[str]:
    attributes = op.attributes
    indent = "        "
    if isinstance(attributes, Weights):
        head = f"self.{name} = {attributes.module}"
        classes.names.use("dskc.runtime.modules", attributes.module)
        return fit(indent, head, constructor(attributes, classes.names), "")
    if isinstance(attributes, Repeat):
        return _module_list(classes, op, name)
    if isinstance(attributes, Extern):
        module, _, target = attributes.target.partition(":")
        classes.names.use(module, target)
        options = tuple(f"{key}={_literal(value, classes.names)}" for key, value in attributes.options)
        return fit(indent, f"self.{name} = {target}", options, "")
    assert isinstance(attributes, Block | Experts)
    made = classes.of_region(op.regions[0], camel(name), attributes.doc, op.span, op)
    return [f"{indent}self.{name} = {made}()"]


def _module_list(classes: Classes, op: Op, name: str) -> list[str]:
    attributes = op.attributes
    assert isinstance(attributes, Repeat)
    item = camel(singular(name))
    wanted = [item] if len(op.regions) == 1 else _variant_names(op, item)
    made = [classes.of_region(r, w, None, op.span) for r, w in zip(op.regions, wanted, strict=True)]
    variants = attributes.variants
    if len(made) == 1:
        return [f"        self.{name} = nn.ModuleList([{made[0]}() for _ in range({len(variants)})])"]
    runs = _runs(variants)
    if len(runs) <= 3:
        parts = tuple(f"*({made[v]}() for _ in range({n}))" for v, n in runs)
        return fit("        ", f"self.{name} = nn.ModuleList", (f"[{', '.join(parts)}]",), "")
    period = next(p for p in range(1, len(variants) + 1) if all(v == variants[i % p] for i, v in enumerate(variants)))
    kinds = ", ".join(made[v] for v in variants[:period])
    return [
        f"        kinds = ({kinds})",
        f"        self.{name} = nn.ModuleList([kinds[i % {period}]() for i in range({len(variants)})])",
    ]


def _runs(variants: tuple[int, ...]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for v in variants:
        if runs and runs[-1][0] == v:
            runs[-1] = (v, runs[-1][1] + 1)
        else:
            runs.append((v, 1))
    return runs


def _variant_names(op: Op, item: str) -> list[str]:
    """Names for the variants of a repeat: by the block that only one of them has, else by number."""
    blocks = [
        {o.attributes.block for o in r.ops if isinstance(o.attributes, Block) and o.attributes.block}
        for r in op.regions
    ]
    names = []
    for i, mine in enumerate(blocks):
        others = set().union(*(b for j, b in enumerate(blocks) if j != i))
        own = sorted(b for b in mine - others if b)
        names.append(f"{camel(own[0])}{item}" if own else f"{item}{i + 1}")
    return names


def constructor(attributes: Weights, names: Names) -> tuple[str, ...]:
    """The arguments that a module of `runtime/modules.py` is made with."""
    weight = attributes.weights[0]
    groups = [names.axes_size(group) for group in weight.groups]
    if attributes.module in ("Linear", "GroupedLinear"):
        *stack, outputs, inputs = groups
        groups = [*stack, inputs, outputs]
    return (*groups, *(f"{key}={_literal(value, names)}" for key, value in attributes.options))


def _literal(value: object, names: Names) -> str:
    if isinstance(value, Dim):
        return names.size(value)
    if value in TORCH_DTYPES:
        names.use_torch()
        return TORCH_DTYPES[value]  # type: ignore[index]
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    return number(float(value))  # type: ignore[arg-type]
