"""The text of a spec, and places in it."""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from .diagnostics import Diagnostic, DiagnosticError
from .suggest import did_you_mean

MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class Source:
    """A file as it was read; `path` is how diagnostics call it. Lines end at `\\n`, or at `\\r\\n`.

    `library`: it is one of the standard library's.
    """

    path: str
    text: str
    library: bool = False

    @cached_property
    def line_starts(self) -> tuple[int, ...]:
        """Offset of the first character of every line; a text that ends with a newline has an empty last line."""
        starts = [0]
        find = self.text.find
        at = find("\n")
        while at >= 0:
            starts.append(at + 1)
            at = find("\n", at + 1)
        return tuple(starts)

    @property
    def line_count(self) -> int:
        return len(self.line_starts)

    def line_at(self, offset: int) -> int:
        """The number of the line (from 1) on which `offset` lies."""
        return bisect_right(self.line_starts, offset)

    def line_text(self, line: int) -> str:
        """Line `line` (from 1) without its end."""
        starts = self.line_starts
        end = starts[line] - 1 if line < len(starts) else len(self.text)
        return self.text[starts[line - 1] : end].removesuffix("\r")

    def span(self, start: int, end: int) -> Span:
        return Span(self, start, end)

    def __repr__(self) -> str:
        return f"Source({self.path!r}, {len(self.text)} characters)"


@dataclass(frozen=True, slots=True)
class Span:
    """The characters from `start` up to and without `end`, as offsets into the text."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """Line of the first character, from 1."""
        return self.source.line_at(self.start)

    @property
    def column(self) -> int:
        """Column of the first character, from 1, counted in characters: a tab or a wide character is one."""
        return self.start - self.source.line_starts[self.line - 1] + 1

    @property
    def end_line(self) -> int:
        """Line of the last character, from 1; a span that ends with a newline does not reach the next line."""
        return self.source.line_at(max(self.start, self.end - 1))

    @property
    def end_column(self) -> int:
        """Column after the last character, from 1."""
        return self.end - self.source.line_starts[self.end_line - 1] + 1

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """From the first character of this span to the last of `other`, in the same file."""
        assert self.source is other.source or self.source.path == other.source.path, "spans of two files"
        return Span(self.source, min(self.start, other.start), max(self.end, other.end))

    def __repr__(self) -> str:
        return f"Span({self.source.path}:{self.line}:{self.column}, {self.text!r})"


def read_source(path: str | os.PathLike[str], shown: str | None = None) -> Source:
    """Reads a spec file. `shown` is what diagnostics call it, by default the path as given.

    Raises DiagnosticError when it is missing (DSK0010), cannot be read (DSK0011), is not UTF-8 (DSK0012) or has
    over 1 MB (DSK0013).
    """
    name = os.fspath(path)
    shown = name if shown is None else shown
    whole = Source(shown, "").span(0, 0)
    try:
        with open(name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise DiagnosticError(_missing(name, shown, whole)) from None
    except IsADirectoryError:
        specs = _specs_in(name)
        way_out = f"name one of the files in it: {', '.join(specs[:5])}" if specs else "name a `.dsk` file"
        title = f"`{shown}` is a folder, not a spec file"
        raise DiagnosticError(Diagnostic("DSK0011", title, whole, notes=(("help", way_out),))) from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise DiagnosticError(Diagnostic("DSK0011", f"`{shown}` cannot be read: {reason}", whole)) from None
    if len(data) > MAX_BYTES:
        title = f"`{shown}` is over 1 MB: that is not a spec"
        notes = (("help", "specs are some hundred lines; check that this is the file you meant"),)
        raise DiagnosticError(Diagnostic("DSK0013", title, whole, notes=notes))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DiagnosticError(_not_utf8(data, shown, error)) from None
    return Source(shown, text.removeprefix("\ufeff"))


def _specs_in(folder: str) -> list[str]:
    try:
        return sorted(entry for entry in os.listdir(folder or ".") if entry.endswith(".dsk"))
    except OSError:
        return []


def _missing(name: str, shown: str, whole: Span) -> Diagnostic:
    folder, base = os.path.split(name)
    siblings = _specs_in(folder)
    near = did_you_mean(base, siblings) or did_you_mean(f"{base}.dsk", siblings)
    notes: tuple[tuple[str, str], ...] = ()
    if near is not None:
        notes = (("help", f"did you mean `{os.path.join(os.path.dirname(shown), near)}`?"),)
    elif folder and not os.path.isdir(folder):
        notes = (("note", f"there is no folder `{folder}` either"),)
    elif siblings:
        notes = (("help", f"the specs there are {', '.join(siblings[:5])}"),)
    return Diagnostic("DSK0010", f"there is no file `{shown}`", whole, notes=notes)


def _not_utf8(data: bytes, shown: str, error: UnicodeDecodeError) -> Diagnostic:
    """Points at the first byte that is wrong, in the text with every wrong byte replaced."""
    before = data[: error.start].decode("utf-8")
    source = Source(shown, (before + data[error.start :].decode("utf-8", "replace")).removeprefix("\ufeff"))
    start = len(before.removeprefix("\ufeff"))
    span = source.span(start, start + 1)
    title = f"this file is not UTF-8: byte {error.start} (line {span.line}) is 0x{data[error.start]:02X}"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        way_out = "it looks like UTF-16: save it as UTF-8"
    elif b"\0" in data[:4096]:
        way_out = "it looks like binary data: check that this is the file you meant"
    else:
        way_out = "save it as UTF-8"
    return Diagnostic("DSK0012", title, span, error.reason, notes=(("help", way_out),))
