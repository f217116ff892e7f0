"""Problems of a spec: what is wrong, where, the values involved, and the way out. Drawing them is `render.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .codes import CODES

if TYPE_CHECKING:  # source.py raises these errors, so the import goes one way only
    from .source import Span

Severity = Literal["error", "warning"]
Style = Literal["primary", "secondary"]


@dataclass(frozen=True, slots=True)
class Mark:
    """One more place that matters, underlined with `---` (secondary) or `^^^` (primary)."""

    span: Span
    label: str = ""
    style: Style = "secondary"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem. `span` is where it is reported, and is underlined `^^^` with `label` after it.

    A mark on exactly `span` replaces that underline (so the only one may be `---`). Notes are pairs of a head,
    `also`, `note` or `help`, and a text. Codes are those of `codes.CODES`.
    """

    code: str
    title: str
    span: Span
    label: str = ""
    marks: tuple[Mark, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    severity: Severity = "error"

    def __post_init__(self) -> None:
        assert self.code in CODES, f"{self.code} is not in dsl/codes.py"

    @property
    def drawn_marks(self) -> tuple[Mark, ...]:
        """All underlines, the place of the report first."""
        if any(mark.span == self.span for mark in self.marks):
            return self.marks
        return (Mark(self.span, self.label, "primary"), *self.marks)


class Diagnostics:
    """Collects the problems of a run: at most one of a code at a place, given out by file and position."""

    def __init__(self, found: Iterable[Diagnostic] = ()) -> None:
        self._found: dict[tuple[str, str, int, int], Diagnostic] = {}
        self.extend(found)

    def add(self, diagnostic: Diagnostic) -> None:
        """Keeps `diagnostic` unless one of its code at its place is there already."""
        span = diagnostic.span
        self._found.setdefault((span.source.path, diagnostic.code, span.start, span.end), diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        for diagnostic in diagnostics:
            self.add(diagnostic)

    @property
    def has_errors(self) -> bool:
        return any(diagnostic.severity == "error" for diagnostic in self._found.values())

    def raise_errors(self) -> None:
        """Raises DiagnosticError with everything found when there is an error among it."""
        if self.has_errors:
            raise DiagnosticError(self)

    def __iter__(self) -> Iterator[Diagnostic]:
        def place(diagnostic: Diagnostic) -> tuple[str, int, int, str]:
            span = diagnostic.span
            return (span.source.path, span.start, span.end, diagnostic.code)

        return iter(sorted(self._found.values(), key=place))

    def __len__(self) -> int:
        return len(self._found)


class DiagnosticError(Exception):
    """Raised where work cannot go on; `diagnostics` are in order, and the text of the error is their drawing."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        found = (diagnostics,) if isinstance(diagnostics, Diagnostic) else tuple(diagnostics)
        assert found, "an error without a diagnostic"
        super().__init__(found)
        self.diagnostics = found

    def __str__(self) -> str:
        from .render import render

        return render(self.diagnostics)
