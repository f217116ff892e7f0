"""Blocks that are called: how a body becomes operations in a region of its own, and weights under its path."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Mark
from dskc.dsl.dims import Dim
from dskc.dsl.source import Span

from .arguments import Binder, block_signature
from .builder import Builder
from .evaluate import Evaluator, describe
from .frame import Frame
from .ir import Op, Region, Value
from .ops.base import ZERO, ShapeError
from .ops.structure import Block, Extern, Repeat
from .primitive import Primitive, Site
from .signature import Signature
from .types import bind_type, check_type, declared_type
from .values import POISON, BlockDefinition, BlockValue, Expressed, Poison, Size

RunBody = Callable[[s.Body, Frame], "tuple[Expressed, ...] | None"]
MAX_BLOCKS = 100  # that use one another


def called_signature(callee: Primitive | BlockDefinition, frame: Frame) -> tuple[Signature, bool]:
    """What a callee takes, and whether it may own weights."""
    if isinstance(callee, Primitive):
        return callee.signature, callee.weighted
    return block_signature(callee, frame), True


class Blocks:
    """Runs the bodies of blocks. `run` executes statements (see `passes/expand.py`)."""

    def __init__(self, run: RunBody, evaluator: Evaluator, binder: Binder) -> None:
        self.run = run
        self.evaluator = evaluator
        self.binder = binder

    def block(
        self,
        definition: BlockDefinition,
        signature: Signature,
        values: dict[str, Expressed],
        spans: dict[str, Span],
        span: Span,
        frame: Frame,
        path: str,
        owner: BlockValue | None,
    ) -> Expressed:
        builder = Builder(path, frame.builder)
        if owner is not None:
            builder.home = owner.home
        inner = self._frame(definition, signature, values, spans, span, frame, builder)
        if inner is None:
            return POISON
        given = ((p.name, values.get(p.name)) for p in signature.parameters if p.is_tensor)
        tensors = {name: value for name, value in given if isinstance(value, Value)}
        outer = tuple(tensors.values())
        arguments = tuple(inner.tensor(name) for name in tensors)
        if isinstance(definition.syntax, s.ExternBlock):
            return self._extern(definition.syntax, inner, outer, span, frame, path, owner)
        results = self._returned(definition.syntax, inner)
        if results is None:
            return POISON
        losses = tuple(sorted(builder.losses))
        region = builder.region(arguments, (*results, *(builder.losses[name] for name in losses)))
        if builder.owns or path not in frame.builder.taken:
            _claim(path, span, frame, owner)
        elif owner is None:  # without weights its name is nobody's concern, but it needs one
            region, path = _apart(region, path, frame.builder)
            frame.builder.take(path, span)
        attributes = Block(path, signature.name, len(results), losses, definition.syntax.doc)
        made = tuple(Value(v.type) for v in region.results)
        frame.builder.ops.append(Op(attributes, outer, made, span, (region,)))
        for name, value in zip(losses, made[len(results) :], strict=True):
            frame.builder.add_loss(name, value, span)
        return made[0] if len(results) == 1 else made[: len(results)]

    def inline(
        self, value: BlockValue, tensors: tuple[Value, ...], builder: Builder, path: str, frame: Frame, span: Span
    ) -> tuple[Value, ...]:
        """A block value applied within another operation's region, its weights directly under that one's path."""
        builder.path = path
        signature, _ = called_signature(value.callee, frame)
        names = [p.name for p in signature.parameters if p.is_tensor]
        values = {**value.arguments, **dict(zip(names, tensors, strict=False))}
        if isinstance(value.callee, Primitive):
            filled = self.binder.fill(signature, values, frame, span)
            if filled is None:
                raise ShapeError(f"`{signature.name}` cannot be an expert")
            result = value.callee.build(Site(builder, span, builder.join(signature.name), filled))
            return (result,) if isinstance(result, Value) else result
        inner = self._frame(value.callee, signature, values, {}, value.span, frame, builder)
        if inner is None or isinstance(value.callee.syntax, s.ExternBlock):
            raise ShapeError(f"`{signature.name}` cannot be an expert")
        for name, tensor in zip(names, tensors, strict=False):
            inner.names[name] = tensor
        results = self._returned(value.callee.syntax, inner)
        if results is None:
            raise ShapeError(f"`{signature.name}` cannot be an expert")
        return results

    def _frame(
        self,
        definition: BlockDefinition,
        signature: Signature,
        values: dict[str, Expressed],
        spans: dict[str, Span],
        span: Span,
        frame: Frame,
        builder: Builder,
    ) -> Frame | None:
        """The block's body with its parameters bound: given dims first, then tensors, then defaults in order."""
        block = definition.syntax
        if block.name.text in frame.stack:
            chain = " -> ".join([*frame.stack[frame.stack.index(block.name.text) :], block.name.text])
            frame.report("DSK0121", f"`{block.name.text}` uses itself", span, chain)
            return None
        if len(frame.stack) >= MAX_BLOCKS:
            frame.report("DSK0005", f"blocks are nested over {MAX_BLOCKS} deep", span, f"{frame.stack[0]} -> ... here")
            return None
        missing = [p for p in signature.parameters if p.required and p.name not in values]
        if missing:
            self.binder.fill(signature, values, frame, span)
            return None
        inner = Frame(frame.shared, definition.scope, builder, caller=frame, call=span, block=block.name.text)
        inner.stack = (*frame.stack, block.name.text)
        types = ((param.name.text, param.kind) for param in block.params)
        inner.optional = frozenset(name for name, kind in types if isinstance(kind, s.Type) and kind.optional)
        for param in block.params:
            given = values.get(param.name.text)
            if isinstance(param.kind, s.DimKind) and isinstance(given, Size):
                inner.bind_dim(param.kind.name.text, given.axis, spans.get(param.name.text, span))
            if isinstance(given, BlockValue) and given.path is None and not given.passed:
                given.builder, given.passed = builder, True
        sound = True
        for param in block.params:
            given = values.get(param.name.text)
            if isinstance(param.kind, s.Type) and isinstance(given, Value):
                place = spans.get(param.name.text, span)
                sound = bind_type(param, given, inner, frame, place, self.evaluator) and sound
                inner.names[param.name.text] = Value(given.type, param.name.text)
        return inner if sound and self._defaults(block, signature, values, inner, span) else None

    def _defaults(
        self,
        block: s.Block | s.ExternBlock,
        signature: Signature,
        values: dict[str, Expressed],
        inner: Frame,
        span: Span,
    ) -> bool:
        for param, parameter in zip(block.params, signature.parameters, strict=True):
            name = param.name.text
            given = values.get(name)
            if name not in values and param.default is not None:
                given = self.binder.value(replace(parameter, default=None), param.default, inner)
                if isinstance(given, Poison):
                    return False
            if isinstance(param.kind, s.DimKind):
                dim = param.kind.name.text
                if given is None:
                    inner.dims[dim] = None
                elif dim not in inner.dims and isinstance(given, Size):
                    inner.bind_dim(dim, given.axis, span)
                inner.names[name] = given
            elif name not in inner.names:
                inner.names[name] = given
        return True

    def _returned(self, block: s.Block, inner: Frame) -> tuple[Value, ...] | None:
        results = self.run(block.body, inner)
        if results is None:
            return None
        places = _given_back(block)
        if len(results) != len(block.types):
            title = f"`{block.name.text}` gives back {len(results)} of the {len(block.types)} it declares"
            marks = (Mark(places[0].to(places[-1]), "these are what it gives back"),) if places else ()
            inner.report("DSK0128", title, block.name.span, "", marks)
            return None
        checked: list[Value] = []
        for index, (value, kind) in enumerate(zip(results, block.types, strict=True)):
            place = places[index] if len(places) == len(results) else None
            if not isinstance(value, Value):
                if not isinstance(value, Poison):
                    marks = (Mark(place, "this is no tensor"),) if place is not None else ()
                    inner.report(
                        "DSK0129", f"`{block.name.text}` gives back {describe(value)}", block.name.span, "", marks
                    )
                return None
            if not check_type(kind, value, inner, self.evaluator, place):
                return None
            checked.append(value)
        return tuple(checked)

    def _extern(
        self,
        block: s.ExternBlock,
        inner: Frame,
        outer: tuple[Value, ...],
        span: Span,
        frame: Frame,
        path: str,
        owner: BlockValue | None,
    ) -> Expressed:
        if frame.builder.home is not None or (owner is not None and owner.builder is not frame.builder):
            title = "an extern block is called with its tensor where it is made: as a value it is not compiled yet"
            raise ShapeError(title, code="DSK0190")
        _claim(path, span, frame, owner)
        frame.builder.own(path)
        target = block.target.value
        types = [t for kind in block.types if (t := declared_type(kind, inner, self.evaluator)) is not None]
        if len(types) != len(block.types):
            return POISON
        if not all(part.isidentifier() for part in re.split(r"[.:]", target)) or target.count(":") != 1:
            inner.report("DSK0161", f"`{target}` is no class", block.target.span, 'write `"package.module:Class"`')
            return POISON
        costs: dict[str, Dim] = {}
        for entry in block.cost.entries:
            if isinstance(entry, s.Setting):
                if entry.key.text in costs:
                    inner.report("DSK0108", f"`{entry.key.text}` is said twice", entry.key.span, "again here")
                if entry.key.text not in ("flops", "saved"):
                    inner.report(
                        "DSK0160", f"an extern block states `flops` and `saved`, not `{entry.key.text}`", entry.key.span
                    )
                    continue
                axis = self.evaluator.axis(entry.value, inner)
                costs[entry.key.text] = axis.size if axis else ZERO
        options = tuple(
            (name, value) for name, value in inner.names.items() if isinstance(value, Fraction | bool | str)
        )
        dims = tuple((name, axis.size) for name, axis in inner.dims.items() if axis and frame.size_value(axis.size))
        flops, saved = costs.get("flops", ZERO), costs.get("saved", ZERO)
        attributes = Extern(path, target, tuple(types), (*dims, *options), flops, saved)
        made = frame.builder.add(attributes, outer, span)
        return made[0] if len(made) == 1 else made


def _given_back(block: s.Block) -> tuple[Span, ...]:
    """Where a block says what it gives back, when that is at its end."""
    last = block.body.statements[-1] if block.body.statements else None
    return tuple(value.span for value in last.values) if isinstance(last, s.Return) else ()


def _apart(region: Region, path: str, builder: Builder) -> tuple[Region, str]:
    """A region without weights under a path that nothing else has: `scale2`."""
    fresh, n = f"{path}2", 2
    while fresh in builder.taken:
        n += 1
        fresh = f"{path}{n}"

    def moved(inner: Region) -> Region:
        return Region(inner.arguments, tuple(map(op, inner.ops)), inner.results)

    def op(one: Op) -> Op:
        attributes = one.attributes
        if isinstance(attributes, Block | Repeat) and attributes.path.startswith(f"{path}."):
            attributes = replace(attributes, path=fresh + attributes.path[len(path) :])
        return Op(attributes, one.operands, one.results, one.span, tuple(map(moved, one.regions)))

    return moved(region), fresh


def _claim(path: str, span: Span, frame: Frame, owner: BlockValue | None) -> None:
    """Takes the name of a block that owns weights, in the body that they belong to."""
    if owner is None:
        frame.builder.take(path, span)
    elif not owner.claimed:
        owner.builder.take(path, owner.span)
        owner.claimed = True
