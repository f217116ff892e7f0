"""Arguments to parameters: which goes where, and whether it is what the parameter takes."""

from __future__ import annotations

from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.dims import Dim
from dskc.dsl.source import Span
from dskc.dsl.suggest import did_you_mean

from .evaluate import Evaluator, describe
from .frame import Frame
from .ir import Axis, Value
from .sections import UNITS
from .signature import DTYPES, REQUIRED, Kind, Parameter, Record, Signature
from .values import POISON, ArrowValue, BlockDefinition, BlockValue, Expressed, Mask, Poison, Size

VALUE_KINDS = {
    "int": Kind.INT,
    "float": Kind.FLOAT,
    "bool": Kind.BOOL,
    "block": Kind.BLOCK,
    "mask": Kind.MASK,
    "dtype": Kind.DTYPE,
    "word": Kind.SYMBOL,
}


def block_signature(definition: BlockDefinition, frame: Frame) -> Signature:
    """A block's parameters in the form that primitives declare theirs."""
    block = definition.syntax
    return Signature(block.name.text, tuple(_block_parameter(p, frame) for p in block.params), block.doc or "")


def _block_parameter(param: s.Param, frame: Frame) -> Parameter:
    name = param.name.text
    optional = getattr(param.kind, "optional", False)
    default = None if optional or param.default is not None else REQUIRED
    match param.kind:
        case s.Type():
            return Parameter(name, Kind.TENSOR, default)
        case s.DimKind():
            return Parameter(name, Kind.SIZE, default)
        case s.ValueKind():
            kind = VALUE_KINDS.get(param.kind.name.text)
            if kind is None:
                near = did_you_mean(param.kind.name.text, VALUE_KINDS)
                label = f"did you mean `{near}`?" if near else f"kinds are {', '.join(VALUE_KINDS)}"
                frame.report(
                    "DSK0101", f"no kind of parameter is called `{param.kind.name.text}`", param.kind.span, label
                )
                kind = Kind.FLOAT
            return Parameter(name, kind, default)
    if isinstance(param.default, s.Boolean):
        return Parameter(name, Kind.BOOL, default)
    whole = (
        isinstance(param.default, s.Number) and param.default.value.denominator == 1 and "." not in param.default.text
    )
    return Parameter(name, Kind.INT if whole else Kind.FLOAT, default)


def _gathered(signature: Signature, arguments: tuple[s.Argument, ...]) -> tuple[s.Argument, ...]:
    """Arguments with those of a variadic parameter as one list."""
    items = [a for a in arguments if a.label is None]
    if len(items) < 2 or not signature.parameters[0].variadic:
        return arguments
    span = items[0].span.to(items[-1].span)
    whole = s.Argument(span, None, s.List(span, tuple(a.value for a in items)))
    return (whole, *(a for a in arguments if a.label is not None))


class Binder:
    """Binds a call's arguments to a signature, reporting what does not fit."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def bind(
        self,
        signature: Signature,
        arguments: tuple[s.Argument, ...],
        frame: Frame,
        consumer: str | None,
        given: dict[str, Expressed] | None = None,
        at: Span | None = None,
    ) -> tuple[dict[str, Expressed], dict[str, Span]] | None:
        """Values by parameter, without defaults, and where each stands; None when something was reported."""
        bound: dict[str, Expressed] = dict(given or {})
        spans: dict[str, Span] = {}
        sound = True
        positional = [p for p in signature.parameters if p.name not in bound and p.kind is not Kind.ARROW]
        arrows = [p for p in signature.parameters if p.kind is Kind.ARROW]
        for argument in _gathered(signature, arguments):
            parameter = self._parameter(signature, argument, positional, arrows, bound, frame, at)
            if parameter is None:
                sound = False
                continue
            value = self.value(parameter, argument.value, frame, consumer)
            spans[parameter.name] = argument.value.span
            bound[parameter.name] = value
            sound = sound and not isinstance(value, Poison)
        return (bound, spans) if sound else None

    def _parameter(
        self,
        signature: Signature,
        argument: s.Argument,
        positional: list[Parameter],
        arrows: list[Parameter],
        bound: dict[str, Expressed],
        frame: Frame,
        at: Span | None,
    ) -> Parameter | None:
        if argument.label is not None:
            name = argument.label.text
            parameter = signature.parameter(name)
            if parameter is None:
                self._unknown(signature, argument.label, frame)
            elif name in bound:
                frame.report("DSK0122", f"`{name}` is given twice", argument.span)
                return None
            if parameter in positional:
                positional.remove(parameter)
            return parameter
        if isinstance(argument.value, s.Arrow):
            if arrows and arrows[0].name not in bound:
                return arrows[0]
            frame.report("DSK0123", f"`{signature.name}` takes no `->` here", argument.span, f"it is {signature}")
            return None
        if positional:
            return positional.pop(0)
        frame.report("DSK0123", f"`{signature.name}` has no place for this", argument.span, f"it is {signature}")
        return None

    def _unknown(self, signature: Signature, label: s.Name, frame: Frame) -> None:
        names = [p.name for p in signature.parameters]
        near = did_you_mean(label.text, names)
        text = f"did you mean `{near}`?" if near else f"it is {signature}"
        frame.report("DSK0124", f"`{signature.name}` takes no `{label.text}`", label.span, text)

    def fill(
        self, signature: Signature, bound: dict[str, Expressed], frame: Frame, span: Span
    ) -> dict[str, Expressed] | None:
        """Defaults for what was not given; reports what is missing."""
        missing = [p for p in signature.parameters if p.required and p.name not in bound]
        if missing:
            names = ", ".join(f"`{p.name}`" for p in missing)
            wanted = "; ".join(f"`{p.name}` is {p.kind.value}" for p in missing)
            frame.report("DSK0125", f"`{signature.name}` also needs {names}", span, wanted)
            return None
        given = {**signature.defaults, **bound}
        return {p.name: given[p.name] for p in signature.parameters}

    # --- one value of one kind

    def value(self, p: Parameter, node: s.Expression, frame: Frame, consumer: str | None = None) -> Expressed:
        """The value of an expression as what a parameter takes, or POISON."""
        if p.kind in (Kind.SYMBOL, Kind.DTYPE):
            return self._word(p, node, frame)
        if p.kind is Kind.RECORD:
            return self._record(p, node, frame)
        if p.kind is Kind.SIZES:  # a dim by itself is a list of one
            axes = self.evaluator.axes(node, frame)
            return POISON if axes is None else tuple(Size(axis) for axis in axes)
        if p.kind is Kind.SIZE and not isinstance(node, s.Path | s.Conditional):
            axis = self.evaluator.axis(node, frame)
            return POISON if axis is None else Size(axis)
        if isinstance(node, s.Number) and node.kind in ("bytes", "time") and p.name not in UNITS:
            frame.report("DSK0172", f"`{p.name}` is a plain number", node.span, f"this is in {node.kind}")
            return POISON
        value = self.evaluator.evaluate(node, frame, None, consumer)
        return value if isinstance(value, Poison) else self.checked(p, value, node, frame)

    def checked(self, p: Parameter, value: Expressed, node: s.Expression, frame: Frame) -> Expressed:
        """`value` where it is what `p` takes, converted where that loses nothing."""
        if value is None and p.default is None:
            return None
        match p.kind:
            case Kind.TENSOR if isinstance(value, Value):
                return value
            case Kind.TENSORS if isinstance(value, Value):
                return (value,) if p.variadic else value
            case Kind.TENSORS if isinstance(value, tuple) and value and all(isinstance(v, Value) for v in value):
                return value
            case Kind.ARROW if isinstance(value, ArrowValue):
                return value
            case Kind.BOOL if isinstance(value, bool):
                return value
            case Kind.MASK if isinstance(value, Mask):
                return value
            case Kind.BLOCK if isinstance(value, BlockValue):
                return value
            case Kind.SIZE if isinstance(value, Size):
                return value
            case Kind.SIZE if isinstance(value, Fraction) and value.denominator == 1:
                return Size(Axis("", Dim.of(value)))
            case Kind.NUMBERS if isinstance(value, tuple) and all(isinstance(v, Fraction) for v in value):
                return value
            case Kind.INT | Kind.FLOAT if not isinstance(value, bool):
                number = self.evaluator.number(value, frame)
                if number is not None and (p.kind is Kind.FLOAT or number.denominator == 1):
                    return number
        frame.report("DSK0126", f"`{p.name}` is {p.kind.value}", node.span, f"this is {describe(value)}")
        return POISON

    def _word(self, p: Parameter, node: s.Expression, frame: Frame) -> Expressed:
        choices = p.choices or (DTYPES if p.kind is Kind.DTYPE else ())
        if not isinstance(node, s.Path) or len(node.parts) > 1:
            wanted = f"one of {', '.join(choices)}" if choices else "a word"
            frame.report("DSK0126", f"`{p.name}` is {wanted}", node.span)
            return POISON
        word = node.text
        if word in frame.names and word not in choices:
            given = frame.names[word]
            if isinstance(given, Poison) or (given is None and p.default is None):
                return given
            if not isinstance(given, str):
                frame.report("DSK0126", f"`{p.name}` is {p.kind.value}", node.span, f"this is {describe(given)}")
                return POISON
            word = given
        if not choices or word in choices:
            return word
        near = did_you_mean(word, choices)
        label = f"did you mean `{near}`?" if near else f"one of {', '.join(choices)}"
        frame.report("DSK0132", f"`{p.name}` cannot be `{word}`", node.span, label)
        return POISON

    def _record(self, p: Parameter, node: s.Expression, frame: Frame) -> Expressed:
        if isinstance(node, s.Path) and node.text in frame.names:
            given = frame.names[node.text]  # of no kind that a block's parameters can be of
            if isinstance(given, Poison) or (given is None and p.default is None):
                return given
            frame.report("DSK0126", f"`{p.name}` is {p.kind.value}", node.span, f"this is {describe(given)}")
            return POISON
        callee = node.callee if isinstance(node, s.Call) else node if isinstance(node, s.Path) else None
        names = [r.name for r in p.records]
        if callee is None:
            frame.report("DSK0126", f"`{p.name}` is one of {', '.join(names)}", node.span)
            return POISON
        signature = next((r for r in p.records if r.name == callee.text), None)
        if signature is None:
            near = did_you_mean(callee.text, names)
            label = f"did you mean `{near}`?" if near else f"one of {', '.join(names)}"
            frame.report("DSK0132", f"`{p.name}` cannot be `{callee.text}`", callee.span, label)
            return POISON
        arguments = node.arguments if isinstance(node, s.Call) else ()
        return self.record(signature, arguments, frame, node.span)

    def record(
        self, signature: Signature, arguments: tuple[s.Argument, ...], frame: Frame, span: Span
    ) -> Record | Poison:
        """A constructor applied, defaults filled in."""
        bound = self.bind(signature, arguments, frame, None)
        filled = self.fill(signature, bound[0], frame, span) if bound else None
        return POISON if filled is None else Record(signature.name, tuple(filled.items()))
