"""fuse: chains of operations that work row by row become one kernel each.

An operation joins the group that computes what it reads, where both work on the same rows and columns and nothing
outside the group stands between them. What torch does in one kernel is left to it when it would be alone. A user's
block of such operations joins like any other: nothing here knows the names of blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dskc.dsl.source import Span

from ..ir import FLOATING, DType, Graph, Op, Region, TensorType, Value, walk
from ..ops.arrange import Gather
from ..ops.base import RowOperation
from ..ops.cross_entropy import CrossEntropy
from ..ops.elementwise import Cast, Dropout, Elementwise
from ..ops.fused import Fused
from ..ops.position import Positions, Rope, RopeTable
from ..ops.quantize import Quantize
from ..ops.routing import TopK
from ..ops.structure import Block
from ..ops.weights import Weights
from ..recipe import Term
from ..rows.name import kernel_name, operand_names, variable
from ..rows.program import build, layout_of

MOST_CHOICES = 4096  # columns among which a kernel chooses: they are held in one block
MOST_CHOSEN = 64
FIXED = (RopeTable, Positions)  # what these give is learned by nobody, so no gradient is wanted of it


def fuse(graph: Graph) -> Graph:
    """The graph with its groups."""
    fixed = frozenset(v for op, _ in walk(graph.body) if isinstance(op.attributes, FIXED) for v in op.results)
    weights = {v: op for op, _ in walk(graph.body) if isinstance(op.attributes, Weights) for v in op.results}
    return replace(graph, body=_Fuser(graph, fixed, weights).region(graph.body))


def loss_kernel(graph: Graph, term: Term) -> Op:
    """The cross entropy of a term of an objective, as the kernel that computes it row by row."""
    logits = dict(zip(graph.results, graph.body.results, strict=False))[term.result or ""]
    targets = Value(TensorType(logits.type.axes[:-1], DType.INT64), "target")
    attributes = CrossEntropy(term.z, term.smoothing)
    given = Value(logits.type, "logits"), targets
    op = Op(attributes, given, (Value(attributes.infer(*(v.type for v in given))[0], "loss"),), graph.body.ops[-1].span)
    return _Fuser(graph, frozenset(), {}).fused([op], given, op.results)


@dataclass(slots=True)
class _Fuser:
    graph: Graph
    fixed: frozenset[Value]
    weights: dict[Value, Op]
    blocks: dict[Span, str] = field(default_factory=dict)  # where operations of blocks without weights come from

    def region(self, region: Region) -> Region:
        ops = [self._within(op) for op in region.ops]
        region = _inline(Region(region.arguments, tuple(ops), region.results), self.blocks)
        groups = _Groups(region.ops, self.graph.sizes)
        for i in range(len(region.ops)):
            groups.place(i)
        units = [self._unit(region, [region.ops[i] for i in members]) for members in groups.ordered()]
        return Region(region.arguments, tuple(op for unit in units for op in unit), region.results)

    def _within(self, op: Op) -> Op:
        if not op.regions:
            return op
        return Op(op.attributes, op.operands, op.results, op.span, tuple(self.region(r) for r in op.regions))

    def _unit(self, region: Region, ops: list[Op]) -> tuple[Op, ...]:
        """A group as one operation; as it was, where it is not worth a kernel."""
        if not _worth(ops) or not all(can_fuse(op, self.graph.sizes) for op in ops):
            return tuple(ops)
        inside = {v for op in ops for v in op.results}
        given = tuple(dict.fromkeys(v for op in ops for v in op.operands if v not in inside))
        given = tuple(sorted(given, key=lambda v: v in self.weights))  # weights last
        needed = {v for op in region.ops if op not in ops for v in _seen(op)} | set(region.results)
        results = tuple(v for op in ops for v in op.results if v in needed)
        if not results or not _has_dtypes(ops, given, results):
            return tuple(ops)
        return (self.fused(ops, given, results),)

    def fused(self, ops: list[Op], given: tuple[Value, ...], results: tuple[Value, ...]) -> Op:
        names, labels = operand_names(ops, given, results, self.weights)
        inner = {v: Value(v.type, v.name) for v in given}
        made: list[Op] = []
        for op in ops:
            copies = tuple(Value(v.type, v.name) for v in op.results)
            made.append(Op(op.attributes, tuple(inner[v] for v in op.operands), copies, op.span))
            inner.update(zip(op.results, copies, strict=True))
        body = Region(tuple(inner[v] for v in given), tuple(made), tuple(inner[v] for v in results))
        name = kernel_name(ops, self.blocks)
        fixed = frozenset(inner[v] for v in given if v in self.fixed)
        program = build(name, body, names, labels, self.graph.sizes, fixed)
        made_by = {v: op for op in ops for v in op.results}
        variables = tuple(variable(made_by[v], self.weights) for v in results)
        return Op(Fused(name, names, labels, variables, program), given, results, ops[-1].span, (body,))


def _worth(ops: list[Op]) -> bool:
    if not all(isinstance(op.attributes, RowOperation) for op in ops):
        return False
    return len(ops) > 1 or any(op.attributes.alone for op in ops if isinstance(op.attributes, RowOperation))


def _has_dtypes(ops: list[Op], given: tuple[Value, ...], results: tuple[Value, ...]) -> bool:
    """Whether each dtype that is cast to, or that a result has, is that of something given."""
    there = {v.type.dtype for v in given}
    if any(isinstance(op.attributes, Cast) and op.attributes.dtype is DType.COMPUTE for op in ops) and (
        DType.COMPUTE not in there
    ):
        return False
    return all(v.type.dtype is not DType.PARAMS and (v.type.dtype is not DType.COMPUTE or v.type.dtype in there)
               for v in results)  # fmt: skip


def _seen(op: Op) -> Iterator[Value]:
    yield from op.operands
    for region in op.regions:
        yield from region.results
        for inner in region.ops:
            yield from _seen(inner)


# --- blocks without weights


def _inline(region: Region, blocks: dict[Span, str]) -> Region:
    """The region with blocks of nothing but row operations replaced by these; `blocks` learns whose they were."""
    new: dict[Value, Value] = {}
    ops: list[Op] = []
    for op in region.ops:
        operands = tuple(new.get(v, v) for v in op.operands)
        if not _is_plain(op):
            ops.append(_again(op, operands, new))
            continue
        (body,) = op.regions
        new.update(zip(body.arguments, operands, strict=True))
        assert isinstance(op.attributes, Block)
        for inner in _flat(body):
            blocks.setdefault(inner.span, op.attributes.block or op.attributes.path.rsplit(".", 1)[-1])
            ops.append(Op(inner.attributes, tuple(new.get(v, v) for v in inner.operands), inner.results, inner.span))
        new.update((outer, new.get(v, v)) for outer, v in zip(op.results, body.results, strict=True))
        # What the block's result is called outside is what it is called.
        ops = [_named(made, {new[v]: v.name for v in op.results if v.name}, new) for made in ops]
    return Region(region.arguments, tuple(ops), tuple(new.get(v, v) for v in region.results))


def _again(op: Op, operands: tuple[Value, ...], new: dict[Value, Value]) -> Op:
    if not new:
        return op
    regions = tuple(
        Region(r.arguments, tuple(_again(o, tuple(new.get(v, v) for v in o.operands), new) for o in r.ops),
               tuple(new.get(v, v) for v in r.results))
        for r in op.regions
    )  # fmt: skip
    return Op(op.attributes, operands, op.results, op.span, regions)


def _named(op: Op, names: dict[Value, str], new: dict[Value, Value]) -> Op:
    """The operation, its results renamed: values are compared by identity, so what reads them is told."""
    if not any(v in names and v.name is None for v in op.results):
        return op
    results = tuple(v.renamed(names[v]) if v in names and v.name is None else v for v in op.results)
    for old, made in zip(op.results, results, strict=True):
        for key, value in list(new.items()):
            if value is old:
                new[key] = made
        new[old] = made
    return Op(op.attributes, op.operands, results, op.span, op.regions)


def _is_plain(op: Op) -> bool:
    attributes = op.attributes
    if not isinstance(attributes, Block) or attributes.losses:
        return False
    return bool(op.regions[0].ops) and all(
        isinstance(inner.attributes, RowOperation | Fused) for inner in op.regions[0].ops
    )


def _flat(region: Region) -> Iterator[Op]:
    """The operations of a region, those of groups made within it one by one: groups are made anew around them."""
    for op in region.ops:
        if not isinstance(op.attributes, Fused):
            yield op
            continue
        (body,) = op.regions
        new = dict(zip(body.arguments, op.operands, strict=True))
        new.update(zip(body.results, op.results, strict=True))
        for inner in body.ops:
            operands = tuple(new.get(v, v) for v in inner.operands)
            results = tuple(new.get(v, v) for v in inner.results)
            yield Op(inner.attributes, operands, results, inner.span)


# --- groups


@dataclass(slots=True)
class _Groups:
    """Which operations of a region stand together. Sets of operations are numbers, a bit for each."""

    ops: tuple[Op, ...]
    sizes: dict[str, int]
    group: dict[int, set[int]] = field(default_factory=dict)
    behind: list[int] = field(default_factory=list)  # all that each operation rests on
    made: dict[Value, int] = field(default_factory=dict)

    def place(self, i: int) -> None:
        """Puts the next operation into a group, joining those that compute what it reads where that is allowed."""
        op = self.ops[i]
        before = [self.made[v] for v in _seen(op) if v in self.made]
        rests = 0
        for j in before:
            rests |= self.behind[j] | 1 << j
        self.behind.append(rests)
        self.made.update((v, i) for v in op.results)
        self.group[i] = {i}
        if not can_fuse(op, self.sizes):
            return
        for j in dict.fromkeys(self.made[v] for v in op.operands if v in self.made):
            if j in self.group[i] or not can_fuse(self.ops[j], self.sizes):
                continue
            joined = self.group[i] | self.group[j]
            if self._allowed(joined):
                for k in joined:
                    self.group[k] = joined

    def _allowed(self, members: set[int]) -> bool:
        ops = [self.ops[k] for k in sorted(members)]
        if not _together(ops):
            return False
        mask = sum(1 << k for k in members)
        outside = {self.made[v] for op in ops for v in op.operands if v in self.made} - members
        return all(not self.behind[j] & mask for j in outside)

    def ordered(self) -> list[list[int]]:
        """The groups so that each comes behind what it reads: at the place of its last operation, or sooner."""
        done: set[int] = set()
        order: list[list[int]] = []

        def emit(i: int) -> None:
            members = sorted(self.group[i])
            if done & set(members):
                return
            done.update(members)
            for k in members:
                for v in _seen(self.ops[k]):
                    j = self.made.get(v)
                    if j is not None and j not in done:
                        emit(j)
            order.append(members)

        for i in range(len(self.ops)):
            if i == max(self.group[i]):
                emit(i)
        return order


def can_fuse(op: Op, sizes: dict[str, int]) -> bool:
    """Whether an operation by itself could be a kernel."""
    attributes = op.attributes
    if not isinstance(attributes, RowOperation):
        return False
    lead = op.results[0].type.axes[:-1]
    if not lead or (isinstance(attributes, Cast | Elementwise) and op.result.type.dtype not in FLOATING):
        return False
    try:
        for value in op.operands:
            if not value.type.axes:
                return False
            layout_of(value.type, lead)
            if isinstance(attributes, Elementwise) and value.type.axes[-1].size != op.result.type.axes[-1].size:
                return False  # one number for a row's whole width: no load of a kernel's is of that form
    except ValueError:
        return False
    if isinstance(attributes, TopK | Gather):
        among, chosen = (v.type.axes[-1].size for v in (op.operands[0], op.result))
        known = among.symbols() | chosen.symbols() <= sizes.keys()
        return known and among.evaluate(sizes) <= MOST_CHOICES and chosen.evaluate(sizes) <= MOST_CHOSEN
    return True


def _together(ops: list[Op]) -> bool:
    """Whether operations work on the same rows, and on columns that one kernel can hold."""
    lead = tuple(a.size for a in ops[0].results[0].type.axes[:-1])
    if any(tuple(a.size for a in op.results[0].type.axes[:-1]) != lead for op in ops):
        return False
    chosen = {op.result.type.axes[-1].size for op in ops if isinstance(op.attributes, TopK | Gather)}
    columns = {op.results[0].type.axes[-1].size for op in ops} | {
        op.operands[0].type.axes[-1].size for op in ops if isinstance(op.attributes, TopK | Gather)
    }
    if len(columns - chosen) > 1:
        return False
    turns = {(op.attributes, op.operands[1].type.axes[-1].size) for op in ops if isinstance(op.attributes, Rope)}
    picky = (TopK, Gather, Dropout, Quantize)
    return len(turns) <= 1 and not (turns and any(isinstance(op.attributes, picky) for op in ops))
