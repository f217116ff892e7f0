"""Counting parameters: by top-level name, under a path, and one by one as the state dict lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .ir import Graph, Op, Region, walk
from .ops.structure import Repeat
from .ops.weights import Weight, Weights


@dataclass(frozen=True, slots=True)
class Entry:
    """One top-level part of a model: `layers 30 x 202_383_360`."""

    name: str
    count: int
    each: int  # parameters of one, where all are alike; else of all of them
    total: int

    def __str__(self) -> str:
        if self.count > 1:
            return f"{self.name} {self.count} x {self.each:_}"
        return f"{self.name} {self.total:_}"


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One tensor of the state dict, its shape in numbers."""

    name: str
    pattern: str  # the name with `*` for the indices
    shape: tuple[int, ...]
    weight: Weight

    @property
    def elements(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total


def parameters(graph: Graph) -> list[ParameterInfo]:
    """Every tensor of the state dict in the order of the graph; weights that are used twice are there once."""
    seen: set[str] = set()
    found: list[ParameterInfo] = []
    shapes: dict[int, tuple[int, ...]] = {}  # of a weight, by its id: layers that are alike have the very same ones
    sizes = graph.sizes
    for op, indices in _weights(graph.body, ()):
        attributes = op.attributes
        assert isinstance(attributes, Weights)
        for weight in attributes.weights:
            if weight.state == "counted":
                continue
            pattern = f"{attributes.path}.{weight.name}"
            name = _fill(pattern, indices)
            if name not in seen:
                seen.add(name)
                shape = shapes.get(id(weight))
                if shape is None:
                    shape = tuple(int(axis.size.evaluate(sizes)) for axis in weight.type.axes)
                    shapes[id(weight)] = shape
                found.append(ParameterInfo(name, pattern, shape, weight))
    return found


def _weights(region: Region, indices: tuple[int, ...]) -> Iterator[tuple[Op, tuple[int, ...]]]:
    for op in region.ops:
        if isinstance(op.attributes, Weights):
            yield op, indices
        elif isinstance(op.attributes, Repeat):
            for i, variant in enumerate(op.attributes.variants):
                yield from _weights(op.regions[variant], (*indices, i))
        else:
            for inner in op.regions:
                yield from _weights(inner, indices)


def _fill(pattern: str, indices: tuple[int, ...]) -> str:
    for index in indices:
        pattern = pattern.replace("*", str(index), 1)
    return pattern


def total_parameters(graph: Graph) -> int:
    return sum(entry.total for entry in parameter_tree(graph))


def parameter_tree(graph: Graph) -> list[Entry]:
    """Parameters by top-level name. Repeats are counted by variant, so that 61 layers cost as much as two."""
    sizes = graph.sizes
    totals: dict[str, Entry] = {}
    seen: set[str] = set()
    for op in graph.body.ops:
        name = _top(op)
        if name is None:
            continue
        if isinstance(op.attributes, Repeat):
            parts = [_region_total(r, sizes, set()) for r in op.regions]
            total = sum(n * parts[i] for i, n in enumerate(op.attributes.region_counts))
            alike = len(op.regions) == 1
            entry = Entry(name, op.attributes.count if alike else 1, parts[0] if alike else total, total)
        else:
            total = _op_total(op, sizes, seen)
            before = totals[name].total if name in totals else 0
            entry = Entry(name, 1, before + total, before + total)
        if entry.total:
            totals[name] = entry
    return list(totals.values())


def _top(op: Op) -> str | None:
    path = getattr(op.attributes, "path", None)
    return path.split(".")[0] if path else None


def _op_total(op: Op, sizes: dict[str, int], seen: set[str]) -> int:
    if isinstance(op.attributes, Weights):
        if op.attributes.path in seen:
            return 0
        seen.add(op.attributes.path)
        return int(op.attributes.elements.evaluate(sizes))
    if isinstance(op.attributes, Repeat):
        counts = op.attributes.region_counts
        return sum(n * _region_total(r, sizes, set()) for n, r in zip(counts, op.regions, strict=True))
    return sum(_region_total(r, sizes, seen) for r in op.regions)


def _region_total(region: Region, sizes: dict[str, int], seen: set[str]) -> int:
    return sum(_op_total(op, sizes, seen) for op in region.ops)


def count_under(graph: Graph, path: str) -> int | None:
    """Parameters under a path, `layers.attention` (indices of repeats left out); None when nothing is called so."""
    seen: set[str] = set()
    total, found = 0, False
    for op, times in walk(graph.body):
        if not isinstance(op.attributes, Weights) or op.attributes.path in seen:
            continue
        plain = op.attributes.path.replace(".*", "")
        if plain == path or plain.startswith(f"{path}."):
            found = True
            if times == 1:
                seen.add(op.attributes.path)
            total += int(op.attributes.elements.evaluate(graph.sizes)) * int(times)
    return total if found else None
