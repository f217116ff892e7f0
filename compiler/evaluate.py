"""Expressions to values: numbers and dims exactly, masks as trees, calls through `calls.py`."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from dskc.dsl import syntax as s
from dskc.dsl.dims import Dim, DimSizeError, ceil, floor, maximum, minimum
from dskc.dsl.numbers import show_number
from dskc.dsl.suggest import did_you_mean

from .frame import Frame
from .ir import Axis, Value
from .masks import MASKS
from .ops.base import ShapeError
from .ops.elementwise import Elementwise
from .signature import DTYPES, Record
from .values import POISON, ArrowValue, BlockValue, Expressed, Mask, Poison, Size

if TYPE_CHECKING:
    from dskc.dsl.source import Span

_TENSOR_OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div"}
_COMPARE: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
FUNCTIONS: dict[str, Callable[..., Dim]] = {"floor": floor, "ceil": ceil, "min": minimum, "max": maximum}
ROOTS_AND_LOGARITHMS = ("sqrt", "log")  # of numbers they are numbers, of tensors operations
NO_NUMBERS = ("nan", "inf", "infinity")
MASK_WORDS = tuple(name for name, mask in MASKS.items() if not mask.parameters)
CallHandler = Callable[[s.Call, Frame, str | None, str | None], Expressed]
Exact = TypeVar("Exact", Fraction, Dim)


class Evaluator:
    """Evaluates expressions in frames. Whatever is wrong is reported once and becomes POISON."""

    def __init__(self, call: CallHandler) -> None:
        self._call = call

    def evaluate(
        self, node: s.Expression, frame: Frame, hint: str | None = None, consumer: str | None = None
    ) -> Expressed:
        """The value of an expression; `hint` and `consumer` name a weighted call's weights (see `calls.py`)."""
        match node:
            case s.Number():
                if node.kind == s.UNREAD:
                    frame.shared.failed = True
                    return POISON
                return node.value
            case s.String():
                return node.value
            case s.Boolean():
                return node.value
            case s.Name():
                return self._dim(node, frame)
            case s.Path():
                return self._path(node, frame)
            case s.Parenthesized():
                return self.evaluate(node.inner, frame, None, consumer)
            case s.List():
                return self._list(node, frame, consumer)
            case s.Call():
                return self._call(node, frame, hint, consumer)
            case s.Conditional():
                condition = self.condition(node.condition, frame)
                if condition is None:
                    return POISON
                return self.evaluate(node.then if condition else node.otherwise, frame, hint, consumer)
            case s.Unary():
                return self._unary(node, frame, consumer)
            case s.Binary():
                return self._binary(node, frame, consumer)
            case s.Arrow():
                return self._arrow(node, frame)
            case s.Ellipsis_():
                frame.report("DSK0110", "`..` stands in types, and left of `->`", node.span)
                return POISON
        raise AssertionError(node)

    # --- names

    def _dim(self, node: s.Name, frame: Frame) -> Expressed:
        if node.text in frame.dims:
            axis = frame.dims[node.text]
            return None if axis is None else Size(axis)
        frame.shared.failed = True
        if not frame.shared.unread_dims:
            self._unknown(node.text, node.span, frame, "dim", list(frame.dims))
        return POISON

    def _path(self, node: s.Path, frame: Frame) -> Expressed:
        name = node.parts[0].text
        if len(node.parts) > 1:
            frame.report("DSK0111", f"`{node.text}` is a path, and this place needs a value", node.span)
            return POISON
        if name in frame.names:
            return frame.names[name]
        if name in MASK_WORDS:
            return Mask(name)
        if name in DTYPES:
            return name
        self._unknown(name, node.span, frame, "value", [*frame.names, *MASK_WORDS, "true", "false"])
        return POISON

    def _unknown(self, name: str, span: Span, frame: Frame, what: str, candidates: list[str]) -> None:
        near = did_you_mean(name, candidates)
        label = f"did you mean `{near}`?" if near else ""
        if name.lower() in NO_NUMBERS:
            label = "a number is written in digits, such as `3e-4`"
        elif not near and what == "value":
            label = "nothing of this name has been bound before this line"
        frame.report_unknown(what, name, span, label, near, others=what == "value" and frame.shared.unread_values)

    # --- operators

    def _list(self, node: s.List, frame: Frame, consumer: str | None) -> Expressed:
        items = tuple(self.evaluate(item, frame, None, consumer) for item in node.items)
        return POISON if POISON in items else items

    def _arrow(self, node: s.Arrow, frame: Frame) -> Expressed:
        source: tuple[Axis, ...] | None = None
        if not isinstance(node.source, s.Ellipsis_):
            source = self.axes(node.source, frame)
            if source is None:
                return POISON
        target = self.axes(node.target, frame)
        return POISON if target is None else ArrowValue(source, target)

    def axes(self, node: s.Expression, frame: Frame) -> tuple[Axis, ...] | None:
        """`D` or `[H, E]` as axes; None when something in it has been reported."""
        items = node.items if isinstance(node, s.List) else (node,)
        found = [self.axis(item, frame) for item in items]
        return None if any(axis is None for axis in found) else tuple(a for a in found if a is not None)

    def axis(self, node: s.Expression, frame: Frame) -> Axis | None:
        """One size as an axis, named after the dim that it is, or after all that it is made of."""
        value = self.evaluate(node, frame)
        if isinstance(value, Poison):
            return None
        if value is None:
            if (key := (frame.scope.source.path, node.span.text)) not in frame.shared.unknown:
                frame.shared.unknown.add(key)
                frame.report("DSK0112", f"`{node.span.text}` was not given", node.span, "ask for it with `if` first")
            frame.shared.failed = True
            return None
        if isinstance(value, Fraction):
            value = Size(Axis(_axis_name(node), Dim.of(value)))
        if not isinstance(value, Size):
            frame.report("DSK0113", "an axis is a dim", node.span, f"this is {describe(value)}")
            return None
        if value.dim.is_constant and (value.dim.constant < 1 or value.dim.constant.denominator != 1):
            title = f"a size is a whole number from 1, not {show_number(value.dim.constant)}"
            frame.report("DSK0208", title, node.span)
            return None
        if isinstance(node, s.Name) and value.axis.size.is_constant:
            return Axis(node.text, value.axis.size)
        return value.axis if isinstance(node, s.Name | s.Path) else Axis(_axis_name(node), value.axis.size)

    def _unary(self, node: s.Unary, frame: Frame, consumer: str | None) -> Expressed:
        if node.operator == "not":
            condition = self.condition(node.operand, frame)
            return POISON if condition is None else not condition
        value = self.evaluate(node.operand, frame, None, consumer)
        if isinstance(value, Fraction):
            return -value
        if isinstance(value, Size):
            return Size(Axis(value.axis.name, -value.axis.size))
        if isinstance(value, Value):
            return frame.builder.one(Elementwise("mul", by=-1.0), (value,), node.span)
        if not isinstance(value, Poison):
            frame.report("DSK0114", f"`-` needs a number or a tensor, not {describe(value)}", node.span)
        return POISON

    def _binary(self, node: s.Binary, frame: Frame, consumer: str | None) -> Expressed:
        if node.operator in ("and", "or"):
            left = self.condition(node.left, frame)
            if left is None or (node.operator == "or" and left) or (node.operator == "and" and not left):
                return POISON if left is None else left
            right = self.condition(node.right, frame)
            return POISON if right is None else right
        left_value = self.evaluate(node.left, frame, None, consumer)
        right_value = self.evaluate(node.right, frame, None, consumer)
        if isinstance(left_value, Poison) or isinstance(right_value, Poison):
            return POISON
        try:
            return self._combine(node, left_value, right_value, frame)
        except ShapeError as error:
            frame.report(error.code, str(error), node.span)
        except ZeroDivisionError:
            frame.report("DSK0115", "this divides by zero", node.right.span)
        except DimSizeError as error:
            frame.report("DSK0131", str(error), node.span)
        return POISON

    def _combine(self, node: s.Binary, left: Expressed, right: Expressed, frame: Frame) -> Expressed:
        operator = node.operator
        if operator in ("&", "|"):
            if isinstance(left, Mask) and isinstance(right, Mask):
                return Mask(operator, (left, right))
        elif operator in _COMPARE:
            return self._compare(node, left, right, frame)
        elif isinstance(left, Value) or isinstance(right, Value):
            return self._tensors(node, left, right, frame)
        elif isinstance(left, Fraction) and isinstance(right, Fraction):
            return Dim.of(_arithmetic(operator, left, right)).constant  # which refuses what grows too long
        elif isinstance(left, Size | Fraction) and isinstance(right, Size | Fraction):
            return Size(Axis(_axis_name(node), _arithmetic(operator, dim_of(left), dim_of(right))))
        frame.report(
            "DSK0114",
            f"`{operator}` does not go between {describe(left)} and {describe(right)}",
            node.span,
        )
        return POISON

    def _tensors(self, node: s.Binary, left: Expressed, right: Expressed, frame: Frame) -> Expressed:
        kind = _TENSOR_OPERATORS.get(node.operator)
        if kind is None:
            frame.report("DSK0114", f"`{node.operator}` does not go between tensors", node.span)
            return POISON
        add = frame.builder.one
        if isinstance(left, Value) and isinstance(right, Value):
            return add(Elementwise(kind), (left, right), node.span)
        tensor, number = (left, right) if isinstance(left, Value) else (right, left)
        assert isinstance(tensor, Value)
        by = self._float(number, frame)
        if by is None:
            frame.report("DSK0114", f"`{node.operator}` does not go between a tensor and {describe(number)}", node.span)
            return POISON
        return add(Elementwise(kind, by=by, reverse=not isinstance(left, Value)), (tensor,), node.span)

    def _float(self, value: Expressed, frame: Frame) -> float | None:
        if isinstance(value, Fraction):
            return float(value)
        if isinstance(value, Size):
            try:
                return float(value.dim.evaluate(frame.shared.sizes))
            except (KeyError, ZeroDivisionError, DimSizeError):
                return None
        return None

    def _compare(self, node: s.Binary, left: Expressed, right: Expressed, frame: Frame) -> Expressed:
        if isinstance(left, str | bool) or isinstance(right, str | bool) or left is None or right is None:
            if node.operator in ("==", "!="):
                return (left == right) == (node.operator == "==")
        else:
            a, b = self.number(left, frame), self.number(right, frame)
            if a is not None and b is not None:
                return _COMPARE[node.operator](a, b)
            for value, side in ((left, node.left), (right, node.right)):
                if isinstance(value, Size) and self.number(value, frame) is None:
                    title = f"`{value.dim}` has no value before data comes"
                    frame.report("DSK0116", title, side.span, "compile-time conditions need numbers")
                    return POISON
        frame.report(
            "DSK0114", f"`{node.operator}` does not compare {describe(left)} with {describe(right)}", node.span
        )
        return POISON

    def number(self, value: Expressed, frame: Frame) -> Fraction | None:
        """A number or a dim with a value, exactly."""
        if isinstance(value, Fraction):
            return value
        if isinstance(value, Size):
            try:
                return value.dim.evaluate(frame.shared.sizes)
            except (KeyError, ZeroDivisionError, DimSizeError):
                return None
        return None

    def worth(self, node: s.Node, frame: Frame) -> Fraction | bool | None:
        """What a plain expression of numbers, dims and names is worth; None where it is not to be told, unreported."""
        match node:
            case s.Number() | s.Boolean():
                return node.value
            case s.Name():
                axis = frame.dims.get(node.text)
                return self.number(Size(axis), frame) if axis is not None else None
            case s.Path():
                value = frame.names.get(node.text)
                return value if isinstance(value, bool) else self.number(value, frame)
            case s.Parenthesized():
                return self.worth(node.inner, frame)
            case s.Unary():
                inner = self.worth(node.operand, frame)
                if inner is None or node.operator == "not":
                    return None if inner is None else not inner
                return -Fraction(inner)
            case s.Binary():
                left, right = self.worth(node.left, frame), self.worth(node.right, frame)
                if left is None or right is None:
                    return None
                if node.operator in ("and", "or"):
                    return bool(left and right) if node.operator == "and" else bool(left or right)
                if node.operator in _COMPARE:
                    return _COMPARE[node.operator](Fraction(left), Fraction(right))
                try:
                    return _arithmetic(node.operator, Fraction(left), Fraction(right))
                except ZeroDivisionError:
                    return None
        return None

    def condition(self, node: s.Expression, frame: Frame) -> bool | None:
        """Decides a condition at compile time. An optional parameter is true when it was given."""
        value = self.evaluate(node, frame)
        if isinstance(value, Poison):
            return None
        if isinstance(value, bool):
            return value
        if value is None:
            return False
        if isinstance(value, Size | BlockValue | Mask | Record):
            return True
        if isinstance(value, Value) and isinstance(node, s.Path) and node.text in frame.optional:
            return True
        hint = "compare it, as in `n > 0`" if isinstance(value, Fraction) else "there is no control flow over data"
        frame.report("DSK0117", f"a condition is true or false, not {describe(value)}", node.span, hint)
        return None


def numeric(node: s.Expression, frame: Frame) -> bool:
    """Whether an expression is one of numbers and dims: `sqrt` and `log` of those are numbers, and else of tensors."""
    match node:
        case s.Number() | s.Name():
            return True
        case s.Path():
            return len(node.parts) == 1 and isinstance(frame.names.get(node.text), Fraction | Size)
        case s.Parenthesized():
            return numeric(node.inner, frame)
        case s.Unary():
            return numeric(node.operand, frame)
        case s.Binary():
            return numeric(node.left, frame) and numeric(node.right, frame)
        case s.Call():
            known = node.callee.text in (*FUNCTIONS, *ROOTS_AND_LOGARITHMS) and node.callee.text not in frame.names
            return known and bool(node.arguments) and all(numeric(a.value, frame) for a in node.arguments)
    return False


def dim_of(value: Size | Fraction) -> Dim:
    """A size, or a number as one."""
    return value.dim if isinstance(value, Size) else Dim.of(value)


def _arithmetic(operator: str, left: Exact, right: Exact) -> Exact:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if operator == "/":
        return left / right
    return left % right


def _axis_name(node: s.Expression) -> str:
    """A name for a composed size: the dims in it, in order."""
    match node:
        case s.Name():
            return node.text
        case s.Binary():
            return _axis_name(node.left) + _axis_name(node.right)
        case s.Unary():
            return _axis_name(node.operand)
        case s.Parenthesized():
            return _axis_name(node.inner)
        case s.Call():
            return "".join(_axis_name(a.value) for a in node.arguments)
    return ""


def describe(value: Expressed) -> str:
    """A value as messages call it."""
    match value:
        case Value():
            return f"a tensor {value.type}"
        case Size():
            return f"the dim `{value.dim}`"
        case bool():
            return "true" if value else "false"
        case Fraction():
            return f"the number {show_number(value)}"
        case str():
            return f"the text `{value}`"
        case None:
            return "nothing (it was not given)"
        case tuple():
            return "a list"
        case Mask():
            return "a mask"
        case BlockValue():
            return f"`{value.name}`, a block still to be applied"
        case Record():
            return f"`{value.name}(...)`"
        case ArrowValue():
            return "axes"
    return "a definition"
