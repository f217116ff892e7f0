"""infer: dims become numbers. Every size must come out whole, and what the model requires of itself must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from dskc.dsl.diagnostics import Diagnostic, Diagnostics
from dskc.dsl.dims import Dim
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from ..ir import Graph, Op, Region, walk
from ..ops.attend import Attend
from ..ops.base import Operation
from ..ops.position import RopeTable
from ..ops.recurrent import GatedDelta
from ..ops.routing import BalanceBias, CountLoad, GroupedTopK, TopK
from ..requirements import Requirement, check_requirements


def infer(graph: Graph, requirements: list[Requirement], problems: Diagnostics) -> Graph | None:
    """Checks all sizes with the model's numbers; the graph itself stays symbolic. None when one is unknown."""
    known = graph.sizes
    settled: set[Dim] = set()
    before = len(problems)
    complete = True
    for op, at in _placed(graph.body):
        found = Diagnostics()
        for value in () if isinstance(op.attributes, RopeTable) else op.results:  # that one has a rule of its own
            for axis in value.type.axes:
                _whole(axis.size, known, op.span, found, settled)
        _extra(op, known, found)
        complete = complete and all(diagnostic.code != "DSK0214" for diagnostic in found)
        problems.extend(_moved(diagnostic, at) for diagnostic in found)
    _counted(graph, problems)
    if len(problems) == before:
        check_requirements(graph, requirements, problems)
    return graph if complete else None


def _placed(region: Region, outer: Span | None = None) -> Iterator[tuple[Op, Span]]:
    """Every operation with where its problems are shown: those within the library at the call that led there."""
    for op in region.ops:
        at = outer if outer is not None and op.span.source.path.startswith("std/") else op.span
        yield op, at
        for inner in op.regions:
            yield from _placed(inner, at)


def _moved(found: Diagnostic, at: Span) -> Diagnostic:
    if found.span == at:
        return found
    first = Span(at.source, at.start, at.start + len(at.text.split("\n")[0].rstrip()))
    inner = f"{found.span.source.path}:{found.span.line}: {' '.join(found.span.text.split())}"
    return replace(found, span=first, notes=(*found.notes, ("note", f"in {inner}")))


def _whole(size: Dim, known: dict[str, int], span: Span, problems: Diagnostics, settled: set[Dim]) -> None:
    """Reports a size that is no whole number from 1; each size once."""
    if size in settled or not size.symbols() <= known.keys():
        return
    settled.add(size)
    value = size.evaluate(known)
    if value.denominator == 1 and value >= 1:
        return
    values = ", ".join(f"{name} = {show_number(known[name])}" for name in sorted(size.symbols()))
    title = f"`{size}` is {show_number(value)}, and a size is a whole number from 1"
    problems.add(Diagnostic("DSK0208", title, span, notes=(("note", values),) if values else ()))


def _extra(op: Op, known: dict[str, int], problems: Diagnostics) -> None:
    """Rules between sizes that only numbers can settle."""
    attributes = op.attributes
    assert isinstance(attributes, Operation)
    for size in attributes.written_sizes():
        if not size.symbols() <= known.keys():
            title = f"`{size}` has no value before data comes, and this size must be known"
            problems.add(Diagnostic("DSK0214", title, op.span))
    if isinstance(attributes, Attend | GatedDelta):
        many, few = ("query", "key and value") if isinstance(attributes, Attend) else ("value", "key")
        heads = op.operands[0 if isinstance(attributes, Attend) else 2].type.axes[2].size
        groups = op.operands[1].type.axes[2].size
        h, g = _value(heads, known), _value(groups, known)
        if h and g and h % g:
            title = f"{show_number(h)} {many} heads do not divide over {show_number(g)} {few} heads"
            note = ("help", f"`{heads}` must be a multiple of `{groups}`")
            problems.add(Diagnostic("DSK0209", title, op.span, notes=(note,)))
    elif isinstance(attributes, RopeTable):
        width = _value(attributes.width.size, known)
        if width and width % 2:
            title = f"`rope` turns pairs, and {show_number(width)} is odd"
            problems.add(Diagnostic("DSK0209", title, op.span))
    elif isinstance(attributes, TopK):
        among = _value(op.operands[0].type.axes[-1].size, known)
        if among and attributes.k > among:
            title = f"the best {attributes.k} of {show_number(among)} cannot be chosen"
            problems.add(Diagnostic("DSK0209", title, op.span))
    elif isinstance(attributes, GroupedTopK):
        among = _value(op.operands[0].type.axes[-1].size, known)
        problem = attributes.problem(int(among)) if among else None
        if problem:
            problems.add(Diagnostic("DSK0209", problem, op.span))


def _counted(graph: Graph, problems: Diagnostics) -> None:
    """Reports a `balance_bias` whose load nothing counts: it would never move."""
    counted = {op.operands[0] for op, _ in walk(graph.body) if isinstance(op.attributes, CountLoad)}
    for op, at in _placed(graph.body):
        if isinstance(op.attributes, BalanceBias) and op.operands[0] not in counted:
            help_ = "write `top_k(score, k, bias: balance_bias(X))`: what is chosen there is its load"
            title = "no choice counts for this `balance_bias`"
            problems.add(Diagnostic("DSK0126", title, at, "it would never move", notes=(("help", help_),)))


def _value(size: Dim, known: dict[str, int]) -> Fraction | None:
    """What a size is worth; None where it depends on the data."""
    return size.evaluate(known) if size.symbols() <= known.keys() else None
