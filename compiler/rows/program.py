"""A row program: forward and backward kernels of a group of operations, and what stands between them.

`build` reads a closed region of row operations (see `ops/fused.py`). What backward needs it reads again from arguments
and results, or computes again; numbers that took a reduction to get are saved where rows are wide (`SAVE_FROM`): a few
bytes a row, against a further pass over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from dskc.dsl.dims import Dim

from ..ir import FLOATING, Axis, DType, Region, TensorType, Value
from ..ops.base import RowOperation
from ..ops.position import Rope
from .derive import derive
from .node import REDUCTIONS, Columns, Node, Nodes, reachable
from .row import Row, Writing

SAVE_FROM = 256  # columns: in narrower rows a reduction costs less than its result's way to memory and back
MOST_CUTS = 4  # results of which each choice is tried as what backward reads


class Layout(StrEnum):
    """How a tensor lies over rows and columns."""

    ROWS = "rows"  # every row has its own columns
    ONE = "one"  # one number a row
    VECTOR = "vector"  # the same columns for every row
    PART = "part"  # rows that come again: by position, for every sequence and head


@dataclass(frozen=True, slots=True)
class Part:
    """A run of a tensor's columns: `start` is an expression of the kernel's sizes."""

    columns: Columns
    start: str = ""
    step: int = 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that a kernel reads or writes. `width`: its last axis. A PART has the rows' axes from `first` on."""

    name: str
    layout: Layout
    dtype: DType
    width: Columns | None = None
    parts: tuple[Part, ...] = ()
    first: int = 0
    count: int = 0  # of axes, of a PART

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATING


@dataclass(frozen=True, slots=True)
class Store:
    """What a kernel writes, one expression for each part. `summed`: over rows, in two stages."""

    tensor: Tensor
    values: tuple[Node, ...]
    summed: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: reads, then writes. `dtypes`: the tensor whose dtype a value is rounded to, by result."""

    name: str
    loads: tuple[Tensor, ...]
    stores: tuple[Store, ...]
    nodes: Nodes
    rounded: tuple[tuple[str, str], ...] = ()

    @property
    def results(self) -> tuple[Node, ...]:
        return tuple(value for store in self.stores for value in store.values)


@dataclass(frozen=True, slots=True)
class Gradient:
    """Of one argument: the store that has it, which two arguments may share."""

    argument: str
    store: str


@dataclass(frozen=True, slots=True)
class RowProgram:
    """Everything that generated code and the memory ledger need to know of a fused group."""

    arguments: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]  # one number a row each
    kept: tuple[str, ...]  # arguments and results that backward reads
    gradients: tuple[Gradient, ...]
    probabilities: tuple[float, ...]
    forward: Kernel
    backward: Kernel | None


def build(name: str, region: Region, names: Sequence[str], result_names: Sequence[str], sizes: Mapping[str, int],
          fixed: frozenset[Value] = frozenset()) -> RowProgram:  # fmt: skip
    """The program of a closed region. `fixed`: arguments that no gradient is wanted of."""
    builder = _Builder(region, sizes)
    arguments = tuple(builder.tensor(value, n) for value, n in zip(region.arguments, names, strict=True))
    results, stores = builder.forward(arguments, result_names)
    differentiable = tuple(
        t for value, t in zip(region.arguments, arguments, strict=True)
        if t.floating and value not in fixed
    )  # fmt: skip
    backward = _Backward(name, builder.writing.nodes, arguments, tuple(stores), differentiable)
    kernel, saved, kept, gradients = backward.build()
    forward = Kernel(name, arguments, (*stores, *saved), builder.writing.nodes, _itself(results))
    return RowProgram(
        arguments,
        results,
        tuple(store.tensor for store in saved),
        kept,
        gradients,
        tuple(builder.writing.probabilities),
        forward,
        kernel,
    )


def _itself(results: Sequence[Tensor]) -> tuple[tuple[str, str], ...]:
    return tuple((t.name, t.name) for t in results)


class _Builder:
    """Lays tensors out, and runs the operations of a region over rows."""

    def __init__(self, region: Region, sizes: Mapping[str, int]) -> None:
        self.region, self.sizes = region, sizes
        self.writing = Writing(Nodes(), lambda axis: self.columns(axis)[0])
        self.lead = lead_axes(region)
        self.known: dict[Dim, tuple[Columns, tuple[Part, ...]]] = {}
        self.taken: set[str] = set()
        for op in region.ops:
            if isinstance(op.attributes, Rope):
                self._divide(op.attributes, op.operands[0].type.axes[-1], op.operands[1].type.axes[-1])

    # --- layout

    def tensor(self, value: Value, name: str) -> Tensor:
        kind = value.type
        layout, first = layout_of(kind, self.lead)
        if layout is Layout.ONE:
            return Tensor(name, layout, kind.dtype)
        width, parts = self.columns(kind.axes[-1])
        count = len(kind.axes) - 1 if layout is Layout.PART else 0
        return Tensor(name, layout, kind.dtype, width, parts, first, count)

    def columns(self, axis: Axis) -> tuple[Columns, tuple[Part, ...]]:
        if axis.size not in self.known:
            columns = Columns(self._name(axis.name), self._size(axis.size))
            self.known[axis.size] = (columns, (Part(columns),))
        return self.known[axis.size]

    def _divide(self, rope: Rope, whole: Axis, half: Axis) -> None:
        """Two halves that turn together, and what passes."""
        if whole.size in self.known:
            return
        size, turned = self._size(whole.size), self._size(half.size)
        assert turned is not None, "how much a rotation turns is known"
        width = Columns(self._name(whole.name), size)
        columns = Columns(self._name(f"{whole.name}h"), turned)
        h = columns.name
        starts = ("", h) if rope.pairs == "half" else ("", "1")
        parts = [Part(columns, start, 1 if rope.pairs == "half" else 2) for start in starts]
        if size is None or size > 2 * turned:
            assert size is not None, "a rotated width is known"
            parts.append(Part(Columns(self._name(f"{whole.name}r"), size - 2 * turned), f"2 * {h}"))
        self.known[whole.size] = (width, tuple(parts))
        self.known[half.size] = (columns, (Part(columns),))

    def _name(self, wanted: str) -> str:
        wanted = wanted or "C"  # columns, of an axis that is a number and has no name
        name, n = wanted, 2
        while name in self.taken:
            name, n = f"{wanted}{n}", n + 1
        self.taken.add(name)
        return name

    def _size(self, size: Dim) -> int | None:
        return int(size.evaluate(dict(self.sizes))) if size.symbols() <= self.sizes.keys() else None

    # --- rows

    def forward(self, arguments: Sequence[Tensor], names: Sequence[str]) -> tuple[tuple[Tensor, ...], list[Store]]:
        rows = {v: self._load(t) for v, t in zip(self.region.arguments, arguments, strict=True)}
        wanted = dict(zip(self.region.results, names, strict=True))
        found: dict[Value, Store] = {}
        for op in self.region.ops:
            attributes = op.attributes
            assert isinstance(attributes, RowOperation)
            made = attributes.rows(self.writing, *(rows[v] for v in op.operands))
            for value, row in zip(op.results, made, strict=True):
                if value in wanted:
                    tensor = self.tensor(value, wanted[value])
                    if tensor.floating:  # what goes on is what is stored, so that backward may read it instead
                        nodes, name = self.writing.nodes, tensor.name
                        row = Row(nodes, tuple(nodes.round_as(part, name) for part in row.parts))
                    row = row.called(tensor.name)
                    found[value] = Store(tensor, row.parts)
                elif value.name:
                    row = row.called(value.name)
                rows[value] = row
        stores = [found[value] for value in self.region.results]
        return tuple(store.tensor for store in stores), stores

    def _load(self, tensor: Tensor) -> Row:
        nodes, rows = self.writing.nodes, tensor.layout is not Layout.VECTOR
        if tensor.layout is Layout.ONE:
            return Row(nodes, (nodes.load(tensor.name, None, True),)).called(tensor.name)
        labels = part_names(tensor)
        loaded = (nodes.load(label, p.columns, rows) for label, p in zip(labels, tensor.parts, strict=True))
        return Row(nodes, tuple(loaded)).called(tensor.name)


def lead_axes(region: Region) -> tuple[Axis, ...]:
    """The axes that number the rows: those of the longest tensor but its last."""
    kinds = (value.type for op in region.ops for value in (*op.operands, *op.results))
    return max(kinds, key=lambda kind: len(kind.axes)).axes[:-1]


def layout_of(kind: TensorType, lead: tuple[Axis, ...]) -> tuple[Layout, int]:
    """How a tensor lies over rows numbered by `lead`; for a PART also at which of those axes its own begin.

    Raises ValueError for one that does not.
    """
    sizes, own = [a.size for a in lead], [a.size for a in kind.axes]
    if own == sizes:
        return Layout.ONE, 0
    if own[:-1] == sizes and own:
        return Layout.ROWS, 0
    if len(own) == 1:
        return Layout.VECTOR, 0
    for first in (len(sizes) - len(own) + 1, 1):  # as elementwise operations align, from the right; as rotations do
        if own[:-1] and first >= 0 and own[:-1] == sizes[first : first + len(own) - 1]:
            return Layout.PART, first
    raise ValueError(f"{kind} does not lie over rows {lead}")


def part_names(tensor: Tensor) -> tuple[str, ...]:
    """What the loads of a tensor's parts are labelled: its name, numbered where there are several."""
    return tuple(f"{tensor.name}:{i}" if len(tensor.parts) > 1 else tensor.name for i in range(len(tensor.parts)))


@dataclass(slots=True)
class _Backward:
    """Derives the gradients, and decides what they are computed from."""

    name: str
    nodes: Nodes
    arguments: tuple[Tensor, ...]
    stores: tuple[Store, ...]
    differentiable: tuple[Tensor, ...]

    def build(self) -> tuple[Kernel | None, tuple[Store, ...], tuple[str, ...], tuple[Gradient, ...]]:
        seeds, loads = self._seeds()
        if not seeds or not self.differentiable:
            return None, (), (), ()
        forward = set(reachable(value for store in self.stores for value in store.values))
        wanted = [self._loaded(tensor) for tensor in self.differentiable]
        flat = iter(derive(self.nodes, seeds, [node for parts in wanted for node in parts]))
        found = [tuple(next(flat) or self.nodes.constant(0.0) for _ in parts) for parts in wanted]
        cut = self._cut(found, forward)
        saved = self._saved(found, forward, cut)
        into = cut | {node: self.nodes.load(store.tensor.name, None, True) for store in saved for node in store.values}
        found = [tuple(substitute(self.nodes, parts, into)) for parts in found]
        stores, gradients = self._stores(found)
        kernel = self._kernel(stores, loads, saved)
        own = {t.name for t in (*self.arguments, *(s.tensor for s in self.stores))}
        return kernel, saved, tuple(t.name for t in kernel.loads if t.name in own), gradients

    def _seeds(self) -> tuple[dict[Node, Node], list[Tensor]]:
        """The gradients of results, as they come."""
        seeds: dict[Node, Node] = {}
        loads = []
        for store in self.stores:
            t = store.tensor
            if not t.floating or all(v.kind == "round_as" and v.operands[0].kind == "stop" for v in store.values):
                continue
            given = Tensor(f"grad_{t.name}", t.layout, t.dtype, t.width, t.parts)
            labels = part_names(given) if t.parts else (given.name,)
            for value, label in zip(store.values, labels, strict=True):
                seeds[value] = self.nodes.load(label, value.columns if t.parts else None, True)
                self.nodes.hints.setdefault(seeds[value], f"grad_{t.name}")
            loads.append(given)
        return seeds, loads

    def _loaded(self, tensor: Tensor) -> tuple[Node, ...]:
        rows = tensor.layout is not Layout.VECTOR
        if tensor.layout is Layout.ONE:
            return (self.nodes.load(tensor.name, None, True),)
        labels = zip(part_names(tensor), tensor.parts, strict=True)
        return tuple(self.nodes.load(label, part.columns, rows) for label, part in labels)

    def _cut(self, gradients: list[tuple[Node, ...]], forward: set[Node]) -> dict[Node, Node]:
        """The results that are read instead of being computed again: the choice with the fewest columns to read."""
        roots = [node for parts in gradients for node in parts]
        choices = []
        fixed: dict[Node, Node] = {}
        for store in self.stores:
            t = store.tensor
            given = dict(zip(store.values, self._loaded(t), strict=True))
            if any(value.kind == "top_k" for value in store.values):
                fixed |= given
            elif t.floating and not any(value.kind == "load" for value in store.values):
                choices.append(given)
        best: tuple[tuple[int, int], dict[Node, Node]] | None = None
        for count in range(min(len(choices), MOST_CUTS) + 1):
            for chosen in combinations(choices, count):
                cut = dict(fixed)
                for given in chosen:
                    cut |= given
                read = _columns_read(substitute(self.nodes, roots, cut))
                if best is None or (read, count) < best[0]:
                    best = ((read, count), cut)
        assert best is not None
        return best[1]

    def _saved(self, gradients: list[tuple[Node, ...]], forward: set[Node], cut: dict[Node, Node]) -> tuple[Store, ...]:
        """Numbers a row that took a reduction to get, and that expressions over columns need."""
        saved: dict[Node, None] = {}
        roots = [node for parts in gradients for node in parts]
        reduced: dict[Node, int] = {}
        for node in sorted(forward, key=lambda n: n.number):
            widths = [_width(o.columns) if node.kind in REDUCTIONS else reduced[o] for o in node.operands]
            reduced[node] = max(widths, default=0) if node.columns is None else 0
        seen: set[Node] = set()
        waiting = list(roots)
        while waiting:
            node = waiting.pop()
            if node in seen or node in cut:
                continue
            seen.add(node)
            for operand in node.operands:
                narrow = operand in forward and operand.columns is None and operand.kind != "load"
                if narrow and reduced[operand] >= SAVE_FROM and (node.columns is not None or node not in forward):
                    saved[operand] = None
                else:
                    waiting.append(operand)
        stores, taken = [], {t.name for t in (*self.arguments, *(s.tensor for s in self.stores))}
        for node in sorted(saved, key=lambda n: n.number):
            name = base = self.nodes.hints.get(node, "saved")
            while name in taken:
                name = f"{base}{len(taken)}"
            taken.add(name)
            stores.append(Store(Tensor(name, Layout.ONE, DType.FP32), (node,)))
        return tuple(stores)

    def _stores(self, found: list[tuple[Node, ...]]) -> tuple[tuple[Store, ...], tuple[Gradient, ...]]:
        stores: dict[tuple[object, ...], Store] = {}
        gradients = []
        for tensor, parts in zip(self.differentiable, found, strict=True):
            summed, part = tensor.layout is Layout.VECTOR, tensor.layout is Layout.PART
            # What comes again has its gradient for every row, to be summed over those where it did.
            layout, dtype = (Layout.ROWS, DType.FP32) if part else (tensor.layout, tensor.dtype)
            key = (parts, tensor.layout, tensor.dtype, tensor.width)
            if key not in stores:
                made = Tensor(f"grad_{tensor.name}", layout, dtype, tensor.width, tensor.parts)
                if made.name in {f"grad_{store.tensor.name}" for store in self.stores}:  # the result's of that name
                    made = Tensor(f"{made.name}_in", layout, dtype, tensor.width, tensor.parts)
                stores[key] = Store(made, parts, summed)
                for node in parts:
                    self.nodes.hints.setdefault(node, made.name.removesuffix("_in"))
            gradients.append(Gradient(tensor.name, stores[key].tensor.name))
        return tuple(stores.values()), tuple(gradients)

    def _kernel(self, stores: tuple[Store, ...], loads: list[Tensor], saved: tuple[Store, ...]) -> Kernel:
        used = {str(node.label).split(":")[0] for node in reachable(v for s in stores for v in s.values)
                if node.kind == "load"}  # fmt: skip
        rounding = {node.label for node in reachable(v for s in stores for v in s.values) if node.kind == "round_as"}
        of_results = [s.tensor for s in self.stores]
        candidates = (*self.arguments, *of_results, *(s.tensor for s in saved), *loads)
        rounded = tuple((t.name, f"grad_{t.name}") for t in of_results if t.floating)
        needed = used | {grad for name, grad in rounded if name in rounding}
        return Kernel(
            f"{self.name}_backward", tuple(t for t in candidates if t.name in needed), stores, self.nodes, rounded
        )


def substitute(nodes: Nodes, roots: Sequence[Node], into: Mapping[Node, Node]) -> Iterator[Node]:
    """The expressions with some of their nodes replaced."""
    made: dict[Node, Node] = dict(into)
    for node in reachable(roots, frozenset(into)):
        if node not in made:
            operands = tuple(made[operand] for operand in node.operands)
            made[node] = nodes.make(node.kind, operands, node.columns, node.rows, node.label)
            if node in nodes.hints:
                nodes.hints.setdefault(made[node], nodes.hints[node])
    return (made[root] for root in roots)


def _columns_read(roots: Iterator[Node]) -> int:
    loads = [n for n in reachable(roots) if n.kind == "load" and n.columns is not None and n.rows]
    return sum(_width(node.columns) for node in loads)


def _width(columns: Columns | None) -> int:
    if columns is None:
        return 0
    return columns.size if columns.size is not None else 1 << 20
