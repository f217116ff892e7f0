"""The block by itself: a model that does nothing but call it, compiled, from which its class and its costs are read."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from dskc.dsl import syntax as s
from dskc.dsl.dims import Dim
from dskc.dsl.numbers import show_number
from dskc.dsl.render import render
from dskc.dsl.source import Source

from ..breaking.tensors import tensors
from ..emit.classes import Classes
from ..emit.model import emit_model
from ..emit.names import Names
from ..ir import DType, Graph, Op, captures, walk
from ..ops.base import Operation
from ..ops.structure import Block, Extern, Keep
from ..pipeline import check, lower
from ..shapes import symbolic_shapes
from .edit import EjectError, Found, declared

_HOST = "dskc_eject"
Option = Fraction | bool | str


@dataclass(frozen=True, slots=True)
class Use:
    """One use of the block in the edited spec: what its class will be made with."""

    path: str
    dims: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, Option], ...]


@dataclass(frozen=True, slots=True)
class Host:
    """What the block is by itself."""

    classes: tuple[tuple[str, ...], ...]  # the lines of each, innermost first; the last is the block's own
    imports: dict[str, set[str]]
    flops: str
    saved: str
    weights: dict[str, tuple[int, ...]]  # shapes by their names within the block


def uses_of(graphs: dict[str, Graph], target: str) -> list[Use]:
    """Every use of an extern target, in all models."""
    found = []
    for graph in graphs.values():
        for op, _ in walk(graph.body):
            attributes = op.attributes
            if isinstance(attributes, Extern) and attributes.target == target:
                sizes = {name: value for name, value in attributes.options if isinstance(value, Dim)}
                dims = tuple((name, int(size.evaluate(graph.sizes))) for name, size in sizes.items())
                options = tuple((n, v) for n, v in attributes.options if isinstance(v, Fraction | bool | str))
                found.append(Use(attributes.path, dims, options))
    return found


def compile_host(source: Source, path: Path, found: Found, use: Use) -> Host:
    """Raises EjectError where the block cannot stand by itself."""
    name = found.block.name.text
    compiled = check(path, source=Source(source.path, f"{source.text}\n\n{_text(found, use)}\n"))
    if compiled.problems.has_errors or _HOST not in compiled.graphs:
        why = render(compiled.problems).split("\n")[0]
        raise EjectError(f"`{name}` does not compile by itself: {why}", "write the class by hand, see docs/language.md")
    checked = compiled.graphs[_HOST]
    graph = lower(checked, "canonicalize")  # fused, it would call the kernels of a model
    block = next(op for op in graph.body.ops if isinstance(op.attributes, Block) and op.attributes.block == name)
    refuse(name, block)
    classes = Classes(Names(graph))
    emit_model(graph, classes)
    if classes.computing:
        why = "it casts to the dtype of activations, which a class of one's own is not told"
        raise EjectError(f"`{name}` cannot be ejected: {why}", "write it as a block of the language instead")
    costs = symbolic_shapes(graph, DType.BF16)
    inside = {t.pattern.removeprefix(f"{name}."): t.shape for t in tensors(checked)}
    lines = tuple(tuple(line.text for line in made) for _, made in classes.made.values())
    saved = costs.saved / 2  # bytes to elements of two
    return Host(lines, classes.names.imports, str(costs.flops), str(saved), inside)


def _text(found: Found, use: Use) -> str:
    """The model that calls the block, with its own names for dims."""
    tensors_ = [p for p in found.params if isinstance(p.kind, s.Type)]
    inputs = ", ".join(f"{p.name.text}: {declared(p.kind)}" for p in tensors_ if p.kind is not None)
    results = [f"y{i}" for i in range(len(found.block.types))]
    given = ", ".join(f"{r}: {declared(kind)}" for r, kind in zip(results, found.block.types, strict=True))
    options = dict(use.options)
    arguments = [p.name.text for p in tensors_]
    for param in found.params:
        label = param.name.text
        if isinstance(param.kind, s.DimKind):
            arguments.append(f"{label}: {param.kind.name.text}")
        elif label in options:
            arguments.append(f"{label}: {_shown(options[label])}")
    dims = ", ".join(f"{dim} = {size}" for dim, size in use.dims)
    name = found.block.name.text
    body = f"  dims {{ {dims} }}\n" if dims else ""
    call = f"{name}({', '.join(arguments)}) as {name}"
    return f"model {_HOST}({inputs}) -> {given} {{\n{body}  {', '.join(results)} = {call}\n}}"


def _shown(value: Option) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else show_number(value)


def refuse(name: str, op: Op) -> None:
    """Raises EjectError for what a class of one's own is not given: a cache, the positions, a place for losses."""
    attributes = op.attributes
    assert isinstance(attributes, Block)
    way_out = "a block of the language can do that: copy it into your spec, and change it there"
    kept = [n for inner, _ in walk(op.regions[0]) if isinstance(inner.attributes, Keep) for n in inner.attributes.names]
    if kept:
        why = f"decoding keeps {', '.join(kept)} of it, and a class of one's own is given no cache"
        raise EjectError(f"`{name}` cannot be ejected: {why}", way_out)
    if any(isinstance(a := inner.attributes, Operation) and a.stateful for inner, _ in walk(op.regions[0])):
        why = "it carries something along the sequence, and a class of one's own is given no cache"
        raise EjectError(f"`{name}` cannot be ejected: {why}", way_out)
    if captures(op):
        seen = ", ".join(sorted({value.name or "a value" for value in captures(op)}))
        why = f"it sees {seen} from outside, which a class of one's own is not given"
        raise EjectError(f"`{name}` cannot be ejected: {why}", way_out)
    if attributes.losses:
        why = f"its loss `{', '.join(attributes.losses)}` has no way out of a class of one's own"
        raise EjectError(f"`{name}` cannot be ejected: {why}", way_out)
