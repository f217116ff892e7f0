"""Builds regions: appends operations whose types are inferred at once, and remembers what each weight is called."""

from __future__ import annotations

from dskc.dsl.diagnostics import Diagnostic, DiagnosticError
from dskc.dsl.dims import Dim
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .ir import Axis, DType, Op, Region, TensorType, Value
from .ops.base import Operation, ShapeError
from .ops.weights import Weight, Weights
from .reserved import module_problem

MAX_OPERATIONS = 20_000
STACKED = {"Linear": "GroupedLinear"}  # what a module becomes when there is one for every expert


class NameTaken(Exception):
    """Two weights of one name."""

    def __init__(self, path: str, first: Span) -> None:
        super().__init__(path)
        self.path = path
        self.first = first


class NameReserved(ShapeError):
    """A name that a module cannot have."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, code="DSK0119")


class Builder:
    """One region under construction. `path` is the weight path of the block or repeat whose body this is."""

    def __init__(self, path: str, parent: Builder | None = None, inputs: dict[str, Value] | None = None) -> None:
        self.path = path
        self.parent = parent
        self.ops: list[Op] = []
        self.losses: dict[str, Value] = {}
        self.taken: dict[str, Span] = {}
        self.root: Builder = parent.root if parent else self
        self.operations = 0  # in all regions, counted by the root
        self.inputs: dict[str, Value] = inputs if inputs is not None else {}
        self.stack: Axis | None = parent.stack if parent else None  # inside experts: how many copies there are,
        self.offsets: Value | None = parent.offsets if parent else None  # and where the rows of each one end
        self.home: Builder | None = parent.home if parent else None  # inside a block value: where its weights stand,
        self.declared: dict[str, Op] = {}  # and those that stand here for such blocks, each once however often applied
        self.owns = False  # whether there are weights under its path

    def count_operation(self, span: Span) -> None:
        """Raises DiagnosticError when there are too many: blocks that use others twice grow without end."""
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            title = f"this model has over {show_number(MAX_OPERATIONS)} operations"
            help_ = "a `repeat` whose body does not speak of its index is read once, however often it runs"
            raise DiagnosticError(Diagnostic("DSK0191", title, span, "the last of them", notes=(("help", help_),)))

    def join(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def take(self, path: str, span: Span) -> None:
        """Claims a weight path in this body; raises NameTaken when it is another's, NameReserved when it cannot be."""
        if path in self.taken:
            raise NameTaken(path, self.taken[path])
        problem = module_problem(path.rsplit(".", 1)[-1])
        if problem is not None:
            raise NameReserved(problem)
        self.taken[path] = span

    def own(self, path: str) -> None:
        """Tells every body around that there are weights at `path`."""
        around: Builder | None = self
        while around is not None:
            around.owns = around.owns or path.startswith(around.join(""))
            around = around.parent

    def add(
        self, attributes: Operation, operands: tuple[Value, ...], span: Span, name: str | None = None
    ) -> tuple[Value, ...]:
        """Appends an operation; raises ShapeError when the operands do not fit."""
        self.root.count_operation(span)
        types = attributes.infer(*(value.type for value in operands))
        names = attributes.result_names or (name if len(types) == 1 else None,) * len(types)
        results = tuple(Value(t, n) for t, n in zip(types, names, strict=True))
        self.ops.append(Op(attributes, operands, results, span))
        return results

    def one(self, attributes: Operation, operands: tuple[Value, ...], span: Span, name: str | None = None) -> Value:
        (result,) = self.add(attributes, operands, span, name)
        return result

    def weights(
        self, path: str, module: str, weights: tuple[Weight, ...], span: Span, **options: object
    ) -> tuple[Value, ...]:
        """Declares one module's weights; their values live in this region and are seen by those within.

        Inside a block value they live where that value was made, and applying it again gives the same ones. Raises
        NameTaken when the path is another's, ShapeError when the module cannot be stacked for experts, or is not what
        the value was applied with before.
        """
        if self.stack is not None:
            if module not in STACKED:
                raise ShapeError(f"inside `experts` a `{module}` cannot be stacked; only linear layers can")
            module = STACKED[module]
            weights = tuple(Weight(w.name, ((self.stack,), *w.groups), w.init) for w in weights)
        self.take(path, span)
        self.own(path)
        attributes = Weights(path=path, module=module, weights=weights, options=tuple(options.items()))
        home = self.home or self
        if path in home.declared:
            if home.declared[path].attributes != attributes:
                before = ", ".join(str(value.type) for value in home.declared[path].results)
                raise ShapeError(f"`{path}` was applied before with weights {before}")
            return home.declared[path].results
        if path.count("*") != home.path.count("*"):
            title = "a block with a repeat in it is called with its tensor: as a value it is not compiled yet"
            raise ShapeError(title, code="DSK0190")
        op = Op(attributes, (), tuple(Value(w.type) for w in weights), span)
        home.ops.append(op)
        if self.home is not None:
            home.declared[path] = op
        return op.results

    def add_loss(self, name: str, value: Value, span: Span) -> None:
        """Sums an auxiliary loss into what this region hands up."""
        from .ops.elementwise import Elementwise

        if name in self.losses:
            value = self.one(Elementwise("add"), (self.losses[name], value), span)
        self.losses[name] = value

    def documents(self, like: Value) -> Value:
        """The document of each token, an input that the model gains when some mask asks for it: int64 [B, S]."""
        found = self.root.inputs.get("documents")
        batch, sequence = like.type.axes[:2]
        if len(self.inputs_along(sequence)) > 1 or (found is not None and found.type.axes[1].size != sequence.size):
            title = f"`documents` are those of one input's tokens, not of `{sequence.size}`: leave them out"
            raise ShapeError(title, "mask", code="DSK0190")
        if found is None:
            found = self.root.inputs["documents"] = Value(TensorType((batch, sequence), DType.INT64), "documents")
        return found

    def inputs_along(self, axis: Axis) -> tuple[Value, ...]:
        """The input that has this axis, or one for each of the axes that it is the sum of; none when it is neither.

        They tell the length and the device of whatever is counted along it.
        """
        found = self._input_along(axis.size)
        if found is not None:
            return (found,)
        terms = sorted(axis.size.symbols())
        inputs = tuple(value for name in terms if (value := self._input_along(Dim.of(name))) is not None)
        whole = sum(map(Dim.of, terms), Dim.of(0)) == axis.size
        return inputs if whole and len(inputs) == len(terms) else ()

    def _input_along(self, size: Dim) -> Value | None:
        values = self.root.inputs.values()
        return next((value for value in values if any(a.size == size for a in value.type.axes)), None)

    def region(self, arguments: tuple[Value, ...], results: tuple[Value, ...]) -> Region:
        return Region(arguments, tuple(self.ops), results)
