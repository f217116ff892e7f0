"""A piece of a spec's text as the lexer cuts it."""

from __future__ import annotations


class Token(str):
    """The text itself, with its kind, a terminal of the grammar, and its place: offsets from 0, lines from 1."""

    __slots__ = ("column", "end_pos", "line", "start_pos", "type", "value")

    type: str
    value: object  # what the token stands for: the text, unless the parser puts something in its place
    start_pos: int
    end_pos: int
    line: int
    column: int

    def __new__(cls, kind: str, text: str, start_pos: int = 0, line: int = 1, column: int = 1) -> Token:
        token = super().__new__(cls, text)
        token.type, token.value = kind, text
        token.start_pos, token.end_pos = start_pos, start_pos + len(text)
        token.line, token.column = line, column
        return token

    def standing_in(self, kind: str, text: str = "") -> Token:
        """Another token at this one's place."""
        made = Token(kind, text, self.start_pos, self.line, self.column)
        made.end_pos = self.end_pos
        return made
