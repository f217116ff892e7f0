"""canonicalize: what depends on no activation leaves blocks and repeats; equal work is done once; unused work goes."""

from __future__ import annotations

from dataclasses import replace

from ..ir import Graph, Op, Region, Value
from ..ops.base import Operation
from ..ops.structure import Block


def canonicalize(graph: Graph) -> Graph:
    """The graph in its simplest form."""
    body, left = _hoist(graph.body)
    assert not left
    return replace(graph, body=_prune(_share(body, {}), set()))


def _hoist(region: Region, top: bool = True) -> tuple[Region, list[Op]]:
    """The region without its invariant operations, and those, in order, for the region around it."""
    inside = set(region.arguments)
    kept: list[Op] = []
    moved: list[Op] = []
    for op in region.ops:
        regions, risen = [], []
        for inner in op.regions:
            made, out = _hoist(inner, top=False)
            regions.append(made)
            risen += [_called_from(op, inner_op) for inner_op in out]
        for candidate in (*risen, op if not op.regions else with_regions(op, tuple(regions))):
            attributes = candidate.attributes
            assert isinstance(attributes, Operation)
            if attributes.invariant and not top and not inside & set(candidate.operands):
                moved.append(candidate)
            else:
                kept.append(candidate)
                inside |= set(candidate.results)
    return Region(region.arguments, tuple(kept), region.results), moved


def _called_from(block: Op, op: Op) -> Op:
    """An operation that leaves a block of the library stands for the call of it, not for the library's line."""
    if isinstance(block.attributes, Block) and op.span.source.library:
        return Op(op.attributes, op.operands, op.results, block.span, op.regions)
    return op


def with_regions(op: Op, regions: tuple[Region, ...]) -> Op:
    return Op(op.attributes, op.operands, op.results, op.span, regions)


def _share(region: Region, new: dict[Value, Value]) -> Region:
    """The region with equal pure operations merged into the first of them."""
    known: dict[object, Op] = {}
    ops: list[Op] = []
    for op in region.ops:
        operands = tuple(new.get(value, value) for value in op.operands)
        regions = tuple(_share(inner, new) for inner in op.regions)
        made = Op(op.attributes, operands, op.results, op.span, regions)
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        if attributes.pure and not regions:
            key = (attributes, operands)
            if key in known:
                new.update(zip(op.results, known[key].results, strict=True))
                continue
            known[key] = made
        ops.append(made)
    results = tuple(new.get(value, value) for value in region.results)
    return Region(region.arguments, tuple(ops), results)


def _prune(region: Region, used: set[Value]) -> Region:
    """The region without pure operations that nothing uses, and without results of groups that nothing uses."""
    used |= set(region.results)
    ops: list[Op] = []
    for op in reversed(region.ops):
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        if attributes.pure and not op.regions and not used & set(op.results):
            continue
        if isinstance(attributes, Block) and attributes.block is None:
            op = _narrow(op, attributes, used)
        op = with_regions(op, tuple(_prune(inner, used) for inner in op.regions))
        used |= set(op.operands)
        ops.append(op)
    return Region(region.arguments, tuple(reversed(ops)), region.results)


def _narrow(op: Op, attributes: Block, used: set[Value]) -> Op:
    keep = [i for i, value in enumerate(op.results) if value in used or i >= attributes.results]
    count = sum(1 for i in keep if i < attributes.results)
    (region,) = op.regions
    narrowed = Region(region.arguments, region.ops, tuple(region.results[i] for i in keep))
    results = tuple(op.results[i] for i in keep)
    return Op(replace(attributes, results=count), op.operands, results, op.span, (narrowed,))
