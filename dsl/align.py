"""Columns: which signs and comments of neighbouring lines stand below each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .spacing import Lexeme, Line

COMMENT_GAP = 5  # spaces before a comment that follows code
COMMENT_COLUMN = 37  # short lines share this column for `#`
LONGEST_COMMENTED = 60  # a longer line does not push the comments of its neighbours
LONG_KEY = 16  # among keys over this, such as paths of weights, only `=` and `->` are aligned

_SIGNS = ("EQUAL", "RARROW")


@dataclass(slots=True)
class Row:
    """A line of output: code, and the comment that trails it. `apart`: rows before and after it are not neighbours."""

    text: str
    comment: Lexeme | None
    apart: bool


def width(tokens: Iterable[Lexeme]) -> int:
    """Columns that tokens take on one line."""
    return sum(len(lexeme.text) + (index > 0 and lexeme.space) for index, lexeme in enumerate(tokens))


def align_signs(lines: list[Line]) -> None:
    """Gives every run of assignments or entries one column for its signs. Overwrites what was there."""
    for line in lines:
        line.pad_at, line.padding = (_sign(line) if line.first else None), 0
    for run in _runs(lines):
        widths = [width(line.tokens[: line.pad_at]) for line in run]
        if max(widths) > LONG_KEY:
            signed = [line.tokens[line.pad_at or 0].kind in _SIGNS for line in run]
            run = [line for line, keep in zip(run, signed, strict=True) if keep]
            widths = [each for each, keep in zip(widths, signed, strict=True) if keep]
        for line, each in zip(run, widths, strict=True):
            line.padding = max(widths) - each


def _sign(line: Line) -> int | None:
    """Where what is aligned begins: `=` after names in a body, whatever follows the key in a section."""
    if not line.tokens or line.opens or line.closes:
        return None
    kinds = [lexeme.kind for lexeme in line.tokens]
    if line.block == "body":
        sign = next((index for index, kind in enumerate(kinds) if kind not in ("NAME", "COMMA")), len(kinds))
        return sign if 0 < sign < len(kinds) and kinds[sign] == "EQUAL" else None
    if line.block != "section":
        return None
    end = 1
    while end < len(kinds) and (kinds[end] == "DOT" or kinds[end - 1] == "DOT"):
        end += 1
    return end if end < len(kinds) and kinds[end] != "LPAR" else None


def _runs(lines: list[Line]) -> Iterator[list[Line]]:
    """Neighbouring lines with something to align. Comments, `keep` and patches between them do not part them."""
    run: list[Line] = []
    for line in lines:
        if line.blank_before or line.opens or line.closes or (line.first and _parts(line)):
            if run:
                yield run
            run = []
        if line.pad_at is not None:
            run.append(line)
    if run:
        yield run


def _parts(line: Line) -> bool:
    return line.block == "body" and line.pad_at is None and bool(line.tokens) and line.tokens[0].kind != "KEEP"


def with_comments(rows: list[Row]) -> Iterator[str]:
    """The rows as text, trailing comments of neighbours in one column."""
    for run in _split(rows, lambda row: row.apart):
        commented = [row for row in run if row.comment is not None and row.text]
        short = [row for row in commented if len(row.text) <= LONGEST_COMMENTED]
        column = max((len(row.text) + COMMENT_GAP for row in short), default=0)
        if any(row.comment is not None and row.comment.kind == "COMMENT" for row in short):
            column = max(column, COMMENT_COLUMN)
        for row in run:
            if row.comment is None:
                yield row.text
            else:
                yield row.text.ljust(max(column, len(row.text) + COMMENT_GAP)) + row.comment.text


def _split(rows: list[Row], apart: Callable[[Row], bool]) -> Iterator[list[Row]]:
    run: list[Row] = []
    for row in rows:
        if apart(row):
            yield run
            yield [row]
            run = []
        else:
            run.append(row)
    yield run
