"""What changes results though every parameter fits: another rope, another eps, other heads, an operation more or less.

Two graphs are compared as dataflow, not as text: values are numbered so that equal computations have equal numbers,
whatever they are called, in whatever order they stand and in whatever blocks. The first operations that differ are
reported and then taken for equal, so that what follows from them is not reported again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from dskc.dsl.dims import Dim
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from ..ir import Axis, Graph, Op, Region, Value, captures
from ..ops.experts import Experts
from ..ops.structure import Block, Keep, Repeat
from ..ops.weights import Weights
from ..signature import Record
from .fold import ranges
from .tensors import Tensors, user_span

_SILENT = frozenset(
    {"bias", "path", "name", "doc", "block", "results", "losses", "carried", "variants", "types", "dropout"}
)
_SILENT_KINDS = frozenset({"dropout"})  # what only training does
_IMPLIED = frozenset({"positions", "rope_table"})  # there for a rope, which is reported itself
_COMMUTATIVE = frozenset({"add", "mul"})
Sites = tuple[Span | None, Span | None]


@dataclass(frozen=True, slots=True)
class Meaning:
    """One change: where in the model, what, and the line of the new spec (of the old one for what is gone)."""

    scope: str
    text: str
    span: Span


@dataclass(slots=True, eq=False)
class Node:
    """An operation out of its blocks. facts: its attributes, as far as they change results."""

    op: Op
    scope: str
    inputs: tuple[Value, ...]
    facts: dict[str, object]
    span: Span  # the user's line, where it stands in a block of the library
    settled: bool = False

    @property
    def kind(self) -> str:
        return self.op.kind


def compare_meaning(old: Graph, new: Graph, tensors: Tensors) -> list[Meaning]:
    """Everything that gives other results with the same weights."""
    comparison = _Comparison(_Side(old), _Side(new), tensors)
    for i, (name, value) in enumerate(zip(new.inputs, new.body.arguments, strict=True)):
        comparison.new.numbers[value] = comparison.number(("input", name))
        if name not in old.inputs and i < len(old.inputs) and old.inputs[i] not in new.inputs:
            comparison.old.numbers[old.body.arguments[i]] = comparison.number(("input", name))
    for name, value in zip(old.inputs, old.body.arguments, strict=True):
        comparison.old.numbers.setdefault(value, comparison.number(("input", name)))
    results = [name for name in old.results if name in new.results]
    before, after = (dict(zip(g.results, g.body.results, strict=False)) for g in (old, new))
    pairs = [(before[name], after[name]) for name in results] or [(old.body.results[0], new.body.results[0])]
    comparison.regions(old.body, new.body, pairs, "")
    for name in old.results:
        if name not in new.results and results:
            comparison.say("", f"the result `{name}` is gone", new.span)
    return list({(m.scope, m.text): m for m in reversed(comparison.found)}.values())[::-1]


@dataclass(slots=True)
class _Side:
    graph: Graph
    numbers: dict[Value, int] = field(default_factory=dict)
    same: dict[Value, Value] = field(default_factory=dict)
    weights: set[Value] = field(default_factory=set)
    foreign: set[Value] = field(default_factory=set)  # what only this side has: weights, and what is made of them

    def original(self, value: Value) -> Value:
        while value in self.same:
            value = self.same[value]
        return value

    def evaluate(self, size: Dim) -> Dim:
        return size.substitute(self.graph.sizes)


@dataclass(slots=True)
class _Comparison:
    old: _Side
    new: _Side
    tensors: Tensors
    keys: dict[object, int] = field(default_factory=dict)
    found: list[Meaning] = field(default_factory=list)

    def number(self, key: object) -> int:
        return self.keys.setdefault(key, len(self.keys))

    def say(self, scope: str, text: str, span: Span) -> None:
        self.found.append(Meaning(scope, text, span))

    # --- regions

    def regions(
        self, old: Region, new: Region, results: Sequence[tuple[Value, Value]], scope: str, sites: Sites = (None, None)
    ) -> None:
        """Compares two bodies, as far as `results`, pairs of values within, depend on them."""
        before, after = (
            list(self._flat(region, side, scope, site))
            for region, side, site in zip((old, new), (self.old, self.new), sites, strict=True)
        )
        pairs = [(self.old.original(a), self.new.original(b)) for a, b in results]
        a = _live(before, {x for x, _ in pairs})
        b = _live(after, {y for _, y in pairs})
        said = len(self.found)
        for _ in range(len(a) + len(b) + 1):
            self._number(a, self.old)
            self._number(b, self.new)
            if not self._settle_one(a, b):
                break
        self._number(a, self.old)
        self._number(b, self.new)
        self._within(a, b)
        differ = any(self.old.numbers.get(x) != self.new.numbers.get(y) for x, y in pairs)
        if differ and len(self.found) == said and not self._excused(pairs):
            self.say(
                scope, "what it gives is computed in another way", new.ops[-1].span if new.ops else self.new.graph.span
            )

    def _excused(self, pairs: Sequence[tuple[Value, Value]]) -> bool:
        return any(x in self.old.foreign or y in self.new.foreign for x, y in pairs)

    def _flat(self, region: Region, side: _Side, scope: str, site: Span | None = None) -> Iterator[Node]:
        """The operations of a body and of the blocks in it; weights get their numbers on the way."""
        for op in region.ops:
            attributes, span = op.attributes, user_span(op.span, site)
            if isinstance(attributes, Weights):
                self._weights(op, attributes, side)
            elif isinstance(attributes, Block):
                side.same.update(zip(op.regions[0].arguments, op.operands, strict=True))
                yield from self._flat(op.regions[0], side, attributes.path, span)
                side.same.update(zip(op.results, op.regions[0].results, strict=True))
            elif isinstance(attributes, Keep):
                side.same.update(zip(op.results, op.operands, strict=True))
            elif op.kind in _SILENT_KINDS:
                side.same[op.result] = op.operands[0]
            else:
                inputs = (*op.operands, *captures(op)) if op.regions else op.operands
                facts = {
                    info.name: getattr(attributes, info.name)
                    for info in fields(attributes)
                    if info.name not in _SILENT and not info.name.startswith("stated_")
                }
                yield Node(op, scope, tuple(side.original(value) for value in inputs), facts, span)

    def _weights(self, op: Op, attributes: Weights, side: _Side) -> None:
        there = self.tensors.patterns
        for value, weight in zip(op.results, attributes.weights, strict=True):
            pattern = f"{attributes.path}.{weight.name}"
            if side is self.old:
                known, pattern = pattern in there, there.get(pattern, pattern)
            else:
                known = pattern in there.values()
            side.weights.add(value)
            side.numbers[value] = self.number(("weight", pattern) if known else ("foreign", id(value)))
            if not known:
                side.foreign.add(value)

    # --- values

    def _number(self, nodes: list[Node], side: _Side) -> None:
        for node in nodes:
            if not node.settled:
                key = self._key(node, side)
                for i, value in enumerate(node.op.results):
                    side.numbers[value] = self.number((key, i))

    def _key(self, node: Node, side: _Side) -> object:
        return (node.kind, self._facts(node, side), self._inputs(node, side))

    def _inputs(self, node: Node, side: _Side) -> tuple[int, ...]:
        numbers = tuple(side.numbers.get(value, -1) for value in node.inputs)
        if isinstance(node.op.attributes, Repeat):  # which weights its copies share shows within
            return numbers[: len(node.op.operands)]
        return tuple(sorted(numbers)) if node.kind in _COMMUTATIVE else numbers

    def _facts(self, node: Node, side: _Side) -> tuple[object, ...]:
        return tuple((name, _comparable(value, side)) for name, value in node.facts.items())

    # --- differences

    def _settle_one(self, old: list[Node], new: list[Node]) -> bool:
        """Finds the first difference, reports it, and takes it for none from then on. False when there is none."""
        known_old, known_new = {self._key(n, self.old) for n in old}, {self._key(n, self.new) for n in new}
        gone = [n for n in old if not n.settled and self._key(n, self.old) not in known_new]
        come = [n for n in new if not n.settled and self._key(n, self.new) not in known_old]
        if not gone and not come:
            return False
        for a in gone:
            for b in come:
                if a.kind == b.kind and self._inputs(a, self.old) == self._inputs(b, self.new):
                    self._changed(a, b)
                    return self._pair(a, b)
        return self._unequal(gone[0] if gone else None, come[0] if come else None, gone, come)

    def _unequal(self, a: Node | None, b: Node | None, gone: list[Node], come: list[Node]) -> bool:
        """The first of both sides that have no counterpart: one replaces the other, or is there by itself."""
        if a is None or b is None:
            return self._extra(a, self.old, "is gone") if a is not None else self._extra(b, self.new, "is new")
        mine = next((n for n in come if n.kind == a.kind and self._share_weights(a, n)), None)
        its = next((n for n in gone if n.kind == b.kind and self._share_weights(n, b)), None)
        if mine is not None and (mine is b or its is not None):
            return self._rewired(a, mine)
        if mine is not None or its is not None:
            return self._extra(b, self.new, "is new") if mine is not None else self._extra(a, self.old, "is gone")
        ours, theirs = self._is_foreign(b, self.new), self._is_foreign(a, self.old)
        if ours or theirs:
            return self._extra(b, self.new, "is new") if ours else self._extra(a, self.old, "is gone")
        if a.kind == b.kind:
            return self._rewired(a, b)
        if _leads(b, a.kind, come):
            return self._extra(b, self.new, "is new")
        if _leads(a, b.kind, gone):
            return self._extra(a, self.old, "is gone")
        self.say(b.scope, f"{_called(a)} becomes {_called(b)}", b.span)
        return self._pair(a, b)

    def _pair(self, a: Node, b: Node) -> bool:
        """Two nodes that stand for each other."""
        for x, y in zip(a.op.results, b.op.results, strict=False):
            self.new.numbers[y] = self.old.numbers[x]
        a.settled = b.settled = True
        return True

    def _changed(self, a: Node, b: Node) -> None:
        """The same operation on the same values, with other attributes."""
        for name, value in b.facts.items():
            before, after = a.facts.get(name), value
            if _comparable(before, self.old) == _comparable(after, self.new) or self._follows(before, after):
                continue
            shown = f"{_shown(before, self.old)} -> {_shown(after, self.new)}"
            self.say(b.scope, f"{_called(b)}: {name} {shown}", b.span)

    def _follows(self, before: object, after: object) -> bool:
        """Whether a size is another only as dims changed that parameters show as well, by their new shapes."""
        sizes = [*_sizes(before), *_sizes(after)]
        if not sizes or len(_sizes(before)) != len(_sizes(after)):
            return False
        a, b = self.old.graph.sizes, self.new.graph.sizes
        changed = {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}
        pairs = (pair for pair in self.tensors.reshaped if pair.old and pair.new)
        seen = {s for pair in pairs for t in (pair.old, pair.new) if t for axis in t.axes for s in axis.size.symbols()}
        mine = {symbol for size in sizes for symbol in size.symbols()} & changed
        return bool(mine) and mine <= seen

    def _share_weights(self, a: Node, b: Node) -> bool:
        mine = {self.old.numbers[value] for value in a.inputs if value in self.old.weights}
        return any(self.new.numbers[value] in mine for value in b.inputs if value in self.new.weights)

    def _rewired(self, a: Node, b: Node) -> bool:
        said = len(self.found)
        self._changed(a, b)
        foreign = self._is_foreign(a, self.old) or self._is_foreign(b, self.new)
        if len(self.found) == said and not foreign:
            self.say(b.scope, f"{_called(b)} takes other inputs", b.span)
        return self._pair(a, b)

    def _is_foreign(self, node: Node, side: _Side) -> bool:
        return any(value in side.foreign for value in node.inputs)

    def _extra(self, node: Node | None, side: _Side, what: str) -> bool:
        """An operation that only one side has: silent where its weights tell. It then stands for what it takes."""
        assert node is not None
        foreign = self._is_foreign(node, side)
        if not foreign and node.kind not in _IMPLIED:
            self.say(node.scope, f"{_called(node)} {what}", node.span)
        through = [v for v in node.inputs if v not in side.foreign and _alike(v, node.op.results[0])]
        for value in node.op.results:
            if through:
                side.numbers[value] = side.numbers[through[0]]
            if foreign and not (through and node.kind == "add"):  # adding to a stream leaves it what it is
                side.foreign.add(value)
        node.settled = True
        return True

    # --- bodies of operations

    def _within(self, old: list[Node], new: list[Node]) -> None:
        by_result = {self.old.numbers[n.op.results[0]]: n for n in old if n.op.regions}
        for node in new:
            before = by_result.get(self.new.numbers[node.op.results[0]]) if node.op.regions else None
            if before is not None and before.kind == node.kind:
                self._bodies(before.op, node.op, (before.span, node.span))

    def _bodies(self, old: Op, new: Op, sites: Sites) -> None:
        a, b = old.attributes, new.attributes
        if isinstance(a, Experts) and isinstance(b, Experts):
            self._body(old.regions[0], new.regions[0], b.path, sites)
        elif isinstance(a, Repeat) and isinstance(b, Repeat):
            layers: dict[tuple[int, int], list[int]] = {}
            for i, pair in enumerate(zip(a.variants, b.variants, strict=False)):
                layers.setdefault(pair, []).append(i)
            for (x, y), where in layers.items():
                only = f" ({ranges(where)})" if len(layers) > 1 else ""
                said = len(self.found)
                self._body(old.regions[x], new.regions[y], f"{b.path}.*", sites, a.carried)
                self.found[said:] = [Meaning(f"{m.scope}{only}", m.text, m.span) for m in self.found[said:]]

    def _body(self, old: Region, new: Region, scope: str, sites: Sites, carried: int | None = None) -> None:
        for i, (x, y) in enumerate(zip(old.arguments, new.arguments, strict=False)):
            self.old.numbers[x] = self.new.numbers[y] = self.number(("argument", id(old), id(new), i))
        pairs = list(zip(old.results[:carried], new.results[:carried], strict=False))
        self.regions(old, new, pairs, scope, sites)


def _live(nodes: list[Node], wanted: set[Value]) -> list[Node]:
    """The nodes that `wanted` depends on."""
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.op.results):
            kept.append(node)
            wanted |= set(node.inputs)
    return kept[::-1]


def _leads(node: Node, kind: str, nodes: list[Node]) -> bool:
    """Whether an operation of this kind depends on what `node` gives."""
    results = set(node.op.results)
    for other in nodes:
        if results & set(other.inputs):
            if other.kind == kind:
                return True
            results |= set(other.op.results)
    return False


def _alike(a: Value, b: Value) -> bool:
    return tuple(x.size for x in a.type.axes) == tuple(x.size for x in b.type.axes)


def _called(node: Node) -> str:
    names = ", ".join(value.name for value in node.op.results if value.name)
    return f"{node.kind} {names}" if names and len(node.op.results) == 1 else node.kind


def _comparable(value: object, side: _Side) -> object:
    if isinstance(value, Axis):
        return side.evaluate(value.size)
    if isinstance(value, Dim):
        return side.evaluate(value)
    if isinstance(value, tuple):
        return tuple(_comparable(item, side) for item in value)
    return value


def _shown(value: object, side: _Side) -> str:
    if isinstance(value, Axis | Dim):
        size = side.evaluate(value.size if isinstance(value, Axis) else value)
        return str(size)
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item, side) for item in value)}]"
    if isinstance(value, Record):
        return f"{value.name}({', '.join(f'{k}: {_plain(v)}' for k, v in value.arguments)})"
    return _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return show_number(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    return str(value)


def _sizes(value: object) -> list[Dim]:
    if isinstance(value, Axis):
        return [value.size]
    if isinstance(value, Dim):
        return [value]
    return [size for item in value for size in _sizes(item)] if isinstance(value, tuple) else []
