"""A model's dims: equations, worked out after overriding."""

from __future__ import annotations

from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Mark
from dskc.dsl.dims import Dim, DimSizeError
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .bindings import walk
from .evaluate import Evaluator, describe
from .frame import Frame
from .ir import Axis, DimInfo
from .program import ModelSource
from .reserved import dim_problem
from .values import POISON, Poison, Size


def model_dims(model: ModelSource, frame: Frame, evaluator: Evaluator) -> tuple[DimInfo, ...]:
    """Evaluates every `dims` section into the frame, overrides first; order does not matter, circles are reported."""
    entries = _entries(model, frame)
    for index, override in enumerate(model.overrides):
        if override.kind == "dim" and override.path in entries:
            said = entries[override.path]
            entries[override.path] = s.Setting(override.span, said.key, override.value, False, said.doc)
            frame.shared.used.add(index)
    frame.shared.dim_spans = {name: entry.key.span for name, entry in entries.items()}
    order: list[DimInfo] = []
    waiting: list[str] = []

    def settle(name: str) -> None:
        if name in frame.dims or name not in entries:
            return
        if name in waiting:
            chain = " -> ".join([*waiting[waiting.index(name) :], name])
            frame.report("DSK0207", f"`{name}` is defined by itself", entries[name].key.span, chain)
            frame.dims[name] = Axis(name, Dim.of(1))
            return
        waiting.append(name)
        for used in _names(entries[name].value):
            settle(used)
        waiting.pop()
        if name not in frame.dims:
            order.append(_settle(name, entries[name], frame, evaluator))

    for name in entries:
        settle(name)
    return tuple(order)


def _entries(model: ModelSource, frame: Frame) -> dict[str, s.Setting]:
    entries: dict[str, s.Setting] = {}
    for statement in model.base.body.statements:
        if not isinstance(statement, s.Dims):
            unread = isinstance(statement, s.Bad) and not statement.names  # it may have been the dims
            frame.shared.unread_dims = frame.shared.unread_dims or unread
            continue
        for entry in statement.section.entries:
            if isinstance(entry, s.Bad):
                frame.shared.unread_dims = frame.shared.failed = True
                continue
            name = entry.key.text
            if not isinstance(entry, s.Setting) or entry.bare or not entry.key.parts[0].is_dim:
                frame.shared.unread_dims = True
                settled = isinstance(entry, s.Setting) and not entry.bare
                label = "dims start with a capital" if settled else "a dim is written `D = 4096`"
                frame.report("DSK0151", f"`{name}` is no dim", entry.key.span, label)
            elif problem := dim_problem(name):
                frame.shared.unread_dims = True
                frame.report("DSK0119", f"a dim cannot be called `{name}`", entry.key.span, problem)
            elif name in entries:
                marks = (Mark(entries[name].key.span, "first here"),)
                frame.report("DSK0108", f"`{name}` is said twice", entry.key.span, "again here", marks)
            else:
                entries[name] = entry
    return entries


def _settle(name: str, entry: s.Setting, frame: Frame, evaluator: Evaluator) -> DimInfo:
    value = evaluator.evaluate(entry.value, frame)
    if isinstance(entry.value, s.Number) and entry.value.kind in ("bytes", "time"):
        frame.report("DSK0172", f"`{name}` is a plain number", entry.value.span, f"this is in {entry.value.kind}")
        value = POISON
    size = value.dim if isinstance(value, Size) else None
    if size is None and not isinstance(value, Poison):
        number = evaluator.number(value, frame)
        if number is None:
            frame.report("DSK0113", "a dim is a size", entry.value.span, f"this is {describe(value)}")
        else:
            size = _sized(number, entry.value.span, frame)
    if size is None:
        frame.dims[name] = Axis(name, Dim.of(name))
        frame.shared.sizes[name] = 1
        frame.shared.unsound_dims.add(name)
        return DimInfo(name, None, None, entry.doc, entry.key.span)
    if size.symbols() & frame.shared.unsound_dims or not _is_whole(name, size, entry.value.span, frame):
        frame.shared.unsound_dims.add(name)
    if size.is_constant:  # a dim of its own
        frame.shared.sizes[name] = int(size.constant)
        frame.dims[name] = Axis(name, Dim.of(name))
        return DimInfo(name, None, int(size.constant), entry.doc, entry.key.span)
    frame.dims[name] = Axis(name, size)
    return DimInfo(name, size, frame.size_value(size), entry.doc, entry.key.span)


def _sized(number: Fraction, span: Span, frame: Frame) -> Dim | None:
    try:
        return Dim.of(number)
    except DimSizeError as error:
        frame.report("DSK0131", str(error), span)
        return None


def _is_whole(name: str, size: Dim, span: Span, frame: Frame) -> bool:
    """Whether a size is a whole number from 1, as far as is known before data comes; reports one that is not."""
    try:
        value = size.evaluate(frame.shared.sizes)
    except KeyError:
        return True  # a dim of the data
    except ZeroDivisionError:
        frame.report("DSK0115", "this divides by zero", span)
        return False
    except DimSizeError as error:
        frame.report("DSK0131", str(error), span)
        return False
    if value.denominator != 1:
        parts = [f"{n} = {show_number(frame.shared.sizes[n])}" for n in sorted(size.symbols())]
        notes = (("note", ", ".join(parts)),) if parts else ()
        title = f"`{name}` is not a whole number"
        frame.report("DSK0208", title, span, f"this is {show_number(value)}", notes=notes)
    elif value < 1:
        frame.report("DSK0208", f"`{name}` is at least 1", span, f"this is {show_number(value)}")
    return value.denominator == 1 and value >= 1


def _names(node: s.Expression) -> list[str]:
    return [found.text for found in walk(node) if isinstance(found, s.Name) and found.is_dim]
