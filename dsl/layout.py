"""Newlines and comments: what stands between the lexer and the parser.

A newline ends a statement, except inside brackets, after an operator or comma, and around braces. A bracket that
is never closed must not swallow the rest of the file: depth falls back to zero at a brace that closes, and at a
keyword in column one. (The parser sees an unclosed bracket first, at the token after it, and clears it here.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .token import Token

ITEM_KEYWORDS = frozenset({"DSK", "USE", "MODEL", "BLOCK", "TRAIN", "PLAN", "SERVE", "CHECKPOINT"})
CLOSERS = {"LPAR": "RPAR", "LSQB": "RSQB"}

CONTINUES = frozenset({
    "COMMA", "COLON", "RARROW", "PLUS_EQUAL", "EQUAL", "EQ", "NE", "LE", "LT", "GE", "GT", "PLUS", "MINUS", "STAR",
    "SLASH", "PERCENT", "AMP", "PIPE", "LBRACE", "THEN", "ELSE", "AND", "OR", "NOT",
})  # fmt: skip


class Layout:
    """Turns the lexer's tokens into the parser's. `open_brackets` is what stands open at the last one given out."""

    def __init__(self) -> None:
        self.open_brackets: list[Token] = []

    def process(self, tokens: Iterable[Token]) -> Iterator[Token]:
        newline: Token | None = None
        previous: Token | None = None
        for token in tokens:
            kind = token.type
            if kind == "NEWLINE":
                newline = newline or token
                continue
            if kind in ("COMMENT", "DOC"):
                continue
            if newline is not None and previous is not None and self._ends_statement(previous, token):
                yield newline
            newline = None
            if kind in CLOSERS:
                self.open_brackets.append(token)
            elif self.open_brackets and kind in ("RPAR", "RSQB"):
                self.open_brackets.pop()
            yield token
            previous = token

    def _ends_statement(self, before: Token, after: Token) -> bool:
        if after.column == 1 and after.type in ITEM_KEYWORDS:
            return True
        return not self.open_brackets and before.type not in CONTINUES and after.type != "RBRACE"
