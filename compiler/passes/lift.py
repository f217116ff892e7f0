"""lift: the linear maps that make logits stand last, so that a loss can take what they are made of.

A `next_token` term needs no logits as a whole: `dskc.runtime.kernels.loss.linear_loss` computes it from what the last
linear map takes and from that map's weight, some rows at a time. What is recognised is a result that is made by

    linear (one axis to one, of compute dtype)  ->  scale by a number, any times  ->  softcap

of which the last two may be missing, and that nothing else in the model reads. The map may be applied within a block,
as by a module for multi-token prediction which shares the model's own head: then it moves out of it, and the block
gives what the map takes. It stays where it is, and its logits are held, where the block itself owns the map's weight,
and where a result is compared with something else than next tokens too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..ir import Attributes, DType, Graph, Op, Region, Value, captures
from ..ops.elementwise import Elementwise, Softcap
from ..ops.fused import Fused
from ..ops.linear import Linear
from ..ops.structure import Block
from ..ops.weights import Weights
from ..recipe import Term
from ..sections import NEXT_TOKEN

METHOD = "hidden"  # what generated models call the method that stops before these maps


@dataclass(frozen=True, slots=True)
class LastMap:
    """A result of a model as `softcap(scale * (x @ weight.T + bias))`. ops: what computes it, the linear map first."""

    result: str
    ops: tuple[Op, ...]
    scale: float = 1.0
    softcap: float | None = None

    @property
    def x(self) -> Value:
        return self.ops[0].operands[0]

    @property
    def weights(self) -> tuple[Value, ...]:
        """The weight, and the bias where there is one."""
        return self.ops[0].operands[1:]

    @property
    def logits(self) -> Value:
        return self.ops[-1].result


def last_maps(graph: Graph, terms: Iterable[Term]) -> tuple[LastMap, ...]:
    """The maps of all results that these terms, of all recipes of a model, take for next tokens and nothing else."""
    terms = tuple(terms)
    taken = {term.result for term in terms if term.loss == NEXT_TOKEN.name}
    taken -= {term.result for term in terms if term.loss != NEXT_TOKEN.name}
    if any(str(getattr(op.attributes, "path", "")).split(".")[0] == METHOD for op in graph.body.ops):
        return ()  # the model has something of that name itself
    own = {value for op in graph.body.ops if isinstance(op.attributes, Weights) for value in op.results}
    results = zip(graph.results, graph.body.results, strict=False)
    found = (_last_map(graph.body, name, value) for name, value in results if name in taken)
    return tuple(one for one in found if one is not None and own.issuperset(one.weights))


def within_loss(maps: tuple[LastMap, ...]) -> frozenset[Op]:
    """What is behind the linear maps: kernels compute it with the loss, and keep nothing of it."""
    return frozenset(op for one in maps for op in one.ops[1:])


def lift(graph: Graph, terms: Iterable[Term]) -> Graph:
    """The graph with these maps as its last operations."""
    body = graph.body
    moved: list[Op] = []
    for one in last_maps(graph, terms):
        region, ops = _taken_out(body, graph.results.index(one.result))
        body = replace(region, results=body.results)
        moved += ops
    return replace(graph, body=replace(body, ops=(*body.ops, *moved)))


def without(graph: Graph, maps: tuple[LastMap, ...]) -> Region:
    """The body of a lifted graph up to these maps: in place of logits it gives what they are made of."""
    moved = {op for one in maps for op in one.ops}
    given = {one.logits: one.x for one in maps}
    ops = tuple(op for op in graph.body.ops if op not in moved)
    return Region(graph.body.arguments, ops, tuple(given.get(value, value) for value in graph.body.results))


# --- recognising


def _last_map(region: Region, name: str, value: Value) -> LastMap | None:
    ops = _ops(region, value)
    if ops is None:
        return None
    scale, softcap = 1.0, None
    for attributes in (one for op in ops[1:] for one in _steps(op)):
        if softcap is not None:
            return None  # what follows a softcap is no part of it
        if isinstance(attributes, Softcap):
            softcap = attributes.cap
        else:
            assert isinstance(attributes, Elementwise) and attributes.by is not None
            scale = scale * attributes.by if attributes.operator == "mul" else scale / attributes.by
    return LastMap(name, ops, scale, softcap)


def _ops(region: Region, value: Value) -> tuple[Op, ...] | None:
    """What makes a value of a linear map's operand, within blocks too; None where that is anything else."""
    uses, makers = _uses(region), {v: op for op in region.ops for v in op.results}
    found: list[Op] = []
    while (op := makers.get(value)) is not None and uses[value] == 1:
        found.append(op)
        if isinstance(op.attributes, Linear):
            return tuple(reversed(found)) if _is_plain(op, op.attributes) else None
        if isinstance(op.attributes, Block):
            place, (body,) = op.results.index(value), op.regions
            inner = _ops(body, body.results[place]) if place < op.attributes.results else None
            return None if inner is None else (*inner, *reversed(found[:-1]))
        if not _steps(op):
            return None
        value = op.operands[0]
    return None


def _uses(region: Region) -> Counter[Value]:
    counts: Counter[Value] = Counter(region.results)
    for op in region.ops:
        counts.update((*op.operands, *captures(op)))
    return counts


def _is_plain(op: Op, attributes: Linear) -> bool:
    one_axis = len(attributes.source) == len(attributes.target) == 1
    return one_axis and not attributes.grouped and op.operands[0].type.dtype is op.result.type.dtype is DType.COMPUTE


def _steps(op: Op) -> tuple[Attributes, ...]:
    """The scales and softcaps that an operation is, one after another; none where it is anything else."""
    if len(op.operands) != 1 or len(op.results) != 1:
        return ()
    if isinstance(op.attributes, Fused):
        (region,) = op.regions
        given, steps = region.arguments[0], tuple(one for inner in region.ops for one in _steps(inner))
        for inner in region.ops:
            if inner.operands != (given,):
                return ()
            given = inner.result
        return steps if len(steps) == len(region.ops) and region.results == (given,) else ()
    return (op.attributes,) if isinstance(op.attributes, Softcap) or _is_scale(op.attributes) else ()


def _is_scale(attributes: Attributes) -> bool:
    """Whether an operation multiplies by a number, or divides by one."""
    if not isinstance(attributes, Elementwise) or attributes.by is None:
        return False
    return attributes.operator == "mul" or (attributes.operator == "div" and not attributes.reverse)


# --- moving


def _taken_out(region: Region, place: int) -> tuple[Region, tuple[Op, ...]]:
    """The region with what the map takes as that result, and the operations that make of it what it was."""
    value, ops = region.results[place], _ops(region, region.results[place])
    assert ops is not None
    own = tuple(op for op in ops if op in region.ops)
    kept = tuple(op for op in region.ops if op not in own)
    if own == ops:
        x = ops[0].operands[0]
    else:
        made = own[0].operands[0] if own else value
        block = next(op for op in region.ops if made in op.results)
        inner, within = _taken_out(block.regions[0], block.results.index(made))
        x = Value(within[0].operands[0].type, made.name)
        results = tuple(x if v is made else v for v in block.results)
        opened = Op(block.attributes, block.operands, results, block.span, (inner,))
        kept = tuple(opened if op is block else op for op in kept)
        ops = (*_renamed(within, x, made), *own)
    results = tuple(x if i == place else v for i, v in enumerate(region.results))
    return Region(region.arguments, kept, results), ops


def _renamed(ops: tuple[Op, ...], x: Value, made: Value) -> tuple[Op, ...]:
    """The same operations of `x`, the last giving `made`."""
    found, given = [], x
    for op in ops:
        result = made if op is ops[-1] else op.result
        found.append(Op(op.attributes, (given, *op.operands[1:]), (result,), op.span, op.regions))
        given = result
    return tuple(found)
