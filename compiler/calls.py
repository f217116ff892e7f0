"""Calls: what is called, what its weights are named, and what it is given."""

from __future__ import annotations

import math
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Mark
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean

from .arguments import Binder
from .blocks import Blocks, RunBody, called_signature
from .builder import NameReserved, NameTaken
from .evaluate import FUNCTIONS, ROOTS_AND_LOGARITHMS, Evaluator, describe, dim_of, numeric
from .frame import Frame
from .ir import Axis, Value
from .masks import MASKS, mask_problem
from .ops.base import ShapeError
from .passes.resolve import library_index
from .primitive import Primitive, Site
from .primitives import PRIMITIVES
from .program import Scope
from .signature import Signature
from .values import POISON, ArrowValue, BlockDefinition, BlockValue, Expressed, Mask, Poison, Size

# Masks that are called, as `window(4096)`; those without parameters are words.
_MASKS = {name: signature for name, signature in MASKS.items() if signature.parameters}


class Calls:
    """Handles `callee(arguments) as alias`. `run` executes a block's statements (see `passes/expand.py`)."""

    def __init__(self, run: RunBody) -> None:
        self.evaluator = Evaluator(self.call)
        self.binder = Binder(self.evaluator)
        self.blocks = Blocks(run, self.evaluator, self.binder)

    def call(self, node: s.Call, frame: Frame, hint: str | None, consumer: str | None) -> Expressed:
        name = node.callee.text
        if name not in frame.names:
            if name in FUNCTIONS or (
                name in ROOTS_AND_LOGARITHMS and numeric(node.arguments[0].value if node.arguments else node, frame)
            ):
                return self._function(node, frame)
            if name in _MASKS and name not in frame.scope.names:
                return self._mask(_MASKS[name], node, frame)
        callee = self._callee(node, frame)
        if isinstance(callee, Poison):
            for (
                argument
            ) in node.arguments:  # what is wrong in there is worth knowing too, where any block would take it
                if argument.label is None and not isinstance(argument.value, s.Arrow | s.Path):
                    self.evaluator.evaluate(argument.value, frame, None, name)
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
        found = self._scope(node, frame).names.get(name) or frame.scope.names.get(name)
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

    def _scope(self, node: s.Call, frame: Frame) -> Scope:
        """What names mean where a call is written: for an argument that a derived model says, in that one's file."""
        source = node.callee.span.source
        if source is frame.scope.source:
            return frame.scope
        return next((o.scope for o in frame.shared.overrides if o.span.source is source), frame.scope)

    def _suggestion(self, name: str, frame: Frame) -> str:
        library = library_index()
        if name in library and name not in frame.scope.names:
            return "it is in std: add it to `use std { ... }`"
        values = [n for n, v in frame.names.items() if isinstance(v, BlockValue)]
        near = did_you_mean(name, [*values, *frame.scope.blocks(), *PRIMITIVES, *FUNCTIONS, *_MASKS, *library])
        if near is None:
            return ""
        if near in frame.scope.names:
            owner = frame.scope.owners[near]
            where = "It is in std, and already imported" if owner.library else "It is in this file"
            if not owner.library and owner is not frame.scope:
                where = f"It is in {owner.source.path}, and already imported"
            return f"did you mean `{near}`? {where}"
        if near in PRIMITIVES or near in values or near in FUNCTIONS or near in _MASKS:
            return f"did you mean `{near}`?"
        return f"did you mean `{near}`? It is in std: add it to `use std {{ ... }}`"

    # --- small calls

    def _function(self, node: s.Call, frame: Frame) -> Expressed:
        found = [self.evaluator.evaluate(a.value, frame) for a in node.arguments]
        if any(isinstance(v, Poison) for v in found):
            return POISON
        name = node.callee.text
        wanted = 1 if name in ("floor", "ceil", *ROOTS_AND_LOGARITHMS) else None
        values = [v for v in found if isinstance(v, Size | Fraction)]
        if not values or len(values) != (wanted or len(found)) or len(values) != len(found):
            frame.report("DSK0114", f"`{name}` needs {'one number' if wanted else 'numbers'} or dims", node.span)
            return POISON
        if name in ROOTS_AND_LOGARITHMS:
            return self._real(node, values[0], frame)
        result = FUNCTIONS[name](*(dim_of(v) for v in values))
        if all(isinstance(v, Fraction) for v in values):
            return result.constant
        return Size(Axis("".join(v.axis.name for v in values if isinstance(v, Size)), result))

    def _real(self, node: s.Call, value: Size | Fraction, frame: Frame) -> Expressed:
        """The square root or the natural logarithm of a number, or of a dim that has a value, in floating point."""
        name, number = node.callee.text, self.evaluator.number(value, frame)
        if number is None or number < 0 or (number == 0 and name == "log"):
            what = describe(value) if number is not None else f"{describe(value)}, which has no value before data comes"
            least = "from 0" if name == "sqrt" else "over 0"
            frame.report("DSK0114", f"`{name}` needs a number {least}", node.span, f"this is {what}")
            return POISON
        return Fraction(math.sqrt(number) if name == "sqrt" else math.log(number))

    def _mask(self, signature: Signature, node: s.Call, frame: Frame) -> Expressed:
        bound = self.binder.bind(signature, node.arguments, frame, None)
        filled = self.binder.fill(signature, bound[0], frame, node.span) if bound else None
        if bound is None or filled is None:
            return POISON
        arguments = {name: int(value) for name, value in filled.items() if isinstance(value, Fraction)}
        problem = mask_problem(signature.name, arguments)
        if problem is not None:
            frame.report("DSK0131", problem[1], bound[1].get(problem[0], node.span))
            return POISON
        return Mask(signature.name, arguments=tuple(arguments.items()))

    # --- definitions and values

    def _call_definition(
        self, callee: Primitive | BlockDefinition, node: s.Call, frame: Frame, hint: str | None, consumer: str | None
    ) -> Expressed:
        signature, weighted = called_signature(callee, frame)
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
        signature, weighted = called_signature(value.callee, frame)
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
                inline = self.blocks.inline
                site.expand = lambda value, tensors, builder, at: inline(value, tensors, builder, at, frame, span)
                return callee.build(site)
            path = owner.path if owner and owner.path else frame.builder.join(name)
            return self.blocks.block(callee, signature, values, spans, span, frame, path, owner)
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


def _axes(value: Expressed) -> tuple[Axis, ...]:
    """The axes of a tensor, or those that an arrow speaks of."""
    if isinstance(value, Value):
        return value.type.axes
    return (*(value.source or ()), *value.target) if isinstance(value, ArrowValue) else ()


def _shape(value: Value) -> str:
    return f"[{', '.join(str(a.size) for a in value.type.axes)}]"
