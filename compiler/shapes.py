"""What every operation of a graph makes and costs: shape, parameters, FLOPs, and the bytes that backward keeps of it.

All of it exact, as polynomials over the dims that only data decides; repeats are folded. Counted as `passes/memory.py`
counts: each tensor that is saved belongs to the operation that made it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dskc.dsl.dims import Dim

from .ir import DType, Graph, Op, Region, TensorType, Value, captures
from .ops.attend import Attend
from .ops.base import Operation, Saved
from .ops.experts import Experts
from .ops.fused import Fused
from .ops.kernels import saved_by_kernel
from .ops.structure import Block, Extern, Keep, Repeat
from .ops.weights import Weights
from .passes.lift import last_maps, within_loss
from .recipe import Term

_ZERO = Dim.of(0)
_WIDTHS = {DType.INT64: 8, DType.BOOL: 1, DType.FP32: 4, DType.BF16: 2, DType.FP16: 2, DType.INT8: 1}


@dataclass(slots=True, eq=False)
class Row:
    """One operation, or what holds others: its costs are then those of all that it holds, a repeat's of all copies.

    flops: of matrix products in one forward pass, attention in full; causal: the same with causal attention counted as
    the half that it needs. saved: bytes.
    """

    name: str
    path: str
    kind: str
    shape: str
    parameters: int = 0
    flops: Dim = _ZERO
    causal: Dim = _ZERO
    saved: Dim = _ZERO
    copies: int = 1  # how often what it holds is there
    rows: list[Row] = field(default_factory=list)

    def close(self) -> None:
        """Adds up what it holds."""
        for row in self.rows:
            row.close()
            self.parameters += self.copies * row.parameters
            self.flops += self.copies * row.flops
            self.causal += self.copies * row.causal
            self.saved += self.copies * row.saved

    def flat(self, depth: int = 0, times: int = 1) -> Iterator[tuple[Row, int, int]]:
        """This row and those within, with their depth and how often each is there."""
        yield self, depth, times
        for row in self.rows:
            yield from row.flat(depth + 1, times * self.copies)


def shapes(
    graph: Graph, compute: DType, sizes: dict[str, int], kernels: bool = False, objective: tuple[Term, ...] = ()
) -> Row:
    """A model as a row. `compute` is the dtype of activations, `sizes` what is known of the dims of data.

    kernels: whether operations are computed by them, those of the runtime too. objective: what then takes the results,
    of which some need not be kept.
    """
    return _shapes(graph, compute, {**graph.sizes, **sizes}, kernels, objective)


def symbolic_shapes(graph: Graph, compute: DType) -> Row:
    """A model as a row whose costs speak of every dim by its name, known or not."""
    return _shapes(graph, compute, {})


def _shapes(
    graph: Graph, compute: DType, told: dict[str, int], kernels: bool = False, objective: tuple[Term, ...] = ()
) -> Row:
    names = {dim.equation: dim.name for dim in graph.dims if dim.equation is not None}
    widths = {**_WIDTHS, DType.COMPUTE: _WIDTHS[compute]}
    within = within_loss(last_maps(graph, objective)) if kernels else frozenset()
    return _Shapes(graph.sizes, told, widths, names, kernels, within).graph(graph)


@dataclass(slots=True)
class _Scope:
    """What is made and kept in one run of a body: the whole graph, or one copy of a repeat."""

    made: dict[Value, Row] = field(default_factory=dict)
    saved: dict[Value, None] = field(default_factory=dict)
    same: dict[Value, Value] = field(default_factory=dict)  # whatever it is called in the blocks that it passes
    unused: dict[Op, tuple[Row, Row]] = field(default_factory=dict)  # weights that nothing has used yet, and where

    def save(self, values: tuple[Value, ...]) -> None:
        for value in values:
            if value.type.dtype is not DType.PARAMS:
                self.saved[self._original(value)] = None

    def _original(self, value: Value) -> Value:
        while value in self.same:
            value = self.same[value]
        return value


@dataclass(slots=True)
class _Shapes:
    sizes: dict[str, int]
    told: dict[str, int]  # those that costs are told in
    widths: dict[DType, int]
    names: dict[Dim, str]  # of the dims that are equations
    kernels: bool
    within_loss: frozenset[Op]  # what is computed with a loss, some rows at a time
    owners: dict[Value, Op] = field(default_factory=dict)  # of weights

    def graph(self, graph: Graph) -> Row:
        top = Row(graph.name, "", "model", "")
        self._body(graph.body, top, graph.inputs)
        top.close()
        return top

    def _body(self, region: Region, into: Row, names: tuple[str, ...] = ()) -> None:
        """The rows of a body that runs by itself, and what is saved of it."""
        scope = _Scope()
        inputs = self._arguments(region, into, scope, names)
        self._region(region, into, scope)
        for value in scope.saved:
            if value in scope.made:  # what comes from outside is counted there
                scope.made[value].saved += self._bytes(value.type.elements, value.type.dtype)
        into.rows[:0] = [row for row in inputs if names or row.saved != 0]

    def _region(self, region: Region, into: Row, scope: _Scope) -> None:
        for op in region.ops:
            if isinstance(op.attributes, Weights):
                self._weights(op, op.attributes, into, scope)
            else:
                self._op(op, into, scope)

    def _op(self, op: Op, into: Row, scope: _Scope) -> None:
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        row = self._row(op, attributes)
        kept = saved_by_kernel(op, self.sizes) if self.kernels else None
        into.rows.append(row)
        self._use(op, row, scope)
        scope.made.update(dict.fromkeys(op.results, row))
        if isinstance(attributes, Keep):
            scope.same.update(zip(op.results, op.operands, strict=True))
        elif isinstance(attributes, Block):
            (region,) = op.regions
            scope.same.update(zip(region.arguments, op.operands, strict=True))
            self._region(region, row, scope)
            scope.same.update(zip(op.results, region.results, strict=True))
        elif isinstance(attributes, Repeat):
            scope.save((*op.operands, *captures(op)))
            self._repeat(op, attributes, row)
        elif isinstance(attributes, Experts):
            inputs = self._arguments(op.regions[0], row, scope, ())
            if kept is None:
                self._region(op.regions[0], row, scope)
            else:
                self._inside(op.regions[0], row, scope)
            row.rows[:0] = inputs
        elif isinstance(attributes, Extern):
            row.saved += self._bytes(attributes.stated_saved, DType.COMPUTE)
        saved = Saved() if op in self.within_loss else kept or attributes.saved(op)
        scope.save(saved.values)
        for size, kind in saved.extra:
            row.saved += self._bytes(size, DType(kind))
        row.flops = self._known(attributes.flops(op))
        halved = isinstance(attributes, Attend) and attributes.mask is not None and "causal" in attributes.mask.names
        row.causal = row.flops / 2 if halved else row.flops

    def _inside(self, region: Region, row: Row, scope: _Scope) -> None:
        """The rows of what one kernel computes, which keep nothing by themselves."""
        self._region(region, row, replace(scope, saved={}))
        for inner in row.rows:
            inner.saved = _ZERO

    def _repeat(self, op: Op, attributes: Repeat, row: Row) -> None:
        if len(op.regions) == 1:
            row.copies = attributes.count
            self._body(op.regions[0], row)
            return
        for region, count in zip(op.regions, attributes.region_counts, strict=True):
            kind = f"{count} of {attributes.count}"
            variant = Row("", attributes.path, kind, self._shape(region.results[: attributes.carried]), copies=count)
            row.rows.append(variant)
            self._body(region, variant)

    # --- rows

    def _row(self, op: Op, attributes: Operation) -> Row:
        path, kind, results = str(getattr(attributes, "path", "")), op.kind, op.results
        if isinstance(attributes, Block):
            kind = attributes.block or "group"
        elif isinstance(attributes, Repeat):
            kind, results = f"repeat {attributes.count}", op.results[: attributes.carried]
        elif isinstance(attributes, Fused):
            kind = attributes.name
        elif isinstance(attributes, Experts):
            kind = f"{int(attributes.count.size.evaluate(self.sizes))} x {attributes.block}"
        for value in op.operands:
            owner = self.owners[value].attributes if value in self.owners else None
            path = path or (owner.path if isinstance(owner, Weights) else "")
        name = path.rsplit(".", 1)[-1] if path else ", ".join(v.name for v in op.results if v.name)
        return Row(name, path, kind, self._shape(results))

    def _arguments(self, region: Region, into: Row, scope: _Scope, names: tuple[str, ...]) -> list[Row]:
        rows = []
        for i, value in enumerate(region.arguments):
            scope.made[value] = Row(names[i] if names else value.name or "", into.path, "input", self._shape((value,)))
            rows.append(scope.made[value])
        return rows

    def _weights(self, op: Op, attributes: Weights, into: Row, scope: _Scope) -> None:
        """Weights belong to the operation that first uses them; a row of their own only until there is one."""
        row = Row(attributes.name, attributes.path, "weights", self._shape(op.results))
        row.parameters = int(attributes.elements.evaluate(self.sizes))
        into.rows.append(row)
        self.owners.update(dict.fromkeys(op.results, op))
        scope.unused[op] = (row, into)

    def _use(self, op: Op, row: Row, scope: _Scope) -> None:
        """Takes over the weights that an operation uses; those outside of a repeat stay there, where they are once."""
        for value in op.operands:
            owner = self.owners.get(value)
            if owner in scope.unused:
                declared, into = scope.unused.pop(owner)
                row.parameters += declared.parameters
                into.rows.remove(declared)

    # --- sizes

    def _known(self, size: Dim) -> Dim:
        return size.substitute(self.told)

    def _bytes(self, elements: Dim, dtype: DType) -> Dim:
        return self._known(elements) * self.widths[dtype]

    def _shape(self, values: tuple[Value, ...]) -> str:
        return ", ".join(self._type(value.type) for value in values)

    def _type(self, kind: TensorType) -> str:
        """As specs write it, `[B, S, H, E]`."""
        axes = ", ".join(self.names.get(axis.size, str(axis.size)) for axis in kind.axes)
        return f"ids[{axes}]" if kind.dtype is DType.INT64 else f"[{axes}]"
