"""model.py: the modules of a model, read as a person would have written them in one file."""

from __future__ import annotations

from ..ir import DimInfo, DType, Graph, Region, TensorType, Value
from ..parameters import total_parameters
from ..passes.lift import METHOD, LastMap, without
from .classes import Classes, docstring, module_lines, return_lines
from .expression import TORCH_DTYPES
from .function import LONGEST, Function, Line, suffixed
from .names import Names
from .text import WIDTH, Text, fit, number


def emit_model(graph: Graph, classes: Classes, maps: tuple[LastMap, ...] = ()) -> list[Line]:
    """The lines of model.py below its header. `classes` is filled with those that it defines.

    maps: of a lifted graph; those that a loss computes with, so that the model has a method that stops before them.
    """
    names = classes.names
    top = _model(graph, classes, maps)
    names.use("dskc.runtime.modules", "SpecModule")
    body = classes.lines()
    output = _output(graph)
    if output:
        names.use("typing", "NamedTuple")
    names.use("torch", "Tensor")
    names.use("torch", "nn")
    lines = [Line(text) for text in module_docstring(graph)]
    lines += [Line(""), Line("from __future__ import annotations"), Line("")]
    lines += [Line(text) for text in _imports(names)]
    constants = names.constants()
    if constants:
        lines += [Line(""), *(Line(text) for text in constants)]
    return [*lines, Line(""), Line(""), *body, *output, *top]


def _imports(names: Names) -> list[str]:
    """Standard library, torch, then dskc, each group apart; `import torch` before `from torch`."""
    typing = {k: v for k, v in names.imports.items() if k == "typing"}
    local = {k: v for k, v in names.imports.items() if k.startswith(".")}
    ours = {k: v for k, v in names.imports.items() if k not in ("typing", "torch", *local)}
    groups = []
    if typing:
        groups.append(Names(names.graph, typing).import_lines())
    groups.append(["import torch", *Names(names.graph, {"torch": names.imports["torch"]}).import_lines()])
    outside = {k: v for k, v in ours.items() if not k.startswith("dskc")}
    if outside:
        groups[-1] += Names(names.graph, outside).import_lines()
    groups.append(Names(names.graph, {k: v for k, v in ours.items() if k.startswith("dskc")}).import_lines())
    if local:
        groups.append(Names(names.graph, local).import_lines())
    lines: list[str] = []
    for group in groups:
        lines += ([""] if lines else []) + group
    return lines


def module_docstring(graph: Graph) -> list[str]:
    """What the model is, how large, and what its axes are called."""
    doc = f"{graph.doc or graph.name + '.'}  {total_parameters(graph):,} parameters."
    lines = docstring(doc, "")
    first = lines[0].removesuffix('"""')
    return [first, *(line for line in lines[1:] if line != '"""'), "", *axes_legend(graph), '"""']


def axes_legend(graph: Graph) -> list[str]:
    """`Axes: B batch · S sequence · D hidden 4096`, broken where the line is full."""
    words = {"B": "batch", "S": "sequence"}
    parts = [f"{name} {words.get(name, 'data')}" for name in _data_dims(graph)]
    parts += [_legend(dim) for dim in graph.dims if dim.value is not None]
    lines, line = [], "Axes:"
    for i, part in enumerate(parts):
        piece = f" {part}" if i == 0 else f" · {part}"
        if len(line) + len(piece) > WIDTH:
            lines.append(line)
            line = f"      {part}"
        else:
            line += piece
    return [*lines, line]


def _legend(dim: DimInfo) -> str:
    meaning = f" {dim.doc}" if dim.doc else ""
    return f"{dim.name}{meaning} {number(dim.value or 0)}"


def _data_dims(graph: Graph) -> list[str]:
    found: dict[str, None] = {}
    for value in graph.body.arguments:
        for axis in value.type.axes:
            found.update((s, None) for s in sorted(axis.size.symbols()) if s not in graph.sizes)
    return list(found)


def output_fields(graph: Graph) -> tuple[str, ...]:
    """The names of what forward gives, when it is more than one thing."""
    names = (*graph.results, *graph.losses)
    return names if len(names) > 1 else ()


def _output(graph: Graph) -> list[Line]:
    fields = output_fields(graph)
    if not fields:
        return []
    lines = ["class Output(NamedTuple):", f'    """What `{graph.name}` gives."""', ""]
    for name, value in zip(fields, graph.body.results, strict=True):
        axes = ", ".join(str(axis.size) for axis in value.type.axes)
        note = f"[{axes}]" if name in graph.results else "a loss, summed over layers"
        lines.append(f"    {name}: Tensor  # {note}")
    return [Line(text, graph.span) for text in [*lines, "", ""]]


def signature(graph: Graph) -> str:
    """`deepseek_7b(tokens: ids[B, S]) -> logits: [B, S, V]`."""
    given = [n for n in graph.inputs if n != "documents"]
    values = dict(zip(graph.inputs, graph.body.arguments, strict=True))
    kinds = {n: "ids" if v.type.dtype is DType.INT64 else "" for n, v in values.items()}
    mark = {n: "?" if n in graph.optional else "" for n in given}
    shown = (f"{n}: {kinds[n]}{_shape(values[n].type.axes)}{mark[n]}" for n in given)
    results = (f"{n}: {_shape(v.type.axes)}" for n, v in zip(graph.results, graph.body.results, strict=False))
    return f"{graph.name}({', '.join(shown)}) -> {', '.join(results)}"


def _shape(axes: tuple) -> str:
    return f"[{', '.join(str(axis.size) for axis in axes)}]"


def _model(graph: Graph, classes: Classes, maps: tuple[LastMap, ...]) -> list[Line]:
    names, span = classes.names, graph.span
    lines = ["class Model(SpecModule):", *docstring(_model_doc(graph)), ""]
    lines += ["    def __init__(self, compute: torch.dtype = torch.float32) -> None:", "        super().__init__()"]
    lines.append("        self.compute = compute")
    made = [Line(text, span) for text in lines] + module_lines(classes, graph.body, "")
    forward = Function(names, "", span)
    head = _head(forward, graph, "forward")
    if not maps:
        fill_absent(forward, graph)
        forward.region(graph.body)
        results = [forward.take(value) for value in graph.body.results]
        return [*made, Line(""), *head, *forward.lines, *_returned(graph, graph.body, results)]
    _before_maps(forward, graph, maps)
    results = [forward.take(value) for value in graph.body.results]
    hidden = Function(names, "", span)
    before = [
        *_head(hidden, graph, METHOD),
        *(Line(text, span) for text in docstring(_hidden_doc(graph, maps), " " * 8)),
    ]
    fill_absent(hidden, graph)
    body = without(graph, maps)
    hidden.region(body)
    before += [*hidden.lines, *_returned(graph, body, [hidden.take(value) for value in body.results])]
    return [*made, Line(""), *head, *forward.lines, *_returned(graph, graph.body, results), Line(""), *before]


def _head(function: Function, graph: Graph, name: str) -> list[Line]:
    """The first lines of a method that takes the model's inputs, to which it gives their variables."""
    parameters = ["self"]
    for given, value in zip(graph.inputs, graph.body.arguments, strict=True):
        text = function.bind(value, suffixed(given, value.type), parameter=True)
        absent = given == "documents" or given in graph.optional
        parameters.append(f"{text}: Tensor | None = None" if absent else f"{text}: Tensor")
    returned = "Output" if output_fields(graph) else "Tensor"
    return [Line(text, graph.span) for text in fit("    ", f"def {name}", tuple(parameters), f" -> {returned}:")]


def _before_maps(function: Function, graph: Graph, maps: tuple[LastMap, ...]) -> None:
    """What is before these maps, and they themselves: the body of `forward`."""
    given = tuple(str(function.texts[value]) for value in graph.body.arguments)
    whole = Text(f"self.{METHOD}({', '.join(given)})", parts=(f"self.{METHOD}", given))
    ops = tuple(op for one in maps for op in one.ops)
    fields = output_fields(graph)
    outside = {value: name for name, value in zip(fields, graph.body.results, strict=True)} if fields else {}
    outside |= {one.x: one.result for one in maps}
    first = maps[0].x
    if fields:
        holder = Value(TensorType(()), "out")
        function.assign(function.bind(holder, "out"), whole, graph.span)
        for value, name in outside.items():
            function.texts[value] = Text(f"{function.texts[holder]}.{name}")
            function.waiting[value] = ()
    elif len(str(whole)) > LONGEST:
        function.assign(function.bind(first, suffixed(METHOD, first.type)), whole, graph.span)
    else:
        function.texts[first], function.waiting[first] = whole, ()
    function.region(Region(tuple(outside), ops, tuple(one.logits for one in maps)))


def _returned(graph: Graph, body: Region, results: list[Text]) -> list[Line]:
    """The last statement of a method of this body that gives what the model gives."""
    if output_fields(graph):
        fields = tuple(map(str, results))
        results = [Text(f"Output({', '.join(fields)})", parts=("Output", fields))]
    return return_lines(results, body.ops[-1].span if body.ops else graph.span)


def _hidden_doc(graph: Graph, maps: tuple[LastMap, ...]) -> str:
    """What the method gives that stops before these maps."""
    names = [f"`{one.result}`" for one in maps]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    shapes = ", ".join(dict.fromkeys(f"[{', '.join(str(axis.size) for axis in one.x.type.axes)}]" for one in maps))
    return f"As `forward`, with {listed} before their last linear map, {shapes}: losses apply it."


def fill_absent(function: Function, graph: Graph) -> None:
    """The statement that makes inputs which a batch came without empty ones. All inputs of data go through it."""
    if not graph.optional:
        return
    names = function.names
    names.use("dskc.runtime.reference", "or_empty")
    given = [(n, v) for n, v in zip(graph.inputs, graph.body.arguments, strict=True) if n != "documents"]
    targets, arguments = [], []
    for _, value in given:
        text = str(function.texts[value])
        behind = ", ".join(names.size(axis.size) for axis in value.type.axes[2:])
        behind += "," if len(value.type.axes) == 3 else ""
        dtype = "self.compute"
        if value.type.dtype is DType.COMPUTE:
            names.casts = True
        else:
            names.use_torch()
            dtype = TORCH_DTYPES[value.type.dtype]
        targets.append(text)
        arguments.append(f"({text}, ({behind}), {dtype})")
    head = f"{', '.join(targets) if len(targets) > 1 else f'({targets[0]},)'} = or_empty"
    for line in fit(function.indent, head, tuple(arguments), ""):
        function.lines.append(Line(line, function.span))


def _model_doc(graph: Graph) -> str:
    doc = signature(graph)
    notes = [
        "`compute` is the dtype that activations run in, whatever dtype the parameters have.",
    ]
    if graph.optional:
        notes.append("Inputs marked `?` may be None: then they are empty, and so is what rests on them.")
    if "documents" in graph.inputs:
        notes.append("`documents_BS` tells the documents of a packed sequence apart; None: there is one.")
    return "\n".join([doc, "", *notes])
