"""`dskc fmt`: the one canonical style.

The author's line breaks stay; what lies within and around a line is decided here: two spaces a level, one space between
tokens, one empty line between items, signs and trailing comments of neighbours in columns, continued lines below what
they continue, and lines that grew far too long broken.
"""

from __future__ import annotations

from dataclasses import dataclass

from .align import Row, align_signs, width, with_comments
from .diagnostics import DiagnosticError, Diagnostics
from .layout import CONTINUES
from .parser import parse, tokenize
from .source import Source
from .spacing import Lexeme, Line, lexemes, split_lines

INDENT = 2
CONTINUATION = 4
WIDTH = 120  # lines are broken to this
TOLERATED = 140  # but left as they are up to this
DEEPEST_ALIGNMENT = 40  # brackets that open further right do not set the column of what follows

_OPENERS = ("LPAR", "LSQB", "LBRACE")
_CLOSERS = ("RPAR", "RSQB", "RBRACE")
_SIGNS = ("EQUAL", "PLUS_EQUAL", "RARROW")


def format_source(source: Source) -> str:
    """The text of a spec in the canonical style. Types and names need not be right; raises DiagnosticError when it
    cannot be read."""
    problems = Diagnostics()
    tree = parse(source, problems)
    problems.raise_errors()
    if not tree.complete:
        raise DiagnosticError(problems)
    text = _formatted(lexemes(tokenize(source.text)))
    again = parse(Source(source.path, text), problems)
    assert len(problems) == 0 and again.items == tree.items, f"formatting {source.path} changes what it says"
    return text


def _formatted(stream: list[Lexeme]) -> str:
    lines = _arranged(stream)
    while (wider := _with_wide_braces(stream, lines)) is not None:
        stream = wider
        lines = _arranged(stream)
    rows: list[Row] = []
    statement = _Statement(0)
    for line in lines:
        if line.blank_before:
            rows.append(Row("", None, apart=True))
        if line.first:
            statement = _Statement(line.depth * INDENT)
        rows += statement.rows(line)
    text = "\n".join(with_comments(rows))
    return f"{text}\n" if text else ""


def _arranged(stream: list[Lexeme]) -> list[Line]:
    lines = split_lines(stream)
    _place(lines)
    _space_out(lines)
    align_signs(lines)
    return lines


# --- lines among lines


def _place(lines: list[Line]) -> None:
    """Tells every line how deep it stands, in what kind of block, and whether it goes on with the line before."""
    blocks = ["file"]
    brackets = 0
    previous: Lexeme | None = None
    for line in lines:
        line.first = not brackets and (previous is None or previous.kind not in CONTINUES or previous.wide)
        line.depth = len(blocks) - 1 - line.closes
        line.block = blocks[-1 - line.closes]
        for lexeme in line.tokens:
            is_list = lexeme.brace == "list"
            if lexeme.kind in _OPENERS and (is_list or not lexeme.brace):
                brackets += 1
            elif lexeme.kind in _CLOSERS and (is_list or not lexeme.brace):
                brackets -= 1
            elif lexeme.kind == "LBRACE":
                blocks.append(lexeme.brace)
            elif lexeme.kind == "RBRACE":
                blocks.pop()
            previous = lexeme


def _space_out(lines: list[Line]) -> None:
    """One empty line between items, at most one elsewhere; none after `{`, before `}`, below a doc, in a statement."""
    group: Line | None = None  # the first of the comments right above
    last_item = ""
    for before, line in zip([None, *lines], lines, strict=False):
        if before is None or before.opens or before.is_doc or line.closes or not line.first:
            line.blank_before = False
        if line.depth or not line.first:
            continue
        if line.blank_before or group is None:
            group = line
        if line.tokens and not line.closes:
            item = line.tokens[0].kind
            if group is not lines[0] and not (item == "USE" == last_item):
                group.blank_before = True
            last_item = item
        if line.tokens:
            group = None


def _with_wide_braces(stream: list[Lexeme], lines: list[Line]) -> list[Lexeme] | None:
    """Opens up the one-line blocks of lines that are too long; None when there is nothing to open.

    Not where a doc trails: it belongs to all the entries of its line.
    """
    opened: set[int] = set()
    parted: set[int] = set()
    moved: dict[int, Lexeme] = {}
    for line in lines:
        used = line.depth * INDENT + line.padding + width(line.tokens)
        if used <= TOLERATED or (line.comment is not None and line.comment.kind == "DOC"):
            continue
        start = next((index for index, lexeme in enumerate(line.tokens) if _can_open(lexeme)), None)
        if start is None or line.tokens[start + 1].kind == "RBRACE":
            continue
        depth = 0
        for lexeme in line.tokens[start:]:
            depth += (lexeme.kind == "LBRACE") - (lexeme.kind == "RBRACE")
            if depth == 1 and lexeme.entry:
                parted.add(id(lexeme))
            if depth == 0:
                break
        opened |= {id(line.tokens[start]), id(lexeme)}
        if line.comment is not None:
            moved[id(line.tokens[start])] = line.comment
    if not opened:
        return None
    gone = {id(comment) for comment in moved.values()}
    wider: list[Lexeme] = []
    for lexeme in stream:
        if id(lexeme) in gone:
            continue
        lexeme.wide = lexeme.wide or id(lexeme) in opened
        wider.append(Lexeme("NEWLINE", "\n") if id(lexeme) in parted else lexeme)
        if id(lexeme) in moved:
            wider += [moved[id(lexeme)], Lexeme("NEWLINE", "\n")]
    return wider


def _can_open(lexeme: Lexeme) -> bool:
    return lexeme.kind == "LBRACE" and lexeme.brace != "list" and not lexeme.wide


# --- lines of a statement


@dataclass(slots=True)
class _Bracket:
    """An open bracket: the column of lines that begin within it, and of one that begins with its closing bracket."""

    content: int
    closing: int


class _Statement:
    """One statement being written, line by line; knows where its brackets opened."""

    def __init__(self, indent: int) -> None:
        self.indent = indent
        self.value = indent + CONTINUATION  # the column of what is assigned, which lines outside brackets continue
        self.value_found = False
        self.brackets: list[_Bracket] = []
        self.begun = False

    def rows(self, line: Line) -> list[Row]:
        """The line, in several rows where it is too long."""
        rows: list[Row] = []
        start = 0
        while True:
            column = self._column(line.tokens[start] if start < len(line.tokens) else None)
            end = self._fitting(line, start, column)
            text = self._write(line, start, end, column)
            if end == len(line.tokens):
                break
            rows.append(Row(text, None, apart=False))
            start = end
        if not line.tokens and line.comment is not None:
            return [Row(text + line.comment.text, None, apart=False)]
        rows.append(Row(text, line.comment, apart=line.opens or line.closes))
        return rows

    def _column(self, token: Lexeme | None) -> int:
        if not self.begun:
            return self.indent
        if not self.brackets:
            return self.value
        bracket = self.brackets[-1]
        return bracket.closing if token is not None and token.kind in _CLOSERS else bracket.content

    def _write(self, line: Line, start: int, end: int, column: int) -> str:
        text = " " * column
        for index in range(start, end):
            lexeme = line.tokens[index]
            text += " " * _space(line, index, start)
            if not self.value_found and not self.brackets and self._assigns(line, index):
                self.value_found = True
                own = len(lexeme.text) + 1 if index == 0 or lexeme.kind in _SIGNS else 0
                self.value = len(text) + own if index + 1 < end else self.value
            text += lexeme.text
            if lexeme.brace in ("body", "section"):
                continue
            if lexeme.kind in _OPENERS:
                self._open(len(text) + (lexeme.brace == "list"), column, last=index + 1 == end)
            elif lexeme.kind in _CLOSERS:
                self.brackets.pop()
        self.begun = self.begun or bool(line.tokens)
        return text

    def _assigns(self, line: Line, index: int) -> bool:
        """Whether a statement's value begins here: after a sign or leading keyword, or with the bare value of a key."""
        if line.block == "section":
            return index == line.pad_at
        if line.block == "body":
            kind = line.tokens[index].kind
            return kind in ("EQUAL", "PLUS_EQUAL") or (index == 0 and kind in ("RETURN", "REQUIRE", "KEEP", "WEIGHTS"))
        return False

    def _open(self, inside: int, column: int, last: bool) -> None:
        if last:
            self.brackets.append(_Bracket(column + CONTINUATION, column))
        elif inside <= DEEPEST_ALIGNMENT:
            self.brackets.append(_Bracket(inside, inside - 1))
        else:
            outer = self.brackets[-1].content if self.brackets else self.value
            self.brackets.append(_Bracket(outer + CONTINUATION, outer + CONTINUATION))

    def _fitting(self, line: Line, start: int, column: int) -> int:
        """Where this row ends: with the line, or at the best place to break one that is too long.

        The best place is the last that fits of the outermost ones: commas within brackets, else operators.
        """
        places: list[tuple[bool, int, int]] = []  # no comma, depth, minus the token after it
        depth, braces, used = len(self.brackets), 0, column
        for index in range(start, len(line.tokens)):
            lexeme = line.tokens[index]
            used += len(lexeme.text) + _space(line, index, start)
            if used > TOLERATED and places:
                return -min(places)[2]
            step = (lexeme.kind in _OPENERS) - (lexeme.kind in _CLOSERS)
            if lexeme.brace in ("body", "section"):
                braces += step
            else:
                depth += step
            comma = lexeme.kind == "COMMA" and depth > 0
            if braces == 0 and (comma or lexeme.operator) and (used <= WIDTH or not places):
                places.append((not comma, depth, -(index + 1)))
        return -min(places)[2] if used > TOLERATED and places else len(line.tokens)


def _space(line: Line, index: int, start: int) -> int:
    """Spaces before a token of a row that begins with token `start`."""
    return (index > start and line.tokens[index].space) + (line.padding if index == line.pad_at else 0)
