"""A block of a spec in code of the user's own: what both files will say, worked out before either is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.parser import parse
from dskc.dsl.source import Source, read_source

from ..breaking.tensors import tensors
from ..emit.files import emit
from ..emit.names import Names
from ..emit.text import camel
from ..ir import Graph, Op, walk
from ..ops.structure import Block
from ..pipeline import Compiled, check
from ..reserved import PYTHON
from .edit import EjectError, Found, find_block, pointing
from .host import Host, Use, compile_host, refuse, uses_of
from .module import module_text

_VALUES = frozenset({"int", "float", "bool"})


class EjectProblems(Exception):
    """The spec that would point at the class has problems: these."""

    def __init__(self, problems: Diagnostics) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Ejected:
    """Two files to write."""

    module: Path
    module_text: str
    spec_text: str
    class_name: str
    maps: tuple[str, ...]  # checkpoint maps of the spec's models, which do not reach into it


def eject(path: Path, name: str, module: str | None = None) -> Ejected:
    """The user's module and the spec that points at it, for a spec without errors.

    Raises EjectError where the block cannot be ejected, EjectProblems where the spec would no longer compile, and
    DiagnosticError when the spec cannot be read.
    """
    source = read_source(path)
    before = check(path, source=source)
    tree = parse(source, Diagnostics())
    found = find_block(before.program, tree, name, _called_elsewhere(before))
    for op in _uses_before(before.graphs, name):
        refuse(name, op)
    for param in found.params:
        if isinstance(param.kind, s.ValueKind) and param.kind.name.text not in _VALUES:
            why = f"its `{param.name.text}` is a {param.kind.name.text}, which a class of one's own is not given"
            way_out = "a block of the language can do that: copy it into your spec, and change it there"
            raise EjectError(f"`{name}` cannot be ejected: {why}", way_out)
    file = _module_path(path, name, module)
    target = f"{file.stem}:{camel(name)}"
    draft = _checked(path, source, pointing(source, tree, found, target, "1", "1"))
    uses = uses_of(draft.graphs, target)
    host = _host(source, path, found, uses)
    _refuse_other_names(name, before.graphs, host, uses)
    text = pointing(source, tree, found, target, host.flops, host.saved)
    after = _checked(path, source, text)
    for model in after.program.models:
        emit(after, model)
    if after.problems.has_errors:  # of checkpoint maps, which are read as files are emitted
        raise EjectProblems(after.problems)
    names = Names(next(iter(after.graphs.values())))
    maps = dict.fromkeys(n.text for model in after.program.models.values() for n in model.weights)
    text_of_module = module_text(host, uses[0], names, found.block.span, path.name)
    return Ejected(file, text_of_module, text, camel(name), tuple(maps) if host.weights else ())


def _called_elsewhere(compiled: Compiled) -> dict[str, str]:
    """The blocks that imported files of the user's call, with these files."""
    ops = (op for graph in compiled.graphs.values() for op, _ in walk(graph.body))
    uses = ((op.attributes.block, op.span.source) for op in ops if isinstance(op.attributes, Block))
    main = compiled.program.main
    return {name: source.path for name, source in uses if name and not source.library and source is not main}


def _uses_before(graphs: dict[str, Graph], name: str) -> list[Op]:
    """The block's uses by the spec itself; what the library calls stays what it is."""
    ops = (op for graph in graphs.values() for op, _ in walk(graph.body))
    uses = [op for op in ops if isinstance(op.attributes, Block) and op.attributes.block == name]
    return [op for op in uses if not op.span.source.library]


def _module_path(path: Path, name: str, module: str | None) -> Path:
    """The module beside the spec; raises EjectError where there is one already, or none can be called so."""
    chosen = module if module is not None else re.sub(r"\W", "_", f"{path.stem}_{name}", flags=re.ASCII)
    if not chosen.isidentifier() or chosen in PYTHON:
        raise EjectError(f"no module can be called `{chosen}`", "name one with --module, such as `my_blocks`")
    file = path.parent / f"{chosen}.py"
    if file.exists() or file.is_symlink():
        raise EjectError(f"{file} is there already", "name another module with --module; none is overwritten")
    return file


def _checked(path: Path, source: Source, text: str) -> Compiled:
    compiled = check(path, source=Source(source.path, text))
    if compiled.problems.has_errors:
        raise EjectProblems(compiled.problems)
    return compiled


def _host(source: Source, path: Path, found: Found, uses: list[Use]) -> Host:
    """The block by itself, the same for every use but for the sizes."""
    name = found.block.name.text
    if not uses:
        raise EjectError(f"no model of {path} calls `{name}`", "eject it in the file whose model calls it")
    first = compile_host(source, path, found, uses[0])
    for use in uses[1:]:
        other = compile_host(source, path, found, use) if use.dims != uses[0].dims else first
        if use.options != uses[0].options or other.classes != first.classes:
            why = f"its uses at `{uses[0].path}` and `{use.path}` come out as different classes"
            raise EjectError(f"`{name}` cannot be ejected: {why}", "copy the block under another name for one of them")
    return first


def _refuse_other_names(name: str, graphs: dict[str, Graph], host: Host, uses: list[Use]) -> None:
    """State dicts must stay as they are: the same names, and shapes where all uses have the same sizes."""
    one_size = len({use.dims for use in uses}) == 1
    for graph in graphs.values():
        there = {t.pattern: t.shape for t in tensors(graph)}
        for use in uses:
            below = {
                p.removeprefix(f"{use.path}."): shape for p, shape in there.items() if p.startswith(f"{use.path}.")
            }
            same = below == host.weights if one_size else below.keys() == host.weights.keys()
            if below and not same:
                why = f"the weights at `{use.path}` would be called otherwise"
                raise EjectError(f"`{name}` cannot be ejected: {why}", "name them with `as` first")
