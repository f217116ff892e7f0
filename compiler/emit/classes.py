"""nn.Modules from regions: one class for each block as it is used, shared by uses that come out the same."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from fractions import Fraction

from dskc.dsl.dims import Dim
from dskc.dsl.source import Span

from ..ir import DType, Op, Region, Value, captures, free_values
from ..ops.experts import Experts
from ..ops.gated import gated
from ..ops.structure import Block, Extern, Repeat
from ..ops.weights import Weights
from ..reserved import CLASSES, PYTHON
from .experts import experts_key
from .expression import TORCH_DTYPES
from .function import Function, Line, suffixed
from .names import Names, below, body_path, find_block, is_below, is_child, last_part
from .text import WIDTH, Text, camel, fit, number, singular


@dataclass(slots=True)
class Classes:
    """The classes of a file in the order of their need, innermost first."""

    names: Names
    made: dict[str, tuple[str, list[Line]]] = field(default_factory=dict)  # body text -> class name and lines
    by_region: dict[int, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: set(CLASSES | PYTHON))
    computing: set[str] = field(default_factory=set)  # those that must be told the dtype of activations
    site: Span | None = None  # the user's line whose call is being written

    def __post_init__(self) -> None:
        self.taken |= {dim.name for dim in self.names.graph.dims}

    def of_region(self, region: Region, wanted: str, doc: str | None, op: Op) -> str:
        """The class for a region, written when there is none like it yet."""
        span = op.span
        key = id(region)
        if key in self.by_region:
            return self.by_region[key]
        outer, site = self.site, user_site(span, self.site)
        self.site = site
        writer = ClassBody(self, region, op)
        body = writer.lines()
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
        self.made[text] = (name, [line.within(site) for line in (*head, *body)])
        self.by_region[key] = name
        if writer.computing:
            self.computing.add(name)
        return name

    def instance(self, name: str) -> str:
        """The expression that makes one."""
        return f"{name}(compute)" if name in self.computing else f"{name}()"

    def lines(self) -> list[Line]:
        """All classes, two blank lines between."""
        out: list[Line] = []
        for _, lines in self.made.values():
            out += [*lines, Line(""), Line("")]
        return out


def user_site(span: Span, around: Span | None) -> Span | None:
    """The place of a call in the user's own files: its own, or that of the library's call around it."""
    return around if span.source.library else span


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
    op: Op
    computing: bool = False  # something in it, or within what it owns, casts to the dtype of activations

    @property
    def span(self) -> Span:
        return self.op.span

    def lines(self) -> list[Line]:
        modules = module_lines(self.classes, self.region, body_path(self.op))
        self.classes.names.casts = False
        forward = self.forward_lines()
        return [*self.init_lines(modules), Line(""), *forward]

    def forward_lines(self) -> list[Line]:
        function = Function(self.classes.names, body_path(self.op), self.span)
        parameters = ["self"]
        for value in self.region.arguments:
            parameters.append(f"{function.bind(value, parameter=True)}: Tensor")
        parameters += capture_parameters(function, self.op, captures(self.op), self.classes)
        if isinstance(self.op.attributes, Experts):
            return self.experts_forward(function, parameters)
        function.region(self.region)
        body = function.lines
        results = [function.take(value) for value in self.region.results]
        head = fit("    ", "def forward", tuple(parameters), f" -> {return_type(results)}:")
        signature = [Line(text, self.span) for text in head]
        return [*signature, *body, *return_lines(results, self._last_span())]

    def _last_span(self) -> Span:
        return self.region.ops[-1].span if self.region.ops else self.span

    # --- __init__

    def init_lines(self, modules: list[Line]) -> list[Line]:
        """With `compute` where this class casts to it, or one that it owns does."""
        casts = self.classes.names.casts
        self.computing = casts or any("(compute)" in line.text for line in modules)
        parameters = "self, compute: torch.dtype" if self.computing else "self"
        lines = [Line(f"    def __init__({parameters}) -> None:"), Line("        super().__init__()")]
        if casts:
            lines.append(Line("        self.compute = compute"))
        return [*lines, *modules]

    # --- experts

    def experts_forward(self, function: Function, parameters: list[str]) -> list[Line]:
        """One kernel for gated experts; else rows sorted by expert through the stacked block, and back."""
        attributes = self.op.attributes
        assert isinstance(attributes, Experts)
        names = self.classes.names
        rows, offsets = self.region.arguments
        x, chosen, weight = self.op.operands
        spelled = [suffixed(n, v.type) for n, v in (("x", x), ("chosen", chosen), ("weight", weight))]
        rest = parameters[3:]
        head = fit("    ", "def forward", ("self", *(f"{s}: Tensor" for s in spelled), *rest), " -> Tensor:")
        signature = [Line(text, self.span) for text in head]
        found = gated(self.op)
        if found is not None and (kernel := names.kernels.get(experts_key(found))) is not None:
            names.use(".", "kernels")
            maps = [function.modules[inner.operands[1]][0] for inner in found.maps]
            given = [*spelled, *(f"{module}.weight" for module in maps)]
            given += [f"biases=({', '.join(f'{module}.bias' for module in maps)})"] if found.bias else []
            body = fit("        ", f"return kernels.{kernel}", tuple(given), "")
            return [*signature, *(Line(text, self.span) for text in body)]
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
        return [*signature, *function.lines]


def return_type(results: list[Text]) -> str:
    if len(results) < 2:
        return "Tensor" if results else "None"
    return f"tuple[{', '.join(['Tensor'] * len(results))}]"


def return_lines(results: list[Text], span: Span) -> list[Line]:
    if len(results) == 1 and results[0].parts:
        callee, arguments = results[0].parts
        return [Line(text, span) for text in fit("        ", f"return {callee}", arguments, "")]
    return [Line(f"        return {', '.join(str(r) for r in results)}".rstrip(), span)]


def capture_parameters(
    function: Function, op: Op, outside: tuple[Value, ...], classes: Classes, imported: bool = False
) -> list[str]:
    """Parameters for what a body of `op` sees from outside, which the function learns to call by these names.

    All variants of a repeat take what any of them sees: the loop calls them alike.
    """
    parameters = []
    for value in outside:
        owner = function.names.owners.get(value)
        if owner is None:
            kind = "Tensor | None" if value.name == "documents" else "Tensor"
            parameters.append(f"{function.bind(value, parameter=True)}: {kind}")
        elif not is_below(owner.path, function.path):
            name = function.receive(value)
            if name is not None:
                parameters.append(f"{name}: {_module_class(function.names, value, op, classes, imported)}")
    return parameters


def _module_class(names: Names, weight: Value, op: Op, classes: Classes, imported: bool) -> str:
    """The class of the module that holds a weight, as the bodies that it is passed to know it."""
    path = names.module_path(weight)
    if path == names.owners[weight].path:
        return names.use("dskc.runtime.modules", names.owners[weight].module)
    made = _class_of(classes, find_block(op.regions, path))
    return names.use(".model", made) if imported else made


def module_lines(classes: Classes, region: Region, path: str) -> list[Line]:
    """One line for each module that the class of a body owns, in the order of the spec.

    What a block value holds is declared around the block: its class finds its weights by their path.
    """
    lines: list[Line] = []
    seen: set[str] = set()
    outside = set(free_values(region))
    lent = (op for op in classes.names.lent if is_child(body_path(op), path) and outside & set(op.results))
    for op in (*lent, *region.ops):
        attributes = op.attributes
        if not isinstance(attributes, Weights | Block | Experts | Repeat | Extern):
            continue
        if not is_below(attributes.path, path):  # another body's: here it is a parameter
            _register(classes, op)
            continue
        name, _, deeper = below(attributes.path, path).partition(".")
        if deeper:
            op = find_block((region,), f"{path}.{name}" if path else name)
        if name in seen:
            _register(classes, op)
            continue
        seen.add(name)
        lines += (Line(text, op.span) for text in _module(classes, op, name))
    return lines


def _register(classes: Classes, op: Op) -> None:
    """Lets the classes know a further use of a block."""
    if isinstance(op.attributes, Block | Experts):
        _class_of(classes, op)


def _class_of(classes: Classes, op: Op) -> str:
    attributes = op.attributes
    assert isinstance(attributes, Block | Experts)
    return classes.of_region(op.regions[0], camel(last_part(attributes.path)), attributes.doc, op)


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
    return [f"{indent}self.{name} = {classes.instance(_class_of(classes, op))}"]


def _module_list(classes: Classes, op: Op, name: str) -> list[str]:
    attributes = op.attributes
    assert isinstance(attributes, Repeat)
    item = camel(singular(name))
    wanted = [item] if len(op.regions) == 1 else _variant_names(op, item)
    made = [classes.of_region(r, w, None, op) for r, w in zip(op.regions, wanted, strict=True)]
    instances = [classes.instance(m) for m in made]
    return _list_lines("        ", name, made, instances, attributes.variants)


def _list_lines(indent: str, name: str, made: list[str], instances: list[str], variants: tuple[int, ...]) -> list[str]:
    """The statement that fills a repeat's list: a comprehension, a few runs, or what comes again and again."""
    count = len(variants)
    head = f"self.{name} = nn.ModuleList"
    if len(instances) == 1:
        return [f"{indent}{head}([{instances[0]} for _ in range({count})])"]
    runs = _runs(variants)
    told = {"compute" if instance.endswith("(compute)") else "" for instance in instances}
    first, period = _period(variants)
    if len(runs) <= 3 or period == 1 or len(told) > 1:
        return fit(indent, head, (f"[{', '.join(_run(instances[v], n) for v, n in runs)}]",), "")
    kinds = fit(indent, "kinds = ", tuple(made[v] for v in variants[first : first + period]), "")
    index = "i" if period == count - first else f"i % {period}"
    each = f"kinds[{index}]({told.pop()}) for i in range({count - first})"
    before = tuple(_run(instances[v], n) for v, n in _runs(variants[:first]))
    items = f"[{', '.join((*before, f'*({each})'))}]" if before else f"[{each}]"
    return [*kinds, *fit(indent, head, (items,), "")]


def _run(instance: str, count: int) -> str:
    return instance if count == 1 else f"*({instance} for _ in range({count}))"


def _period(variants: tuple[int, ...], most: int = 64) -> tuple[int, int]:
    """From where on the variants repeat themselves, and after how many: the choice that spells the fewest."""
    count = len(variants)
    best = (count, 0, count)
    for period in range(1, min(count // 2, most) + 1):
        first = next((i + 1 for i in reversed(range(count - period)) if variants[i] != variants[i + period]), 0)
        if first + 2 * period <= count:
            best = min(best, (len(_runs(variants[:first])) + period, first, period))
    return best[1:]


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
    if attributes.module == "Conv":
        groups = [groups[0], groups[2]]  # channels and width
    return (*groups, *(f"{key}={_literal(value, names)}" for key, value in attributes.options))


def _literal(value: object, names: Names) -> str:
    if isinstance(value, Dim):
        return names.size(value)
    if isinstance(value, str) and value in TORCH_DTYPES:
        names.use_torch()
        return TORCH_DTYPES[DType(value)]
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    assert isinstance(value, Fraction | float | int), value
    return number(float(value))
