"""The spec that points at code of one's own, made from the spec as it is written, by spans: all else stays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dskc.dsl import syntax as s
from dskc.dsl.format import format_source
from dskc.dsl.source import Source
from dskc.dsl.suggest import did_you_mean

from ..program import Program
from ..values import BlockDefinition


class EjectError(Exception):
    """A block that cannot be ejected; its text says why, `way_out` what to do."""

    def __init__(self, message: str, way_out: str) -> None:
        super().__init__(message)
        self.way_out = way_out


@dataclass(frozen=True, slots=True)
class Found:
    """The block as its spec knows it: where it is defined, and those of its parameters that calls make use of."""

    block: s.Block
    here: bool  # defined in the spec itself, not imported
    params: tuple[s.Param, ...]


def find_block(program: Program, tree: s.File, name: str, elsewhere: dict[str, str]) -> Found:
    """Raises EjectError for names that are no blocks, and for blocks that the spec does not call; `elsewhere` are the
    files that call others.
    """
    item = program.scope.names.get(name)
    nodes = (node for part in tree.items for node in _nodes(part))
    calls = [node for node in nodes if isinstance(node, s.Call) and node.callee.text == name]
    if not isinstance(item, BlockDefinition):
        if name in elsewhere:
            where = elsewhere[name]
            raise EjectError(f"{program.main.path} does not call `{name}`: {where} does", f"dskc eject {name} {where}")
        called = sorted(n for n in program.scope.blocks() if n != name)
        near = did_you_mean(name, called)
        way_out = (
            f"did you mean `{near}`?" if near else f"it can be {', '.join(called)}" if called else "it has no blocks"
        )
        raise EjectError(f"{program.main.path} has no block `{name}`", way_out)
    if isinstance(item.syntax, s.ExternBlock):
        raise EjectError(f"`{name}` is code of your own already", f"it is {item.syntax.target.value}")
    if not calls:
        raise EjectError(f"{program.main.path} does not call `{name}`", "eject it in the file whose model calls it")
    used: set[str] = set()
    for call in calls:
        used |= {a.label.text for a in call.arguments if a.label is not None}
        positional = sum(1 for a in call.arguments if a.label is None)
        used |= {p.name.text for p in item.syntax.params[:positional]}
    params = tuple(p for p in item.syntax.params if p.name.text in used or _required(p))
    return Found(item.syntax, program.scope.owners[name] is program.scope, params)


def _required(param: s.Param) -> bool:
    return param.default is None and not getattr(param.kind, "optional", False)


def _nodes(node: s.Node) -> Iterator[s.Node]:
    yield node
    for name in node.fields:
        child = getattr(node, name)
        for item in child if isinstance(child, tuple) else (child,):
            if isinstance(item, s.Node):
                yield from _nodes(item)


def declared(kind: s.Node) -> str:
    """A type as an extern block declares it: `[.., D]` says nothing of B and S, of which its costs speak."""
    return re.sub(r"\.\.", "B, S", " ".join(kind.span.text.split()))


def signature(found: Found) -> str:
    """`swiglu(x: [B, S, D], inner: F) -> [B, S, D]`."""
    params = []
    for param in found.params:
        text = " ".join(param.span.text.split())
        params.append(f"{param.name.text}: {declared(param.kind)}" if isinstance(param.kind, s.Type) else text)
    types = ", ".join(declared(kind) for kind in found.block.types)
    return f"{found.block.name.text}({', '.join(params)}) -> {types}"


def pointing(source: Source, tree: s.File, found: Found, target: str, flops: str, saved: str) -> str:
    """The spec's text with the block as an extern one; in the canonical style where it was."""
    costs = [f"{key} = {cost}" for key, cost in (("flops", flops), ("saved", saved)) if cost != "0"]
    cost = f"{{ {', '.join(costs)} }}" if costs else "{ }"
    text = f'block {signature(found)} = extern "{target}" {cost}'
    if len(text) > 120:
        cost = "".join(f"  {each}\n" for each in costs)
        text = f'block {signature(found)} = extern "{target}" {{\n{cost}}}'
    if found.here:
        edits = [(found.block.span.start, found.block.span.end, text)]
    else:
        doc = "".join(f"/// {line}".rstrip() + "\n" for line in (found.block.doc or "").splitlines())
        use = next(i for i in tree.items if isinstance(i, s.Use) and found.block.name.text in (n.text for n in i.names))
        stays = [i for i in tree.items if isinstance(i, s.Edition | s.Use) and (i is not use or len(use.names) > 1)]
        behind = _line_end(source, max(item.span.end for item in stays))
        edits = [(behind, behind, f"\n\n{doc}{text}"), _without(source, use, found.block.name.text)]
    changed = source.text
    newline = "\r\n" if "\r\n" in changed else "\n"
    for start, end, put in sorted(edits, reverse=True):
        changed = changed[:start] + put.replace("\n", newline) + changed[end:]
    return format_source(Source(source.path, changed)) if format_source(source) == source.text else changed


def _line_end(source: Source, at: int) -> int:
    """The end of a line, behind the comment on it."""
    end = source.text.find("\n", at)
    return len(source.text) if end < 0 else end - (source.text[end - 1] == "\r")


def _without(source: Source, use: s.Use, name: str) -> tuple[int, int, str]:
    """The edit that imports a name no more; with its line and the empty one above, where it was the only one."""
    text = source.text
    if len(use.names) == 1:
        start, end = use.span.start, use.span.end
        whole = re.compile(r"[ \t]*\r?\n").match(text, end)
        above = re.compile(r"(?:\r?\n)[ \t]*(?=\r?\n$)").search(text, 0, start) if whole else None
        return (above.start() if above else start), (whole.end() if whole and not above else end), ""
    span = next(n.span for n in use.names if n.text == name)
    behind = re.compile(r"\s*,\s*").match(text, span.end)
    if behind and use.names[-1].text != name:
        return span.start, behind.end(), ""
    before = re.compile(r",\s*$").search(text, 0, span.start)
    return (before.start() if before else span.start), span.end, ""
