"""Calls: what is called, what its weights are named, and how a block's body becomes operations."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Mark
from dskc.dsl.dims import Dim
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean

from .arguments import Binder, block_signature
from .builder import Builder, NameReserved, NameTaken
from .evaluate import FUNCTIONS, Evaluator, describe, dim_of
from .frame import Frame
from .ir import Axis, Op, Region, Value
from .ops.base import ZERO, ShapeError
from .ops.structure import Block, Extern, Repeat
from .passes.resolve import library_index
from .primitive import Primitive, Site
from .primitives import PRIMITIVES
from .signature import Kind, Parameter, Signature
from .types import bind_type, check_type, declared_type
from .values import POISON, ArrowValue, BlockDefinition, BlockValue, Expressed, Mask, Poison, Size

RunBody = Callable[[s.Body, Frame], "tuple[Expressed, ...] | None"]
MAX_BLOCKS = 100  # that use one another
_WINDOW = Signature("window", (Parameter("size", Kind.INT),))


class Calls:
    """Handles `callee(arguments) as alias`. `run` executes a block's statements (see `passes/expand.py`)."""

    def __init__(self, run: RunBody) -> None:
        self.run = run
        self.evaluator = Evaluator(self.call)
        self.binder = Binder(self.evaluator)

    def call(self, node: s.Call, frame: Frame, hint: str | None, consumer: str | None) -> Expressed:
        name = node.callee.text
        if name not in frame.names:
            if name in FUNCTIONS:
                return self._function(node, frame)
            if name == "window":
                return self._window(node, frame)
        callee = self._callee(node, frame)
        if isinstance(callee, Poison):
            for (
                argument
            ) in node.arguments:  # what is wrong in there is worth knowing too, where any block would take it
                if argument.label is None and not isinstance(argument.value, s.Arrow | s.Path):
                    self.evaluator.evaluate(argument.value, frame)
            return POISON
        if isinstance(callee, BlockValue):
            return self._apply_value(callee, node, frame, consumer)
        return self._call_definition(callee, node, frame, hint, consumer)

    # --- finding the callee

    def _callee(self, node: s.Call, frame: Frame) -> Primitive | BlockDefinition | BlockValue | Poison:
        name = node.callee.text
        if name in frame.names:
            value = frame.names[name]
            if isinstance(value, BlockValue | Poison):
                return value
            if value is None or not (name in PRIMITIVES or isinstance(frame.scope.names.get(name), BlockDefinition)):
                frame.report("DSK0118", f"`{name}` is {describe(value)}, not a block", node.callee.span)
                return POISON
            # a number or tensor of a block's name does not hide it where it is called: `dropout(x, p: dropout)`
        found = frame.scope.names.get(name)
        if isinstance(found, BlockDefinition):
            return found
        if name in PRIMITIVES:
            return PRIMITIVES[name]
        if name in frame.scope.lost:
            frame.shared.failed = True
            return POISON
        if frame.scope.broken and found is None:
            frame.shared.failed = True
            known = [*frame.scope.blocks(), *PRIMITIVES, *library_index()]
            if name in known or did_you_mean(name, known) is None:
                return POISON  # it may be what could not be read
        label = self._suggestion(name, frame)
        frame.report_unknown("block", name, node.callee.span, label)
        return POISON

    def _suggestion(self, name: str, frame: Frame) -> str:
        library = library_index()
        if name in library and name not in frame.scope.names:
            return "it is in std: add it to `use std { ... }`"
        values = [n for n, v in frame.names.items() if isinstance(v, BlockValue)]
        near = did_you_mean(name, [*values, *frame.scope.blocks(), *PRIMITIVES, *FUNCTIONS, "window", *library])
        if near is None:
            return ""
        if near in frame.scope.names:
            owner = frame.scope.owners[near]
            where = "It is in std, and already imported" if owner.library else "It is in this file"
            if not owner.library and owner is not frame.scope:
                where = f"It is in {owner.source.path}, and already imported"
            return f"did you mean `{near}`? {where}"
        if near in PRIMITIVES or near in values or near in FUNCTIONS or near == "window":
            return f"did you mean `{near}`?"
        return f"did you mean `{near}`? It is in std: add it to `use std {{ ... }}`"

    # --- small calls

    def _function(self, node: s.Call, frame: Frame) -> Expressed:
        found = [self.evaluator.evaluate(a.value, frame) for a in node.arguments]
        if any(isinstance(v, Poison) for v in found):
            return POISON
        name = node.callee.text
        wanted = 1 if name in ("floor", "ceil") else None
        values = [v for v in found if isinstance(v, Size | Fraction)]
        if not values or len(values) != (wanted or len(found)) or len(values) != len(found):
            frame.report("DSK0114", f"`{name}` needs {'one number' if wanted else 'numbers'} or dims", node.span)
            return POISON
        result = FUNCTIONS[name](*(dim_of(v) for v in values))
        if all(isinstance(v, Fraction) for v in values):
            return result.constant
        return Size(Axis("".join(v.axis.name for v in values if isinstance(v, Size)), result))

    def _window(self, node: s.Call, frame: Frame) -> Expressed:
        bound = self.binder.bind(_WINDOW, node.arguments, frame, None)
        filled = self.binder.fill(_WINDOW, bound[0], frame, node.span) if bound else None
        if filled is None:
            return POISON
        size = filled["size"]
        assert isinstance(size, Fraction)
        if size < 1:
            frame.report("DSK0131", "a window sees at least 1 position", node.span)
            return POISON
        return Mask("window", arguments=(("size", int(size)),))

    # --- definitions and values

    def _call_definition(
        self, callee: Primitive | BlockDefinition, node: s.Call, frame: Frame, hint: str | None, consumer: str | None
    ) -> Expressed:
        signature, weighted = self._signature(callee, frame)
        own = callee.short or callee.name if isinstance(callee, Primitive) else signature.name
        name = node.alias.text if node.alias else hint
        if name is None:
            name = f"{consumer}_{own}" if consumer else signature.name
        arguments = self._overridden(frame.builder.join(name), signature, node.arguments, frame)
        inner = name if weighted else consumer
        bound = self.binder.bind(signature, arguments, frame, inner, at=node.span)
        if bound is None:
            return POISON
        values, spans = bound
        tensors = [p for p in signature.parameters if p.is_tensor]
        if tensors and not any(p.name in values for p in tensors):
            named = node.alias.text if node.alias else hint
            path = frame.builder.join(named) if named else None
            return BlockValue(callee, values, node.span, frame.builder, path)
        return self._apply(callee, signature, values, spans, node.span, frame, name, None)

    def _signature(self, callee: Primitive | BlockDefinition, frame: Frame) -> tuple[Signature, bool]:
        if isinstance(callee, Primitive):
            return callee.signature, callee.weighted
        return block_signature(callee, frame), True

    def _overridden(
        self, path: str, signature: Signature, arguments: tuple[s.Argument, ...], frame: Frame
    ) -> tuple[s.Argument, ...]:
        """Arguments with those that a derived model or `--set` replaces."""
        plain = path.replace(".*", "")
        frame.shared.seen_paths[plain] = [p.name for p in signature.parameters]
        for index, override in enumerate(frame.shared.overrides):
            if override.kind != "call" or override.path != plain or override.argument is None:
                continue
            if signature.parameter(override.argument) is None:
                continue
            frame.shared.used.add(index)
            label = s.Name(override.span, override.argument)
            said = s.Argument(override.span, label, override.value)
            arguments = (*(a for a in arguments if not a.label or a.label.text != override.argument), said)
        return arguments

    def _apply_value(self, value: BlockValue, node: s.Call, frame: Frame, consumer: str | None) -> Expressed:
        if value.path is None:
            value.path = value.builder.join(node.alias.text if node.alias else node.callee.text)
        elif node.alias is not None and value.path != value.builder.join(node.alias.text):
            frame.report(
                "DSK0127", f"`{node.callee.text}` has its weights already", node.alias.span, "they keep their name"
            )
        signature, weighted = self._signature(value.callee, frame)
        name = value.path.rsplit(".", 1)[-1]
        bound = self.binder.bind(signature, node.arguments, frame, name if weighted else consumer, value.arguments)
        if bound is None:
            return POISON
        return self._apply(value.callee, signature, bound[0], bound[1], node.span, frame, name, value)

    def _apply(
        self,
        callee: Primitive | BlockDefinition,
        signature: Signature,
        values: dict[str, Expressed],
        spans: dict[str, Span],
        span: Span,
        frame: Frame,
        name: str,
        owner: BlockValue | None,
    ) -> Expressed:
        try:
            if isinstance(callee, Primitive):
                filled = self.binder.fill(signature, values, frame, span)
                if filled is None:
                    return POISON
                path = owner.path if owner and owner.path else frame.builder.join(name)
                site = Site(frame.builder, span, path, filled, owner)
                site.expand = lambda value, tensors, builder, at: self._inline(value, tensors, builder, at, frame, span)
                return callee.build(site)
            path = owner.path if owner and owner.path else frame.builder.join(name)
            return self._block(callee, signature, values, spans, span, frame, path, owner)
        except NameReserved as error:
            frame.report(error.code, f"the weights of `{signature.name}` cannot be called so", span, str(error))
        except ShapeError as error:
            place = spans.get(error.argument or "", span)
            said = str(error)
            title = said if said.startswith(f"`{signature.name}`") else f"`{signature.name}`: {said}"
            given = values.get(error.argument or "")
            label = f"this is {_shape(given)}" if isinstance(given, Value) else ""
            axes = [a.size for v in values.values() for a in _axes(v)]
            said_dims = [size for size in axes if f"`{size}`" in said]
            frame.report(error.code, title, place, label, notes=frame.sizes_note(*said_dims))
        except NameTaken as error:
            marks = (Mark(error.first, "this has it"),) if error.first.source is span.source else ()
            frame.report(
                "DSK0120",
                f"two weights would be called `{error.path}`",
                span,
                "name one of them: `... as name`",
                marks if error.first != span else (),
            )
        return POISON

    # --- blocks

    def _block(
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

    def _inline(
        self, value: BlockValue, tensors: tuple[Value, ...], builder: Builder, path: str, frame: Frame, span: Span
    ) -> tuple[Value, ...]:
        """A block value applied within another operation's region, its weights directly under that one's path."""
        builder.path = path
        signature, _ = self._signature(value.callee, frame)
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
        if len(results) != len(block.types):
            inner.report(
                "DSK0128",
                f"`{block.name.text}` gives back {len(results)} of the {len(block.types)} it declares",
                block.name.span,
            )
            return None
        checked: list[Value] = []
        for value, kind in zip(results, block.types, strict=True):
            if not isinstance(value, Value):
                if not isinstance(value, Poison):
                    inner.report("DSK0129", f"`{block.name.text}` gives back {describe(value)}", block.name.span)
                return None
            if not check_type(kind, value, inner, self.evaluator):
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


def _axes(value: Expressed) -> tuple[Axis, ...]:
    """The axes of a tensor, or those that an arrow speaks of."""
    if isinstance(value, Value):
        return value.type.axes
    return (*(value.source or ()), *value.target) if isinstance(value, ArrowValue) else ()


def _shape(value: Value) -> str:
    return f"[{', '.join(str(a.size) for a in value.type.axes)}]"


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
