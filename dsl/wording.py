"""How tokens are called in messages."""

from __future__ import annotations

from collections.abc import Iterable

from .source import Span
from .token import Token

_SPELLED = {
    "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "LBRACE": "`{`", "RBRACE": "`}`", "COMMA": "`,`",
    "COLON": "`:`", "QUESTION": "`?`", "RARROW": "`->`", "PLUS_EQUAL": "`+=`", "EQUAL": "`=`", "DOT": "`.`",
    "NEWLINE": "the end of the line", "$END": "the end of the file",
}  # fmt: skip
_HABITS = {
    "'": "texts stand in double quotes",
    ";": "a statement ends with its line",
    "//": "comments begin with `#`",
    "**": "there is no power: multiply",
    "-=": "of these there is only `+=`",
    "*=": "of these there is only `+=`",
    "/=": "of these there is only `+=`",
    "&&": "that is `and`",
    "||": "that is `or`",
}
LONGEST = 40  # characters of a token that are shown
_OPERATORS = {"EQ", "NE", "LT", "LE", "GT", "GE", "PLUS", "MINUS", "STAR", "SLASH", "PERCENT", "AMP", "PIPE"}
_VALUES = {"NUMBER", "STRING", "TRUE", "FALSE", "LSQB"}
_ITEMS = {"USE", "MODEL", "BLOCK", "TRAIN", "PLAN", "SERVE", "CHECKPOINT"}
_STATEMENTS = {"REPEAT", "RETURN", "KEEP", "REQUIRE"}


def describe_token(token: Token) -> str:
    """What was found, for `unexpected ...`."""
    if token.type in _SPELLED:
        return _SPELLED[token.type]
    if token.type == "UNTERMINATED":
        return "a string without its closing quote"
    if token.type == "UNREADABLE":
        return f"the character {str(token)!r}"
    text = str(token)
    return f"`{text}`" if len(text) <= LONGEST else f"`{text[:LONGEST]}...`"


def describe_unexpected(token: Token) -> str:
    """The title of a problem with a token that fits nowhere."""
    if token.type in ("NEWLINE", "$END"):
        return f"the {'line' if token.type == 'NEWLINE' else 'file'} ends too early"
    return f"unexpected {describe_token(token)}"


def habit(span: Span) -> str | None:
    """What the language has instead of something that other languages have there."""
    two = span.source.text[span.start : span.start + 2]
    return _HABITS.get(two) or _HABITS.get(two[:1])


def describe_expected(terminals: Iterable[str]) -> str:
    """What would have been right, shortest first: `)`, `,` or an operator."""
    expected = set(terminals)
    words: list[str] = []
    if expected >= _VALUES:
        words.append("a value")
    elif expected >= _ITEMS:
        return "`model`, `block`, `train`, `plan`, `serve`, `checkpoint` or `use`"
    elif expected >= _STATEMENTS:
        words.append("a statement")
    else:
        words += [word for word in ("NAME", "DIM", "NUMBER", "STRING") if word in expected]
        words = [{"NAME": "a name", "DIM": "a dim", "NUMBER": "a number", "STRING": "a string"}[w] for w in words]
    words += [text for kind, text in _SPELLED.items() if kind in expected and not (words and kind == "LSQB")]
    if len(expected & _OPERATORS) > 3:
        words.append("an operator")
    spelled = {"FROM", "OF", "FOR", "ON", "AS", "THEN", "ELSE"} & expected if len(expected) < 30 else set()
    words += sorted(f"`{word.lower()}`" for word in spelled)
    if not words:
        return ""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
