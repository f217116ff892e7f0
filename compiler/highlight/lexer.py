"""The Pygments lexer of specs: `dsk`, for files `*.dsk`. Registered in pyproject.toml, for terminals and docs."""

from __future__ import annotations

from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, include
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from .rules import Entry, Include, Region, Rule, rules
from .words import Words, words

TOKENS = {
    "call": Name.Function,
    "comment": Comment.Single,
    "constant": Keyword.Constant,
    "declaration": Keyword.Declaration,
    "definition": Name.Class,
    "dim": Name.Entity,
    "doc": String.Doc,
    "function": Name.Builtin,
    "key": Name.Attribute,
    "keyword": Keyword,
    "label": Name.Label,
    "name": Name,
    "number": Number,
    "operator": Operator,
    "path": Name.Property,
    "punctuation": Punctuation,
    "space": Whitespace,
    "string": String.Double,
    "type": Keyword.Type,
    "unit": Number.Unit,
    "value": Name.Constant,
    "word_operator": Operator.Word,
}


def states(vocabulary: Words) -> dict[str, list[Any]]:
    """The rules as Pygments takes them: a region is a state that `begin` enters and `end` leaves."""
    made: dict[str, list[Any]] = {}
    regions: dict[str, Region] = {}
    for context, entries in rules(vocabulary).items():
        made["root" if context == "file" else context] = [_entry(entry, context, regions) for entry in entries]
    for name, region in regions.items():
        made[name] = [(region.end.pattern, _action(region.end), "#pop"), include(region.inside)]
    made["root"].append((r"\n", Whitespace))
    made["code"].append((r"\n", Whitespace))
    return made


def _entry(entry: Entry, context: str, regions: dict[str, Region]) -> Any:
    if isinstance(entry, Include):
        return include(entry.context)
    if isinstance(entry, Rule):
        return entry.pattern, _action(entry)
    name = f"{context}:{len(regions)}:{entry.inside}"
    regions[name] = entry
    return entry.begin.pattern, _action(entry.begin), name


def _action(rule: Rule) -> Any:
    kinds = [TOKENS[scope] for scope in rule.scopes]
    if not kinds:
        return Whitespace  # of a pattern that takes nothing
    return kinds[0] if len(kinds) == 1 else bygroups(*kinds)


class DskLexer(RegexLexer):
    """Specs of dskc."""

    name = "dsk"
    aliases: ClassVar[list[str]] = ["dsk"]
    filenames: ClassVar[list[str]] = ["*.dsk"]
    mimetypes: ClassVar[list[str]] = ["text/x-dsk"]
    url = ""
    tokens: ClassVar[dict[str, list[Any]]] = states(words())
