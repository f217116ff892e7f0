"""Where an expression stands: its names and dims, the region it adds to, and how to report what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dskc.dsl.diagnostics import Diagnostic, Diagnostics, Mark
from dskc.dsl.dims import Dim, DimSizeError
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .builder import Builder
from .ir import Axis, Value
from .program import Override, Scope
from .values import Expressed


@dataclass(slots=True)
class Shared:
    """What one expansion has in common, however deep: its problems, what dims are worth, overrides and their use."""

    problems: Diagnostics
    sizes: dict[str, int]
    overrides: list[Override] = field(default_factory=list)
    used: set[int] = field(default_factory=set)  # indices of overrides that met something
    seen_paths: dict[str, list[str]] = field(default_factory=dict)  # calls and repeats by path, with what they take
    dim_spans: dict[str, Span] = field(default_factory=dict)
    unsound_dims: set[str] = field(default_factory=set)  # that have no size, or none that makes sense
    unread_dims: bool = False  # some dims could not be read: an unknown one may only be one of those
    unread_values: bool = False  # and so with statements
    unknown: set[tuple[str, str]] = field(default_factory=set)  # names that were reported, each once a file
    bound_values: dict[str, Span] = field(default_factory=dict)  # where a value was bound last
    failed: bool = False  # something was reported, or had been before


@dataclass(slots=True)
class Frame:
    """The body of one model or block while it is read."""

    shared: Shared
    scope: Scope
    builder: Builder
    names: dict[str, Expressed] = field(default_factory=dict)
    dims: dict[str, Axis | None] = field(default_factory=dict)  # None: an optional one that was not given
    bound_at: dict[str, Span] = field(default_factory=dict)  # where a dim met its size
    rest: tuple[Axis, ...] | None = None  # what `..` stands for
    once: frozenset[str] = frozenset()  # names that the body binds only once
    caller: Frame | None = None
    call: Span | None = None  # the call that this is the body of
    block: str | None = None
    stack: tuple[str, ...] = ()  # the blocks being expanded, outermost first
    optional: frozenset[str] = frozenset()  # parameters that are tensors or nothing: `if` asks which

    def inside(self, builder: Builder) -> Frame:
        """The same body, adding to another region; what it binds stays its own."""
        return Frame(
            self.shared, self.scope, builder, dict(self.names), dict(self.dims), self.bound_at, self.rest,
            self.once, self.caller, self.call, self.block, self.stack, self.optional,
        )  # fmt: skip

    def tensor(self, name: str) -> Value:
        """A name that is known to stand for a tensor."""
        value = self.names[name]
        assert isinstance(value, Value), f"{name}: {value}"
        return value

    def bind_dim(self, name: str, axis: Axis, span: Span) -> None:
        """A dim of a block meets its size. Names of tensors end in those of axes, so only a short one is handed on."""
        self.dims[name] = axis if 1 <= len(axis.name) <= 2 else Axis(name, axis.size)
        self.bound_at[name] = span

    def report(
        self,
        code: str,
        title: str,
        span: Span,
        label: str = "",
        marks: tuple[Mark, ...] = (),
        notes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Reports a problem. One inside the library is shown at the call that led there, and says where it arose."""
        self.shared.failed = True
        frame: Frame | None = self
        inner = span
        while frame is not None and frame.scope.library and frame.call is not None:
            span, frame = frame.call, frame.caller
        if span is not inner:
            where = f"{inner.source.path}:{inner.line}"
            notes = (*notes, ("note", f"in `{self.block}`, {where}: {_one_line(inner)}"))
            kept = tuple(m for m in marks if m.span.source is span.source)
            extra = f"{label}" if label else ""
            if frame is not None:
                span = _callee_part(span)
            self.shared.problems.add(Diagnostic(code, title, span, extra, kept, notes))
            return
        self.shared.problems.add(Diagnostic(code, title, span, label, marks, notes))

    def report_unknown(
        self, what: str, name: str, span: Span, label: str, near: str | None = None, others: bool = False
    ) -> None:
        """Reports a name that stands for nothing, once; `near` is what it may have been meant to be, and is shown.

        `others`: names that could not be read may be among them.
        """
        key = (self.scope.source.path, name)
        self.shared.failed = True
        if key in self.shared.unknown or (others and near is None):
            return
        self.shared.unknown.add(key)
        place = (self.shared.dim_spans if what == "dim" else self.shared.bound_values).get(near or "")
        marks: tuple[Mark, ...] = ()
        if place is not None and place.source is span.source and place.line != span.line:
            marks = (Mark(place, f"`{near}` is this"),)
        self.report("DSK0101", f"no {what} is called `{name}`", span, label, marks)

    def sizes_note(self, *sizes: Dim) -> tuple[tuple[str, str], ...]:
        """What the dims in some sizes are worth, where they have a value before data comes."""
        known = self.shared.sizes
        names = sorted({name for size in sizes for name in size.symbols() if name in known})
        return (("note", ", ".join(f"{name} = {show_number(known[name])}" for name in names)),) if names else ()

    def size_value(self, size: Dim) -> int | None:
        """What a size is worth, where every dim in it has a value and it comes out whole."""
        try:
            value = size.evaluate(self.shared.sizes)
        except (KeyError, ZeroDivisionError, DimSizeError):
            return None
        return int(value) if value.denominator == 1 else None


def _one_line(span: Span) -> str:
    text = " ".join(span.text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _callee_part(span: Span) -> Span:
    """A call's first line: its name and what fits with it."""
    first = span.text.split("\n")[0].rstrip()
    return Span(span.source, span.start, span.start + len(first))
