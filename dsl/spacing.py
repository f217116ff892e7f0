"""What the formatter works on: tokens with the space before them, in lines with their comments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .layout import CONTINUES, ITEM_KEYWORDS
from .token import Token

_KEY_PARTS = ITEM_KEYWORDS | {"NAME", "DIM", "STAR", "DOT", "FROM", "EXTERN", "OF", "FOR", "ON", "DIMS"}
_KEY_PARTS |= {"REPEAT", "GROUP", "RETURN", "KEEP", "LOSS", "REQUIRE", "WEIGHTS"}
_OPERANDS = frozenset(("NAME", "DIM", "NUMBER", "STRING", "TRUE", "FALSE", "DOTDOT", "RPAR", "RSQB"))
_BEFORE_PARENTHESIS = frozenset(("IF", "THEN", "ELSE", "AND", "OR", "NOT", "RETURN", "REQUIRE", "ON", "REPEAT", "DIM"))
_OPERATORS = {"EQ", "NE", "LT", "LE", "GT", "GE", "PLUS", "MINUS", "STAR", "SLASH", "PERCENT", "AMP", "PIPE"}
_OPERATORS |= {"AND", "OR", "THEN", "ELSE"}
_COMMENTS = ("COMMENT", "DOC")
_OPENERS = ("LPAR", "LSQB")
_CLOSERS = ("RPAR", "RSQB")


@dataclass(slots=True, eq=False)
class Lexeme:
    """A token. `space`: one stands before it, unless it opens its line. `operator`: a line may be broken after it.

    Of a brace: `brace` is what it holds, `list` (names of `use`), `body` (statements) or `section` (entries), and
    `wide` that its contents stand on lines of their own. Of a comma: `entry`, that it stands between such entries.
    """

    kind: str
    text: str
    space: bool = True
    operator: bool = False
    brace: str = ""
    wide: bool = False
    entry: bool = False


@dataclass(slots=True)
class Line:
    """A line to be written. Without tokens its comment stands alone. `first`: it opens a statement, entry or item."""

    tokens: list[Lexeme]
    comment: Lexeme | None
    blank_before: bool = False
    depth: int = 0
    block: str = "file"
    first: bool = True
    pad_at: int | None = None  # the token that is moved right to stand in its run's column
    padding: int = 0

    @property
    def is_doc(self) -> bool:
        return not self.tokens and self.comment is not None and self.comment.kind == "DOC"

    @property
    def opens(self) -> bool:
        return bool(self.tokens) and self.tokens[-1].kind == "LBRACE" and self.tokens[-1].wide

    @property
    def closes(self) -> bool:
        return bool(self.tokens) and self.tokens[0].kind == "RBRACE" and self.tokens[0].wide


def lexemes(tokens: Iterable[Token]) -> list[Lexeme]:
    """All tokens of a file that parses, newlines and comments included, with braces told apart and spaces decided."""
    stream = [Lexeme(token.type, _text(token)) for token in tokens]
    _mark_braces(stream)
    stream = _without_empty_lines_in_braces(stream)
    _decide_spaces(stream)
    return stream


def _text(token: Token) -> str:
    text = str(token)
    if token.type not in _COMMENTS:
        return text
    sign = "///" if token.type == "DOC" else "#"
    rest = text[len(sign) :].rstrip()
    return f"{sign} {rest}" if rest and rest[0] not in " \t#!/" else sign + rest


def _mark_braces(stream: list[Lexeme]) -> None:
    """Finds what each brace holds, and whether its contents stand on lines of their own."""
    item = previous = ""
    brackets = 0
    open_braces: list[Lexeme] = []
    commented: list[bool] = []
    starts_line = True
    for lexeme in stream:
        kind = lexeme.kind
        if kind == "NEWLINE" or kind in _COMMENTS:
            starts_line = True
            if open_braces:
                open_braces[-1].wide = True
                commented[-1] = commented[-1] or kind in _COMMENTS
            continue
        if not open_braces and not brackets and starts_line and kind in ITEM_KEYWORDS:
            item = kind
        brackets += (kind in _OPENERS) - (kind in _CLOSERS)
        if kind == "LBRACE":
            lexeme.brace = _brace(open_braces[-1].brace if open_braces else item, previous)
            open_braces.append(lexeme)
            commented.append(False)
        elif kind == "RBRACE":
            opener = open_braces.pop()
            empty = not commented.pop() and previous == "LBRACE"
            lexeme.brace = opener.brace
            lexeme.wide = opener.wide = opener.wide and not empty and opener.brace != "list"
            if open_braces and lexeme.wide:
                open_braces[-1].wide = True
        elif kind == "COMMA" and not brackets and open_braces and open_braces[-1].brace == "section":
            lexeme.entry = True
        starts_line = False
        previous = kind


def _brace(around: str, previous: str) -> str:
    """What a brace holds, from the item or brace that it stands in and the token before it."""
    if around == "USE":
        return "list"
    if around == "MODEL" or (around == "BLOCK" and previous != "STRING"):  # a string: it is written elsewhere
        return "body"
    return "body" if around == "body" and previous != "DIMS" else "section"


def _without_empty_lines_in_braces(stream: list[Lexeme]) -> list[Lexeme]:
    """`{` newline `}` becomes `{}`."""
    kept: list[Lexeme] = []
    for lexeme in stream:
        if lexeme.kind == "RBRACE":
            newlines = 0
            while kept[-1 - newlines].kind == "NEWLINE":
                newlines += 1
            if kept[-1 - newlines].kind == "LBRACE":
                del kept[len(kept) - newlines :]
        kept.append(lexeme)
    return kept


def _decide_spaces(stream: list[Lexeme]) -> None:
    """One space between two tokens, but for what hugs its neighbour."""
    in_section = [False]
    in_key = False
    before: Lexeme | None = None
    for lexeme in stream:
        kind = lexeme.kind
        if kind in _COMMENTS or before is None:
            before = before or (None if kind in _COMMENTS or kind == "NEWLINE" else lexeme)
            continue
        if kind == "NEWLINE":
            in_key = in_section[-1] and (before.kind == "LBRACE" or before.kind not in CONTINUES)
            continue
        if kind in _OPERATORS and not (in_key and kind in _KEY_PARTS):
            lexeme.operator = kind != "MINUS" or before.kind in _OPERANDS
        lexeme.space = _spaced(before, lexeme, in_key)
        if kind == "LBRACE":
            in_section.append(lexeme.brace == "section")
        elif kind == "RBRACE":
            in_section.pop()
        in_key = lexeme.entry or (kind == "LBRACE" and in_section[-1]) or (in_key and kind in _KEY_PARTS)
        before = lexeme


def _spaced(before: Lexeme, lexeme: Lexeme, in_key: bool) -> bool:
    kind = lexeme.kind
    if before.kind in ("LPAR", "LSQB", "DOT") or kind in ("RPAR", "RSQB", "DOT", "COMMA", "COLON", "QUESTION"):
        return False
    if before.kind == "LBRACE" and kind == "RBRACE":
        return False
    if before.kind == "MINUS" and not before.operator:
        return False
    if kind == "LPAR":
        return before.kind in _BEFORE_PARENTHESIS or not before.text.isidentifier()
    if kind == "LSQB":
        return before.kind != "NAME" or in_key
    return True


# --- lines


def split_lines(stream: list[Lexeme]) -> list[Line]:
    """The lines as their author broke them; wide braces end or open one, and commas that end an entry's line go."""
    lines: list[Line] = []
    physical: list[Lexeme] = []
    blank = False
    for lexeme in (*stream, Lexeme("NEWLINE", "")):
        if lexeme.kind != "NEWLINE":
            physical.append(lexeme)
        elif physical:
            made = _pieces(physical)
            made[0].blank_before = blank
            lines += made
            physical, blank = [], False
        else:
            blank = True
    return lines


def _pieces(physical: list[Lexeme]) -> list[Line]:
    """One line of the file as the lines to write. Its comment goes with the last of them that says something."""
    comment = physical.pop() if physical[-1].kind in _COMMENTS else None
    pieces: list[list[Lexeme]] = [[]]
    for index, lexeme in enumerate(physical):
        following = physical[index + 1] if index + 1 < len(physical) else None
        if lexeme.kind == "RBRACE" and lexeme.wide and pieces[-1]:
            pieces.append([])
        if lexeme.kind == "COMMA" and (lexeme.entry if following is None else following.kind in (*_CLOSERS, "RBRACE")):
            continue
        if lexeme.entry and pieces[-1] and pieces[-1][-1].wide:
            pieces.append([])
            continue
        if lexeme.kind == "LBRACE" and lexeme.wide:
            pieces[-1:] = _before_wide(pieces[-1])
        pieces[-1].append(lexeme)
        if lexeme.kind == "LBRACE" and lexeme.wide:
            pieces.append([])
    lines = [Line(piece, None) for piece in pieces if piece]
    if comment is None:
        return lines
    if not lines:
        return [Line([], comment)]
    telling = [line for line in lines if not line.opens and not _only_closes(line)] or lines[-1:]
    # A trailing doc speaks of every entry that ends on its line.
    for line in telling if comment.kind == "DOC" else telling[-1:]:
        line.comment = comment
    return lines


def _only_closes(line: Line) -> bool:
    return all(lexeme.kind == "RBRACE" for lexeme in line.tokens)


def _before_wide(piece: list[Lexeme]) -> list[list[Lexeme]]:
    """Entries before the key of a wide section get a line of their own."""
    commas = [index for index, lexeme in enumerate(piece) if lexeme.entry]
    return [piece[: commas[-1]], piece[commas[-1] + 1 :]] if commas else [piece]
