"""groups: which parameters of the state dict a path of the model leads to, and which of them are hidden matrices."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from ..ir import Graph, Region, Value, walk
from ..ops.elementwise import Elementwise, Softcap
from ..ops.fused import Fused
from ..ops.linear import BlockLinear, Linear
from ..ops.structure import Block
from ..ops.weights import Weight, Weights
from ..recipe import Group


def places(graph: Graph, path: str) -> tuple[str, ...]:
    """Where parameters are under a path without indices: `layers.attention` leads to `layers.*.attention`."""
    wanted = path.split(".")
    found = {_beginning(name, len(wanted)) for name in _names(graph) if _plain(name)[: len(wanted)] == wanted}
    return tuple(sorted(found))


def places_beside(graph: Graph, path: str) -> list[str]:
    """Paths as long as this one that do lead somewhere."""
    return sorted({".".join(_plain(name)[: path.count(".") + 1]) for name in _names(graph)})


def has_linear(graph: Graph, paths: tuple[str, ...], heads: bool) -> bool:
    """Whether a linear layer is under one of these paths of the state dict; `heads`: one that is a head too."""
    without = () if heads else head_paths(graph)
    modules = (op.attributes for op, _ in walk(graph.body) if isinstance(op.attributes, Weights))
    found = [weights.path for weights in modules if weights.module == "Linear" and weights.path not in without]
    return any(f"{name}.".startswith(f"{path}.") for path in paths for name in found)


def head_paths(graph: Graph) -> tuple[str, ...]:
    """Modules whose linear map makes a result, which a loss may apply by their weight alone."""
    return tuple(dict.fromkeys(_heads(graph, _owners(graph))))


def other_matrices(graph: Graph) -> tuple[str, ...]:
    """Modules with matrices that map nothing within the model: embeddings, heads, tables, convolutions.

    Muon is for what maps hidden states to hidden states, where the singular values of a weight mean something.
    """
    ops, owners = [op for op, _ in walk(graph.body)], _owners(graph)
    inside = {owners[op.operands[1]] for op in ops if isinstance(op.attributes, Linear | BlockLinear)}
    inside -= set(_heads(graph, owners))
    found: dict[str, None] = {}
    for op in ops:
        if isinstance(op.attributes, Weights):
            mapping = op.attributes.path in inside and op.attributes.module != "Embed"
            if not mapping and any(_is_matrix(weight) for weight in op.attributes.weights):
                found[op.attributes.path] = None
    return tuple(found)


def hidden_parameters(graph: Graph) -> int:
    """How many parameters the hidden matrices have in all."""
    others, total, seen = set(other_matrices(graph)), 0, set[str]()
    for op, times in walk(graph.body):
        if not isinstance(op.attributes, Weights) or op.attributes.path in others or op.attributes.path in seen:
            continue
        if "*" not in op.attributes.path:
            seen.add(op.attributes.path)  # and used again it is there once
        weights = (w for w in op.attributes.weights if _is_matrix(w))
        total += times * sum(int(weight.elements.evaluate(graph.sizes)) for weight in weights)
    return total


def trained_and_frozen(graph: Graph, groups: tuple[Group, ...]) -> tuple[int, int]:
    """How many parameters a recipe trains, its adapters with them, and how many of the model it does not."""
    adapts = any(group.lora for group in groups)
    heads, seen = head_paths(graph), set[str]()
    trained = frozen = 0
    for op, times in walk(graph.body):
        if not isinstance(op.attributes, Weights) or op.attributes.path in seen:
            continue
        path = op.attributes.path
        if "*" not in path:
            seen.add(path)
        for weight in op.attributes.weights:
            if weight.state is not None:
                continue
            said = [g.frozen for g in _over(groups, f"{path}.{weight.name}") if g.frozen is not None]
            elements = times * int(weight.elements.evaluate(graph.sizes))
            if said[-1] if said else adapts:
                frozen += elements
            else:
                trained += elements
        lora = [g.lora for g in _over(groups, path) if g.lora is not None]
        if lora and op.attributes.module == "Linear" and path not in heads:
            rank = lora[-1]["rank"]
            assert isinstance(rank, Fraction), rank
            sizes = (int(axis.size.evaluate(graph.sizes)) for axis in op.attributes.weights[0].type.axes)
            trained += times * int(rank) * sum(sizes)
    return trained, frozen


def _over(groups: tuple[Group, ...], name: str) -> list[Group]:
    """The groups that a parameter is in, the longest path last."""
    return [group for group in groups if any(f"{name}.".startswith(f"{path}.") for path in group.paths)]


def _is_matrix(weight: Weight) -> bool:
    return weight.state is None and len(weight.type.axes) > 1 and weight.name != "bias"


def _owners(graph: Graph) -> dict[Value, str]:
    """The module of each weight."""
    found: dict[Value, str] = {}
    for op, _ in walk(graph.body):
        if isinstance(op.attributes, Weights):
            found.update(dict.fromkeys(op.results, op.attributes.path))
    return found


def _heads(graph: Graph, owners: dict[Value, str]) -> Iterator[str]:
    """Modules whose linear map makes a result of the model, with no more than scaling and capping behind it."""
    for value in graph.body.results:
        yield from _maps(graph.body, value, owners)


def _maps(region: Region, value: Value, owners: dict[Value, str]) -> Iterator[str]:
    op = next((op for op in region.ops if value in op.results), None)
    if op is None:
        return
    if isinstance(op.attributes, Linear):
        yield owners[op.operands[1]]
    elif isinstance(op.attributes, Block):
        (inner,) = op.regions
        yield from _maps(inner, inner.results[op.results.index(value)], owners)
    elif isinstance(op.attributes, Elementwise | Softcap | Fused) and len(op.operands) == 1:
        yield from _maps(region, op.operands[0], owners)


def _names(graph: Graph) -> Iterator[str]:
    """Every parameter's name, `*` for an index."""
    for op, _ in walk(graph.body):
        if isinstance(op.attributes, Weights):
            yield from (f"{op.attributes.path}.{w.name}" for w in op.attributes.weights if w.state is None)


def _plain(name: str) -> list[str]:
    return [part for part in name.split(".") if part != "*"]


def _beginning(name: str, count: int) -> str:
    """The name up to its part of this number, indices not counted."""
    parts = name.split(".")
    ends = [i for i, part in enumerate(parts) if part != "*"]
    return ".".join(parts[: ends[count - 1] + 1])
