"""What each piece of a spec is coloured as: rules over lines, which Pygments and TextMate grammars both can say.

Patterns stay within a line, look behind by fixed widths only, and use nothing that Python's and Oniguruma's regular
expressions read differently.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .words import Words

NAME = "[a-z_][A-Za-z0-9_]*"
DIM = "[A-Z][A-Za-z0-9_]*"
NUMBER = r"[0-9][0-9_]*(?:\.[0-9][0-9_]*)?(?:[eE][+-]?[0-9]+)?"
BLANK = "[ \\t]*"


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern, and what it is: as a whole, or each of its groups."""

    pattern: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """What stands from `begin` to before or with `end`, read by the rules of another context."""

    begin: Rule
    end: Rule
    inside: str


@dataclass(frozen=True, slots=True)
class Include:
    """All rules of another context."""

    context: str


Entry = Rule | Region | Include
SPACE = Rule(r"[ \t\f\r]+", ("space",))


def rules(words: Words) -> dict[str, tuple[Entry, ...]]:
    """The contexts: `file` is where reading begins; in each the first rule that fits wins."""
    contexts: dict[str, tuple[Entry, ...]] = {
        "file": (*_items(words), Include("code")),
        "signature": _signature(words),
        "text": _text(words),
        "code": _code(words),
    }
    for kind, keys in words.keys.items():
        inner = f"{kind}_section"
        braces = Region(Rule(r"\{", ("punctuation",)), Rule(r"\}", ("punctuation",)), inner)
        contexts[kind] = (Rule(_word(words.devices), ("value",)), braces, Include("code"))
        own = _map(words) if kind == "checkpoint" else _section(words, kind, keys)
        contexts[inner] = (braces, *own, Include("code"))
    return contexts


def _items(words: Words) -> tuple[Entry, ...]:
    """Items begin in column one. A section ends behind its brace, or where the next item begins."""
    next_item = f"^(?={_word(words.declarations)})"
    heads = ("declaration", "space", "definition")
    named = f"([ \\t]+)({NAME})"
    found: list[Entry] = [
        Region(
            Rule(f"^(block|model){named}", heads),
            Rule(f"(?=\\{{)|{next_item}", ()),
            "signature",
        )
    ]
    for kind in words.keys:
        found.append(Region(Rule(f"^({kind}){named}", heads), Rule(f"(?<=\\}})|{next_item}", ()), kind))
    return tuple(found)


def _text(words: Words) -> tuple[Entry, ...]:
    units = "|".join(words.units)
    return (
        Rule(r"///[^\n]*", ("doc",)),
        Rule(r"#[^\n]*", ("comment",)),
        Rule(r'"[^"\n]*"', ("string",)),
        Rule(f"({NUMBER})({units})(?![A-Za-z0-9_])", ("number", "unit")),
        Rule(f"{NUMBER}(?![A-Za-z0-9_])", ("number",)),
    )


def _signature(words: Words) -> tuple[Entry, ...]:
    return (
        Include("text"),
        Rule(f"{NAME}(?={BLANK}(?::|=(?!=)))", ("label",)),
        Rule(_word(words.types), ("type",)),
        Include("code"),
    )


def _section(words: Words, kind: str, keys: Iterable[str]) -> tuple[Entry, ...]:
    follows = f"(?={BLANK}(?:=(?!=)|->|[{{(])|[ \\t]+[a-z_])"
    return (
        Include("text"),
        Rule(f"(?<=-> ){_word(words.mesh_axes)}", ("value",)),
        Rule(f"{_word(keys)}{follows}", ("key",)),
        Rule(f"{_word(words.section_values[kind])}(?!{BLANK}:)", ("value",)),
    )


def _map(words: Words) -> tuple[Entry, ...]:
    return (
        Include("text"),
        Rule(f'{_word(words.keys["checkpoint"])}(?=[ \\t]+["\\[])', ("key",)),
        Rule(f"{_word(words.transforms)}(?=\\()", ("function",)),
        Rule(f"{NAME}(?:\\.(?:{NAME}|\\*))*(?={BLANK}=)", ("path",)),
    )


def _code(words: Words) -> tuple[Entry, ...]:
    return (
        Include("text"),
        Rule(f"(?<=[A-Za-z0-9_*]\\.){NAME}", ("path",)),
        Rule(f"{NAME}(?={BLANK}:)", ("label",)),
        Rule(_word(words.declarations), ("declaration",)),
        Rule(_word(words.keywords), ("keyword",)),
        Rule(_word(words.operators), ("word_operator",)),
        Rule(_word(words.constants), ("constant",)),
        Rule(f"{_word(words.functions)}(?=\\()", ("function",)),
        Rule(f"{NAME}(?=\\()", ("call",)),
        Rule(f"(?<=: ){_word(words.choices)}", ("value",)),
        Rule(f"{_word(words.values)}(?!{BLANK}=(?!=))", ("value",)),
        Rule(NAME, ("name",)),
        Rule(DIM, ("dim",)),
        Rule(r"->|\.\.|\+=|[=!<>]=|[-+*/%&|<>=]", ("operator",)),
        Rule(r"[()\[\]{},:?.]", ("punctuation",)),
        SPACE,
    )


def _word(alternatives: Iterable[str]) -> str:
    return f"(?<![A-Za-z0-9_])(?:{'|'.join(alternatives)})(?![A-Za-z0-9_])"
