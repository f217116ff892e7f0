"""kernels.py: a model's row programs, each with its meaning in PyTorch, its Triton kernels and its registration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dskc.dsl.source import Span

from ..ir import DType, Graph, Op, Region
from ..ops.attend import Attend
from ..ops.experts import Experts
from ..ops.fused import Fused
from ..ops.gated import Gated, gated
from ..passes.fuse import loss_kernel
from ..recipe import Term
from ..rows.facts import columns_of, draws, is_flat, is_wide, scalars_of, widths_of
from ..rows.node import Columns
from ..rows.program import Gradient, Kernel, Layout, RowProgram, Store, Tensor
from ..values import Mask
from .attention import all_blocks, attention_fields, blocks_function, mask_functions, mask_name
from .classes import return_type, user_site
from .experts import activation_functions, experts_key
from .expression import TORCH_DTYPES, Call
from .function import Function, Line, suffixed
from .kernel_body import KernelBody
from .kernel_helpers import HELPERS
from .names import Names
from .text import Text, fit, number

GIVEN = {  # what kernels of the runtime are specialised with, by the class that takes it
    "AttentionKernel": "what queries of attention see",
    "ExpertsKernel": "what experts do between their products",
}
LAYOUTS = {Layout.ROWS: "Rows", Layout.ONE: "One", Layout.VECTOR: "Vector", Layout.PART: "Part"}


@dataclass(slots=True)
class KernelsFile:
    """Collects what the operations of a graph need, each program once however often it is used."""

    graph: Graph
    names: Names
    made: dict[str, str] = field(default_factory=dict)  # the text of a program without its name -> its name
    lines: list[Line] = field(default_factory=list)
    helpers: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)  # of runtime/kernels
    masks: dict[str, list[str]] = field(default_factory=dict)  # their functions that are there, by the heads of those
    of_masks: set[str] = field(default_factory=set)  # functions of runtime/kernels/attention/masks.py that they call
    losses: dict[tuple[object, ...], str] = field(default_factory=dict)  # what kernels of the objective are called

    def region(self, region: Region, site: Span | None = None) -> None:
        """The programs of all fused operations in a region; `site`: the user's call that led to it."""
        for op in region.ops:
            if isinstance(op.attributes, Fused):
                self.add(op, site)
                continue
            if isinstance(op.attributes, Attend) and op.attributes.has_kernel(op, self.graph.sizes):
                self.add_attention(op, op.attributes, site)
            if isinstance(op.attributes, Experts) and (found := gated(op)) is not None:
                self.add_experts(found, user_site(op.span, site))
                continue
            for inner in op.regions:
                self.region(inner, user_site(op.span, site))

    def add_attention(self, op: Op, attributes: Attend, site: Span | None) -> None:
        """Writes the mask of an attention and its registration, unless one like it is there."""
        key = attributes.kernel_key(op)
        if key in self.names.kernels:
            return
        mask, functions = self._named_mask(attributes.mask)
        place = _place_of(op.span, site)
        name, n = f"{mask}_attention", 2
        while name in self.names.kernels.values():
            name, n = f"{mask}_attention{n}", n + 1
        self.names.kernels[key] = name
        for blocks in all_blocks(attributes.mask):
            self._mask_function(blocks_function(blocks), op, site)
            self.of_masks |= {"draw", "hashed"} if dict(blocks.arguments)["random"] else set()
        for function in functions:
            self._mask_function(function, op, site)
        self.used.add("AttentionKernel")
        lines = [f"{name} = AttentionKernel("]
        told = [("name", f'"{self.graph.name}::{name}"'), ("spec", f'"{place}"')]
        for entry, value in (*told, *attention_fields(attributes, mask, len(functions) > 1)):
            lines += _field(entry, value)
        self.lines += [*(Line(text, op.span).within(site) for text in (*lines, ")")), Line(""), Line("")]

    def add_experts(self, found: Gated, site: Span | None) -> None:
        """Writes the activation of gated experts and their registration, unless one like it is there."""
        op = found.activation
        attributes = op.attributes
        assert isinstance(attributes, Fused)
        anonymous = "\n".join(line.text for line in self._experts(found, "_", ""))
        if anonymous not in self.made:
            name, n = f"{attributes.name}_experts", 2
            while name in self.made.values():
                name, n = f"{attributes.name}_experts{n}", n + 1
            self.made[anonymous] = name
            place = _place_of(op.span, site)
            self.lines += [*(line.within(site) for line in self._experts(found, name, place)), Line(""), Line("")]
        self.names.kernels[experts_key(found)] = self.made[anonymous]

    def _experts(self, found: Gated, name: str, place: str) -> Iterator[Line]:
        op = found.activation
        assert isinstance(op.attributes, Fused)
        yield from self._reference(op.attributes, op.regions[0], name, op, f"What `{name}` does between its products.")
        functions, helpers = activation_functions(found, name)
        self.helpers |= helpers
        self.used.add("ExpertsKernel")
        for function in functions:
            yield from (*(Line(text, op.span) for text in function), Line(""), Line(""))
        yield Line(f"{name} = ExpertsKernel(", op.span)
        for entry, value in (
            ("name", f'"{self.graph.name}::{name}"'),
            ("spec", f'"{place}"'),
            ("reference", f"{name}_reference"),
            ("value", f"{name}_value"),
            ("gradient", f"{name}_gradient"),
        ):
            yield from (Line(text, op.span) for text in _field(entry, value))
        yield Line(")", op.span)

    def _named_mask(self, mask: Mask | None) -> tuple[str, list[list[str]]]:
        """A mask's name and functions: masks that differ in what a name does not tell are numbered."""
        name, n = mask_name(mask), 2
        while any(self.masks.get(lines[1], lines) != lines for lines in mask_functions(mask, name)):
            name, n = f"{mask_name(mask)}_{n}", n + 1
        return name, mask_functions(mask, name)

    def _mask_function(self, function: list[str], op: Op, site: Span | None) -> None:
        if function[1] not in self.masks:
            self.masks[function[1]] = function
            self.lines += [*(Line(text, op.span).within(site) for text in function), Line(""), Line("")]

    def add(self, op: Op, site: Span | None = None) -> str:
        """Writes the program of a fused operation, unless one like it is there; gives its name."""
        attributes = op.attributes
        assert isinstance(attributes, Fused)
        place = _place_of(op.span, site)
        anonymous = "\n".join(line.text for line in self._program(attributes, op, "_", ""))
        if anonymous not in self.made:
            name, n = attributes.name, 2
            while name in self.made.values():
                name, n = f"{attributes.name}{n}", n + 1
            self.made[anonymous] = name
            written = (line.within(site) for line in self._program(attributes, op, name, place))
            self.lines += [*written, Line(""), Line("")]
        self.names.kernels[id(attributes.program)] = self.made[anonymous]
        return self.made[anonymous]

    def _program(self, attributes: Fused, op: Op, name: str, place: str) -> Iterator[Line]:
        program = attributes.program
        yield from self._reference(attributes, op.regions[0], name, op)
        yield from self._kernel(program.forward, f"{name}_forward", name, "Forward", op)
        if program.backward is not None:
            yield from self._kernel(program.backward, f"{name}_backward", name, "Backward", op)
        yield from (Line(text, op.span) for text in self._registration(program, name, place))

    def _reference(self, attributes: Fused, region: Region, name: str, op: Op, doc: str = "") -> Iterator[Line]:
        function = _Reference(self.names, "", op.span, indent="    ")
        parameters = []
        for value, wanted in zip(region.arguments, attributes.names, strict=True):
            text = function.bind(value, suffixed(wanted, value.type), parameter=True)
            parameters.append(f"{text}: Tensor")
            if value.type.dtype is DType.COMPUTE:
                function.activations = function.activations or f"{text}.dtype"
        if attributes.program.probabilities:
            parameters.append("training: bool = False")
        function.region(region)
        results = [function.take(value) for value in region.results]
        head = fit("", f"def {name}_reference", tuple(parameters), f" -> {return_type(results)}:")
        yield from (Line(text, op.span) for text in head)
        yield Line(f'    """{doc or f"What `{name}` means."}"""')
        yield from function.lines
        yield Line(f"    return {', '.join(map(str, results))}", op.span)
        yield Line("")
        yield Line("")

    def _kernel(self, kernel: Kernel, function: str, name: str, what: str, op: Op) -> Iterator[Line]:
        renamed = Kernel(function, kernel.loads, kernel.stores, kernel.nodes, kernel.rounded)
        body = KernelBody(renamed)
        rows = "" if is_flat(kernel) else ", BLOCK_N rows at a time"
        for text in body.write(f"{what} of `{name}_reference`{rows}."):
            yield Line(text, op.span)
        self.helpers |= body.helpers
        yield Line("")
        yield Line("")

    # --- the registration

    def _registration(self, program: RowProgram, name: str, place: str) -> list[str]:
        self.used |= {"RowKernel", "Launch"}
        fields = [
            ("name", f'"{self.graph.name}::{name}"'),
            ("spec", f'"{place}"'),
            ("reference", f"{name}_reference"),
            ("arguments", _tuple(self._layout(t) for t in program.arguments)),
            ("results", _tuple(self._layout(t) for t in program.results)),
            ("dtypes", _tuple(_dtype(t, program) for t in program.results)),
            ("sizes", self._sizes(program)),
            ("forward", self._launch(program.forward, f"{name}_forward")),
        ]
        if program.backward is not None:
            fields += [
                ("backward", self._launch(program.backward, f"{name}_backward")),
                ("kept", _tuple(f'"{n}"' for n in (*program.kept,))),
            ]
            if program.saved:
                fields.append(("saved", _tuple(f'"{t.name}"' for t in program.saved)))
            fields.append(("gradients", _dict((g.argument, f'"{g.store}"') for g in program.gradients)))
            like = dict(_like(program, program.backward))
            if like:
                fields.append(("like", _dict((n, f'"{source}"') for n, source in like.items())))
        if program.probabilities:
            fields.append(("probabilities", _tuple(number(p) for p in program.probabilities)))
        lines = [f"{name} = RowKernel("]
        for key, value in fields:
            lines += _field(key, value)
        return [*lines, ")"]

    def _layout(self, tensor: Tensor) -> str:
        kind = LAYOUTS[tensor.layout]
        self.used.add(kind)
        if tensor.width is None:
            return f'{kind}("{tensor.name}")'
        first = f", {tensor.first}" if tensor.layout is Layout.PART else ""
        return f'{kind}("{tensor.name}", "{tensor.width.name}"{first})'

    def _sizes(self, program: RowProgram) -> str:
        kernels = [k for k in (program.forward, program.backward) if k is not None]
        found = {c.name: c.size for k in kernels for c in (*_all_widths(k), *columns_of(k))}
        return _dict((name, "None" if size is None else number(size)) for name, size in found.items())

    def _launch(self, kernel: Kernel, function: str) -> str:
        columns = [] if is_flat(kernel) else [c.name for c in columns_of(kernel)]
        sizes = [] if is_flat(kernel) else [c.name for c in (*widths_of(kernel), *columns_of(kernel))]
        parts = [
            function,
            f"reads={_strings(t.name for t in kernel.loads)}",
            f"writes={_strings(s.tensor.name for s in kernel.stores)}",
        ]
        parts += [f"columns={_strings(columns)}"] if columns else []
        parts += [f"sizes={_strings(sizes)}"] if sizes else []
        parts += [f"scalars={_strings(scalars_of(kernel))}"] if scalars_of(kernel) else []
        parts += ["seeded=True"] if draws(kernel) else []
        parts += ["flat=True"] if is_flat(kernel) else []
        parts += ["wide=True"] if is_wide(kernel) and not is_flat(kernel) else []
        sums = [s.tensor.name for s in kernel.stores if s.summed]
        parts += [f"sums={_strings(sums)}"] if sums else []
        return f"Launch({', '.join(parts)})"

    # --- the file

    def file(self) -> list[Line]:
        """The lines below the header."""
        imports = sorted(self.used, key=lambda n: (not n[0].isupper(), n))
        module = "dskc.runtime.kernels.attention.masks"
        of_masks = [f"from {module} import {', '.join(sorted(self.of_masks))}"] if self.of_masks else []
        given = [what for name, what in GIVEN.items() if name in self.used]
        told = [f"Given to kernels of the runtime: {' and '.join(given)}.", ""] if given else []
        lines = [
            f'"""Kernels of {self.graph.name}: what its model does row by row, as Triton, forward and backward.',
            "",
            *told,
            "Each is called by the name that its registration gives it: on a GPU, and where Triton interprets, it runs",
            "its kernels; elsewhere its reference. In kernels N counts rows, and other axes have their names in the",
            "model; `h` is half of an axis that turns, `r` the rest of it.",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            *(["import torch"] if self._uses("torch.") else []),
            *(["from torch import Tensor"] if self._uses("Tensor") else []),
            "",
            "from dskc.runtime import reference",
            f"from dskc.runtime.kernels import {', '.join(imports)}",
            *of_masks,
            f"from dskc.runtime.kernels.language import {'tl, ' if self._uses('tl.') else ''}triton",
            "",
            "",
        ]
        for name, text in HELPERS.items():
            lines += [*text.strip().split("\n"), "", ""] if name in self.helpers else []
        return [*map(Line, lines), *self.lines]

    def _uses(self, text: str) -> bool:
        return any(text in line.text for line in self.lines)


@dataclass(slots=True)
class _Reference(Function):
    """A body of plain functions. `activations`: the dtype of activations, by an argument that has it."""

    activations: str = ""

    def call(self, op: Op, operands: tuple[Text, ...]) -> Call:
        return Call(op, operands, self.names, {}, self.serving, "training", self.activations, qualified=True)


def emit_kernels(graph: Graph, terms: Iterable[Term] = ()) -> KernelsFile:
    """The kernels of a graph, and of the terms of its objectives."""
    file = KernelsFile(graph, Names(graph))
    file.region(graph.body)
    for term in terms:
        if term.loss == "next_token":
            file.losses[term.kernel] = file.add(loss_kernel(graph, term))
    return file


def _place_of(span: Span, site: Span | None) -> str:
    place = _place(span)
    return f"{_place(site)}, in {place}" if site is not None and span.source.library else place


def _place(span: Span) -> str:
    return f"{span.source.path.rsplit('/', 1)[-1]}:{span.line}"


def _all_widths(kernel: Kernel) -> list[Columns]:
    tensors = (*kernel.loads, *(store.tensor for store in kernel.stores))
    return [t.width for t in tensors if t.width is not None]


def _dtype(tensor: Tensor, program: RowProgram) -> str:
    like = next((a.name for a in program.arguments if a.dtype == tensor.dtype and a.floating), None)
    if like is not None and tensor.floating:
        return f'"{like}"'
    return TORCH_DTYPES[tensor.dtype]


def _like(program: RowProgram, backward: Kernel) -> Iterator[tuple[str, str]]:
    """For each gradient that is stored as it is, something that backward reads and that has its dtype."""
    for store in backward.stores:
        if store.summed or _of(program.gradients, store, program).layout is Layout.PART:
            continue
        source = next((t.name for t in backward.loads if t.dtype == store.tensor.dtype and t.floating), None)
        if source is not None:
            yield store.tensor.name, source


def _of(gradients: tuple[Gradient, ...], store: Store, program: RowProgram) -> Tensor:
    argument = next(g.argument for g in gradients if g.store == store.tensor.name)
    return next(t for t in program.arguments if t.name == argument)


def _strings(values: Iterable[str]) -> str:
    return _tuple(f'"{value}"' for value in values)


def _tuple(values: Iterable[str]) -> str:
    spelled = list(values)
    return f"({', '.join(spelled)},)" if len(spelled) == 1 else f"({', '.join(spelled)})"


def _dict(pairs: Iterable[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"


def _field(key: str, value: str) -> list[str]:
    line = f"    {key}={value},"
    if len(line) <= 120:
        return [line]
    if value.startswith("{"):
        return [f"    {key}={{", *(f"        {item}," for item in _split(value[1:-1])), "    },"]
    callee, _, rest = value.partition("(")
    return fit("    ", f"{key}={callee}", tuple(_split(rest[:-1])), ",")


def _split(text: str) -> Iterator[str]:
    """Arguments at the outermost commas."""
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            yield text[start:i].strip()
            start = i + 1
    if text[start:].strip():
        yield text[start:].strip()
