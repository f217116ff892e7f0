"""Declared types against real ones: dims unify by position, `..` takes what is left."""

from __future__ import annotations

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Mark
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .evaluate import Evaluator
from .frame import Frame
from .ir import Axis, DType, TensorType, Value

ELEMENTS = {"ids": DType.INT64, "ints": DType.INT64}


def element(kind: s.Type, frame: Frame) -> DType | None:
    """The dtype that a declared type names: floating point unless it says otherwise. None when it was reported."""
    if kind.element is None:
        return DType.COMPUTE
    if kind.element.text not in ELEMENTS:
        label = f"one of {', '.join(ELEMENTS)}, or nothing for floating point"
        frame.report("DSK0101", f"no element type is called `{kind.element.text}`", kind.element.span, label)
    return ELEMENTS.get(kind.element.text)


def bind_type(param: s.Param, value: Value, inner: Frame, outer: Frame, place: Span, evaluator: Evaluator) -> bool:
    """Unifies a parameter's type with an argument: new dims are bound, known ones compared. Reports in the caller."""
    kind = param.kind
    assert isinstance(kind, s.Type)
    name = f"`{param.name.text}` of `{inner.block}`"
    before = [i for i, axis in enumerate(kind.axes) if isinstance(axis, s.Ellipsis_)]
    axes = value.type.axes
    fixed = len(kind.axes) - len(before)
    if len(axes) < fixed or (not before and len(axes) != fixed):
        outer.report("DSK0203", f"{name} is {_spelled(kind)}", place, f"this is {_shape(axes)}")
        return False
    if kind.element is not None and element(kind, inner) != value.type.dtype:
        outer.report("DSK0203", f"{name} is {_spelled(kind)}", place, f"this is {value.type}")
        return False
    pairs: list[tuple[s.Expression, Axis]] = []
    if before:
        at = before[0]
        tail = len(kind.axes) - at - 1
        middle = axes[at : len(axes) - tail]
        if inner.rest is None:
            inner.rest = middle
        pairs += zip(kind.axes[:at], axes[:at], strict=True)
        pairs += zip(kind.axes[at + 1 :], axes[len(axes) - tail :], strict=True)
    else:
        pairs += zip(kind.axes, axes, strict=True)
    fits = [_unify(node, axis, param, inner, outer, place, evaluator) for node, axis in pairs]
    return all(fits)


def _unify(
    node: s.Expression, axis: Axis, param: s.Param, inner: Frame, outer: Frame, place: Span, evaluator: Evaluator
) -> bool:
    if isinstance(node, s.Name) and node.text not in inner.dims:
        inner.bind_dim(node.text, axis, place)
        return True
    wanted = evaluator.axis(node, inner)
    if wanted is None:
        return False
    if wanted.size == axis.size:
        return True
    title = f"`{node.span.text}` of `{inner.block}` is `{wanted.size}` and `{axis.size}` at once"
    marks: tuple[Mark, ...] = ()
    first = inner.bound_at.get(node.text) if isinstance(node, s.Name) else None
    if first is not None and first.source is place.source and first != place:
        marks = (Mark(first, f"`{wanted.size}` here"),)
    notes = outer.sizes_note(wanted.size, axis.size)
    a, b = outer.size_value(wanted.size), outer.size_value(axis.size)
    if a is not None and a == b:
        notes = (("note", f"both are {show_number(a)} today, but they are different dims: say that one is the other"),)
    outer.report("DSK0202", title, place, f"`{axis.size}` here", marks, notes)
    return False


def check_type(kind: s.Type, value: Value, inner: Frame, evaluator: Evaluator, place: Span | None = None) -> bool:
    """Whether a result has its declared type; reports at the declaration, and shows the `place` where it is bound."""
    declared = declared_type(kind, inner, evaluator)
    if declared is None:
        return False
    same = tuple(a.size for a in declared.axes) == tuple(a.size for a in value.type.axes)
    if not same:
        title = f"`{inner.block}` declares {_spelled(kind)}"
        marks = (Mark(place, "this is what it gives back"),) if place is not None else ()
        inner.report("DSK0205", title, kind.span, f"and gives back {_shape(value.type.axes)}", marks)
    return same


def declared_type(kind: s.Type, inner: Frame, evaluator: Evaluator) -> TensorType | None:
    """A written type with its dims looked up."""
    axes: list[Axis] = []
    for node in kind.axes:
        if isinstance(node, s.Ellipsis_):
            axes.extend(inner.rest or ())
            continue
        axis = evaluator.axis(node, inner)
        if axis is None:
            return None
        axes.append(axis)
    dtype = element(kind, inner)
    return None if dtype is None else TensorType(tuple(axes), dtype)


def _spelled(kind: s.Type) -> str:
    return " ".join(kind.span.text.split())


def _shape(axes: tuple[Axis, ...]) -> str:
    return f"[{', '.join(str(a.size) for a in axes)}]"
