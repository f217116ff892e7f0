"""Groups and repeats: bodies with a path of their own.

A repeat's body is read once for each way that its index matters: iterations for which every expression of the index is
worth the same (`i < 3`, `i % 6 == 5`) are one, and those that turn out the same are one too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Mark
from dskc.dsl.source import Span

from .bindings import assigned, children, first_line, is_plain, mentions, walk
from .builder import Builder, NameReserved, NameTaken
from .equality import region_key
from .evaluate import Evaluator, describe
from .frame import Frame
from .ir import Op, Region, Value
from .ops.structure import Block, Constant, Repeat
from .values import POISON, BlockValue, Poison

MAX_REPEAT = 10_000


@dataclass(frozen=True, slots=True)
class _Use:
    """Where a body speaks of an index: in a plain expression, in the branches of a plain condition, or further in."""

    plain: s.Node | None = None
    condition: s.Node | None = None
    then: tuple[_Use, ...] = ()
    otherwise: tuple[_Use, ...] = ()
    within: tuple[_Use, ...] = ()


def _uses(node: s.Node | None, index: str) -> tuple[_Use, ...]:
    """The uses of an index in a node: none or one."""
    if node is None or not mentions(node, index):
        return ()
    if is_plain(node):
        return (_Use(plain=node),)
    if isinstance(node, s.Conditional | s.If) and is_plain(node.condition):
        return (_Use(None, node.condition, _uses(node.then, index), _uses(node.otherwise, index)),)
    return (_Use(within=tuple(use for child in children(node) for use in _uses(child, index))),)


class Repeats:
    """Reads groups and repeats. `statements` runs a body, `once` has the names that one binds only once."""

    def __init__(
        self,
        evaluator: Evaluator,
        statements: Callable[[s.Body, Frame], object],
        once: Callable[[s.Body], frozenset[str]],
    ) -> None:
        self.evaluator = evaluator
        self.statements = statements
        self.once = once

    def group(self, statement: s.Group, frame: Frame) -> None:
        path = frame.builder.join(statement.name.text)
        builder = Builder(path, frame.builder)
        inner = frame.inside(builder)
        inner.once = self.once(statement.body)
        self.statements(statement.body, inner)
        self._claim(frame, path, statement.name.span)
        # A block value stays inside: its weights belong to the group.
        changed = [n for n, v in inner.names.items() if frame.names.get(n) is not v and not isinstance(v, BlockValue)]
        tensors = [n for n in changed if isinstance(inner.names[n], Value)]
        losses = tuple(sorted(builder.losses))
        values = (*(inner.tensor(n) for n in tensors), *(builder.losses[n] for n in losses))
        region = builder.region((), values)
        made = tuple(Value(v.type, v.name) for v in values)
        frame.builder.ops.append(
            Op(Block(path, None, len(tensors), losses), (), made, first_line(statement.span), (region,))
        )
        for name in changed:
            frame.names[name] = inner.names[name]
        for name, value in zip((*tensors,), made[: len(tensors)], strict=True):
            frame.names[name] = value
        for name, value in zip(losses, made[len(tensors) :], strict=True):
            frame.builder.add_loss(name, value, statement.span)

    def _claim(self, frame: Frame, path: str, span: Span) -> None:
        try:
            frame.builder.take(path, span)
        except NameTaken as error:
            marks = (Mark(error.first, "this has it"),)
            frame.report("DSK0120", f"two weights would be called `{path}`", span, "", marks)
        except NameReserved as error:
            frame.report(error.code, f"this cannot be called `{span.text}`", span, str(error))

    def repeat(self, statement: s.Repeat, frame: Frame) -> None:
        path = frame.builder.join(statement.name.text)
        count = self._count(statement, _plain(path), frame)
        carried = [n for n in assigned(statement.body) if isinstance(frame.names.get(n), Value)]
        if count is None:
            for name in carried:
                frame.names[name] = POISON
            return
        self._claim(frame, path, statement.name.span)
        if count == 0:
            return
        self._iterate(statement, path, count, carried, frame)

    def _count(self, statement: s.Repeat, path: str, frame: Frame) -> int | None:
        node = statement.count
        frame.shared.seen_paths[path] = []
        for index, override in enumerate(frame.shared.overrides):
            if override.kind == "repeat" and override.path == path:
                node = override.value
                frame.shared.used.add(index)
        value = self.evaluator.evaluate(node, frame)
        if isinstance(value, Poison):
            return None
        number = self.evaluator.number(value, frame)
        if number is None or number.denominator != 1 or not 0 <= number <= MAX_REPEAT:
            title = f"a repeat's count is a whole number from 0 to {MAX_REPEAT:_}"
            frame.report("DSK0153", title, node.span, f"this is {describe(value)}")
            return None
        return int(number)

    def _iterate(self, statement: s.Repeat, path: str, count: int, carried: list[str], frame: Frame) -> None:
        index = statement.index.text if statement.index is not None else None
        said = [o.value for o in frame.shared.overrides if o.kind == "call" and o.path.startswith(f"{_plain(path)}.")]
        uses = [use for node in (statement.body, *said) for use in _uses(node, index)] if index is not None else []
        indexed = bool(uses)
        bound = self._bound(statement.body) if indexed else frozenset()
        read: dict[tuple[object, ...], int] = {}
        regions: list[Region] = []
        losses: list[dict[str, Value]] = []
        known: dict[object, int] = {}
        variants: list[int] = []
        for i in range(count if indexed else 1):
            way = self._way(index, uses, bound, i, frame)
            if way in read:
                variants.append(read[way])
                continue
            region, found = self._iteration(statement, path, i, carried, frame)
            if region is None:
                return
            key = region_key(region, found)
            if key not in known:
                known[key] = len(regions)
                regions.append(region)
                losses.append(found)
            variants.append(known[key])
            read[way] = known[key]
        if not indexed:
            variants *= count
        names = tuple(sorted({name for found in losses for name in found}))
        regions = [_with_losses(r, f, names, statement.span) for r, f in zip(regions, losses, strict=True)]
        before = tuple(frame.tensor(n) for n in carried)
        made = tuple(Value(v.type, v.name) for v in regions[0].results)
        attributes = Repeat(path, tuple(variants), len(carried), names)
        frame.builder.ops.append(Op(attributes, before, made, first_line(statement.span), tuple(regions)))
        for name, value in zip(carried, made[: len(carried)], strict=True):
            frame.names[name] = value
        for name, value in zip(names, made[len(carried) :], strict=True):
            frame.builder.add_loss(name, value, statement.span)

    @staticmethod
    def _bound(body: s.Body) -> frozenset[str]:
        """What a body binds: values, and the indices of repeats in it."""
        inner = (node.index for node in walk(body) if isinstance(node, s.Repeat))
        return frozenset(assigned(body)) | {index.text for index in inner if index is not None}

    def _way(
        self, index: str | None, nodes: list[_Use], bound: frozenset[str], i: int, frame: Frame
    ) -> tuple[object, ...]:
        """What the expressions of the index are worth in iteration i; i itself where one is not to be told."""
        if index is None:
            return ()
        inner = frame.inside(frame.builder)
        for name in bound:
            inner.names.pop(name, None)
        inner.names[index] = Fraction(i)
        worth = tuple(value for node in nodes for value in self._matters(node, inner))
        return (i,) if None in worth else worth

    def _matters(self, node: _Use, frame: Frame) -> Iterator[Fraction | bool | None]:
        """What a node makes of the index: the worth of its largest plain expressions, of branches the one taken."""
        if node.plain is not None:
            yield self.evaluator.worth(node.plain, frame)
            return
        taken = node.within
        if node.condition is not None:
            holds = self.evaluator.worth(node.condition, frame)
            yield holds
            taken = node.then if holds else node.otherwise
        for inner in taken:
            yield from self._matters(inner, frame)

    def _iteration(
        self, statement: s.Repeat, path: str, i: int, carried: list[str], frame: Frame
    ) -> tuple[Region | None, dict[str, Value]]:
        builder = Builder(f"{path}.*", frame.builder)
        inner = frame.inside(builder)
        inner.once = self.once(statement.body)
        if statement.index is not None:
            inner.names[statement.index.text] = Fraction(i)
        arguments = tuple(Value(frame.tensor(n).type, n) for n in carried)
        inner.names.update(zip(carried, arguments, strict=True))
        self.statements(statement.body, inner)
        results: list[Value] = []
        for name, before in zip(carried, arguments, strict=True):
            after = inner.names[name]
            if not isinstance(after, Value):
                if not isinstance(after, Poison):
                    title = f"`{name}` is a tensor before `{statement.name.text}`, and no longer at its end"
                    frame.report("DSK0206", title, statement.name.span, f"it becomes {describe(after)}")
                frame.names[name] = POISON
                return None, {}
            if [a.size for a in after.type.axes] != [a.size for a in before.type.axes]:
                title = f"`{name}` changes its shape from one of `{statement.name.text}` to the next"
                frame.report("DSK0206", title, statement.name.span, f"{before.type} becomes {after.type}")
                return None, {}
            results.append(after)
        return builder.region(arguments, tuple(results)), dict(builder.losses)


def _plain(path: str) -> str:
    return path.replace(".*", "")


def _with_losses(region: Region, found: dict[str, Value], names: tuple[str, ...], span: Span) -> Region:
    """The region handing up every loss of the repeat: zero for one that this variant does not have."""
    ops = list(region.ops)
    values: list[Value] = []
    for name in names:
        if name not in found:
            zero = Constant(0.0)
            result = Value(zero.infer()[0], name)
            ops.append(Op(zero, (), (result,), span))
            found = {**found, name: result}
        values.append(found[name])
    return Region(region.arguments, tuple(ops), (*region.results, *values))
