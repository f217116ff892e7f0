"""Draws diagnostics: for the terminal, as JSON, and as GitHub annotations."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from .diagnostics import Diagnostic, Mark
from .source import Source

MAX_WIDTH = 120  # columns of source text; a longer line is cut to what is around its marks
TAB = 4
FAR = 1000  # characters on each side of a mark that may be shown

_BOLD = "1"
_BLUE = "1;34"
_SEVERITY = {"error": "1;31", "warning": "1;33"}
_UNDERLINE = {"primary": "^", "secondary": "-"}


def render(diagnostics: Iterable[Diagnostic], color: bool = False) -> str:
    """All diagnostics as text, with an empty line between two; ends without a newline. `color`: ANSI escapes."""
    return "\n\n".join(_Drawing(diagnostic, color).text() for diagnostic in diagnostics)


def to_json(diagnostics: Iterable[Diagnostic]) -> str:
    """A JSON list with one object a diagnostic.

    Keys: code, severity, message, file, line, column, end_line, end_column (from 1, in characters; the end is the
    column after the last), label, marks (objects of file, line, column, end_line, end_column, label, style) and notes
    (objects of kind and text). Keys may be added, those here stay.
    """
    import json

    entries = [
        {
            "code": diagnostic.code,
            "severity": diagnostic.severity,
            "message": diagnostic.title,
            **_place(Mark(diagnostic.span)),
            "label": diagnostic.label,
            "marks": [{**_place(mark), "label": mark.label, "style": mark.style} for mark in diagnostic.marks],
            "notes": [{"kind": head, "text": text} for head, text in diagnostic.notes],
        }
        for diagnostic in diagnostics
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False)


def _place(mark: Mark) -> dict[str, str | int]:
    span = mark.span
    return {
        "file": span.source.path,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }


def to_github(diagnostics: Iterable[Diagnostic]) -> str:
    """One workflow command a diagnostic, each ending its line, which GitHub shows beside the changed line.

    Source: docs.github.com, "Workflow commands for GitHub Actions", setting an error message; escapes as in the
    toolkit's `command.ts`.
    """
    lines = []
    for diagnostic in diagnostics:
        span = diagnostic.span
        properties = {"file": span.source.path, "line": span.line, "endLine": span.end_line}
        if span.line == span.end_line:  # columns are only understood within one line
            properties |= {"col": span.column, "endColumn": max(span.column, span.end_column - 1)}
        properties["title"] = diagnostic.code
        shown = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in properties.items())
        details = [mark.label for mark in diagnostic.drawn_marks if mark.label]
        details += [f"{head}: {text}" for head, text in diagnostic.notes]
        message = _escaped("\n".join([diagnostic.title, *details]))
        lines.append(f"::{diagnostic.severity} {shown}::{message}\n")
    return "".join(lines)


def _escaped(text: str, more: str = "") -> str:
    for char in "%\r\n" + more:
        text = text.replace(char, f"%{ord(char):02X}")
    return text


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a mark that lies on one line, in characters of that line; only the last piece has the label."""

    start: int
    end: int
    label: str
    style: str


@dataclass(slots=True)
class _Row:
    """One line of output being painted, a style for every cell."""

    cells: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def put(self, at: int, text: Iterable[str], style: str = "") -> None:
        for offset, cell in enumerate(text):
            index = at + offset
            while len(self.cells) <= index:
                self.cells.append(" ")
                self.styles.append("")
            self.cells[index] = cell
            self.styles[index] = style


class _Drawing:
    """One diagnostic on its way to text."""

    def __init__(self, diagnostic: Diagnostic, color: bool) -> None:
        self.diagnostic = diagnostic
        self.color = color
        self.lines: list[str] = []
        self.styles = {"primary": _SEVERITY[diagnostic.severity], "secondary": _BLUE}
        self.excerpts = _excerpts(diagnostic)
        numbers = [line for _, pieces in self.excerpts for line in pieces]
        self.margin = len(str(max(numbers))) if numbers else 1

    def text(self) -> str:
        diagnostic = self.diagnostic
        head = self._paint(f"{diagnostic.severity}[{diagnostic.code}]", self.styles["primary"])
        self.lines.append(head + self._paint(f": {_clean(diagnostic.title)}", _BOLD))
        for index, (source, pieces) in enumerate(self.excerpts):
            self._excerpt(source, pieces, first=index == 0)
        if not self.excerpts and diagnostic.span.source.path:
            self._location("-->", _clean(diagnostic.span.source.path))
        if diagnostic.notes and self.excerpts:
            self._bar()
        for kind, text in diagnostic.notes:
            self._note(kind, text)
        return "\n".join(self.lines)

    def _paint(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.color and style and text else text

    def _location(self, arrow: str, place: str) -> None:
        self.lines.append(" " * self.margin + self._paint(arrow, _BLUE) + f" {place}")

    def _bar(self, row: _Row | None = None) -> None:
        text = " " * (self.margin + 1) + self._paint("|", _BLUE)
        self.lines.append(f"{text} {self._painted(row)}".rstrip() if row else text)

    def _painted(self, row: _Row) -> str:
        """The row as text, with one escape for every run of cells of one style."""
        text, start = "", 0
        for index in range(1, len(row.cells) + 1):
            if index == len(row.cells) or row.styles[index] != row.styles[start]:
                text += self._paint("".join(row.cells[start:index]), row.styles[start])
                start = index
        return text

    def _note(self, kind: str, text: str) -> None:
        first, *more = text.split("\n")
        head = " " * (self.margin + 1) + self._paint("=", _BLUE) + " "
        self.lines.append(head + self._paint(f"{kind}:", _BOLD) + f" {_clean(first)}")
        indent = " " * (self.margin + 5 + len(kind))
        self.lines += [f"{indent}{_clean(line)}" for line in more]

    def _excerpt(self, source: Source, pieces: dict[int, list[_Piece]], first: bool) -> None:
        line, column = self._where(source, pieces, first)
        self._location("-->" if first else ":::", f"{_clean(source.path)}:{line}:{column}")
        self._bar()
        previous = None
        for number in sorted(pieces):
            if previous is not None and number == previous + 2:
                self._line(source, number - 1, [])
            elif previous is not None and number > previous + 2:
                self.lines.append(self._paint("...", _BLUE))
            self._line(source, number, pieces[number])
            previous = number

    def _where(self, source: Source, pieces: dict[int, list[_Piece]], first: bool) -> tuple[int, int]:
        if first:
            return self.diagnostic.span.line, self.diagnostic.span.column
        line = min(pieces)
        return line, min(piece.start for piece in pieces[line]) + 1

    def _line(self, source: Source, number: int, pieces: list[_Piece]) -> None:
        line, pieces = _around(source.line_text(number), pieces)
        text, columns = _cells(line)
        placed = [_in_columns(piece, columns) for piece in pieces]
        text, placed = _clipped(text, placed)
        shown = self._paint(f"{number:>{self.margin}} |", _BLUE)
        self.lines.append(f"{shown} {''.join(text)}".rstrip())
        if placed:
            self._underlines(placed)

    def _underlines(self, pieces: list[_Piece]) -> None:
        """Marks under their text; the last label stands beside its mark, the others hang below theirs."""
        row = _Row()
        for piece in sorted(pieces, key=lambda piece: piece.style == "primary"):
            row.put(piece.start, _UNDERLINE[piece.style] * (piece.end - piece.start), self.styles[piece.style])
        hanging = sorted((piece for piece in pieces if piece.label), key=lambda piece: piece.start)
        if hanging and hanging[-1].end == max(piece.end for piece in pieces):
            last = hanging.pop()
            row.put(last.end, _wide(f" {_clean(last.label)}"), self.styles[last.style])
        self._bar(row)
        if hanging:
            self._stems(hanging)
        while hanging:
            self._stems(hanging[:-1], hanging[-1])
            hanging.pop()

    def _stems(self, pieces: list[_Piece], labelled: _Piece | None = None) -> None:
        row = _Row()
        for piece in pieces:
            row.put(piece.start, "|", self.styles[piece.style])
        if labelled is not None:
            row.put(labelled.start, _wide(_clean(labelled.label)), self.styles[labelled.style])
        self._bar(row)


def _excerpts(diagnostic: Diagnostic) -> list[tuple[Source, dict[int, list[_Piece]]]]:
    """For every file with something to show, that of the report first: its lines and what is marked on them."""
    found: dict[str, tuple[Source, dict[int, list[_Piece]]]] = {}
    for mark in sorted(diagnostic.drawn_marks, key=lambda mark: mark.span.source.path != diagnostic.span.source.path):
        source = mark.span.source
        if not source.text:
            continue
        _, lines = found.setdefault(source.path, (source, {}))
        for number, piece in _pieces(mark):
            lines.setdefault(number, []).append(piece)
    return list(found.values())


def _pieces(mark: Mark) -> list[tuple[int, _Piece]]:
    """A mark over several lines is drawn on its first and its last; the label stands on the last."""
    span = mark.span
    source, first, last = span.source, span.line, span.end_line
    start = span.column - 1
    if first == last:
        return [(first, _Piece(start, max(start + 1, span.end_column - 1), mark.label, mark.style))]
    length = len(source.line_text(first).rstrip())
    line = source.line_text(last)
    indent = len(line) - len(line.lstrip())
    end = min(len(line), span.end_column - 1)
    return [
        (first, _Piece(start, max(start + 1, length), "", mark.style)),
        (last, _Piece(min(indent, end - 1), max(end, 1), mark.label, mark.style)),
    ]


def _around(line: str, pieces: list[_Piece]) -> tuple[str, list[_Piece]]:
    """A very long line cut to what is near its first mark, before its characters are looked at one by one."""
    if len(line) <= 4 * FAR:
        return line, pieces
    anchor = next((piece for piece in pieces if piece.style == "primary"), pieces[0] if pieces else None)
    first = max(0, anchor.start - FAR) if anchor else 0
    part = line[first : first + 4 * FAR]
    last = len(part)
    moved = [
        _Piece(min(max(p.start - first, 0), last), min(max(p.end - first, 1), last + 1), p.label, p.style)
        for p in pieces
    ]
    return part, moved


def _cells(line: str) -> tuple[list[str], list[int]]:
    """A line as terminal cells, and the cell where each character starts (and where the line ends).

    A tab is four cells, a wide character is one followed by an empty one, what joins the one before it takes none.
    Control characters are drawn as pictures of themselves, so that no file can write escapes to a terminal.
    """
    cells: list[str] = []
    columns: list[int] = []
    for char in line:
        columns.append(len(cells))
        if char == "\t":
            cells += [" "] * TAB
        elif unicodedata.category(char) in ("Mn", "Me") and cells:
            cells[-1] += char
            columns[-1] -= 1
        else:
            cells += _wide(_clean(char))
    columns.append(len(cells))
    return cells, columns


def _wide(text: str) -> list[str]:
    """The cells that a text takes: a wide character takes two, of which the second is empty."""
    cells: list[str] = []
    for char in text:
        cells.append(char)
        if unicodedata.east_asian_width(char) in "WF":
            cells.append("")
    return cells


def _clean(text: str) -> str:
    """Control characters as pictures (U+2400 and on), and what changes the direction of text as U+FFFD."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _picture(char) for char in text)


def _picture(char: str) -> str:
    code = ord(char)
    if code < 32:
        return chr(0x2400 + code)
    return " " if unicodedata.category(char) == "Zs" else "\ufffd"


def _in_columns(piece: _Piece, columns: list[int]) -> _Piece:
    """From characters to cells; what lies beyond the line's end takes one cell after it."""
    last = len(columns) - 1
    start = columns[min(piece.start, last)] + max(0, piece.start - last)
    end = columns[min(piece.end, last)] + max(0, piece.end - last)
    return _Piece(start, max(end, start + 1), piece.label, piece.style)


def _clipped(cells: list[str], pieces: list[_Piece]) -> tuple[list[str], list[_Piece]]:
    """Cuts a long line to a window around its marks; a mark outside the window goes to the window's edge."""
    if len(cells) <= MAX_WIDTH:
        return cells, pieces
    anchor = next((piece for piece in pieces if piece.style == "primary"), pieces[0] if pieces else None)
    start, end = (anchor.start, anchor.end) if anchor else (0, 0)
    for piece in sorted(pieces, key=lambda piece: abs(piece.start - start)):
        if max(end, piece.end) - min(start, piece.start) <= MAX_WIDTH - 20:
            start, end = min(start, piece.start), max(end, piece.end)
    room = max(0, MAX_WIDTH - (end - start)) // 2
    first = max(0, min(start - room, len(cells) - MAX_WIDTH))
    last = min(len(cells), first + MAX_WIDTH)
    window = cells[first:last]
    if window and window[0] == "":  # half of a wide character
        window[0] = " "
    if first > 0:
        window[:3] = "..."
    if last < len(cells):
        window[-3:] = "..."
    moved = []
    for piece in pieces:
        at = min(max(piece.start - first, 0), len(window) - 1)
        to = max(at + 1, min(piece.end - first, len(window)))
        moved.append(_Piece(at, to, piece.label, piece.style))
    return window, moved
