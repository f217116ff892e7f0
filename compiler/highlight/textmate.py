"""The rules as a TextMate grammar, which VS Code, Sublime Text, JetBrains and others read."""

from __future__ import annotations

import json

from .rules import SPACE, Entry, Include, Region, Rule, rules
from .words import Words, words

Json = dict[str, object]
SCOPES = {
    "call": "entity.name.function",
    "comment": "comment.line.number-sign",
    "constant": "constant.language",
    "declaration": "storage.type",
    "definition": "entity.name.type",
    "dim": "variable.other.constant",
    "doc": "comment.line.documentation",
    "function": "support.function",
    "key": "entity.other.attribute-name",
    "keyword": "keyword.control",
    "label": "variable.parameter",
    "name": "variable.other",
    "number": "constant.numeric",
    "operator": "keyword.operator",
    "path": "variable.other.member",
    "punctuation": "punctuation",
    "string": "string.quoted.double",
    "type": "support.type",
    "unit": "keyword.other.unit",
    "value": "support.constant",
    "word_operator": "keyword.operator.word",
}


def grammar(vocabulary: Words) -> Json:
    """The grammar as a value. What no rule takes is `invalid.illegal`, where Pygments has its error token."""
    contexts = {
        name: [_entry(entry) for entry in entries if entry != SPACE] for name, entries in rules(vocabulary).items()
    }
    contexts["code"].append({"match": r"[^ \t\f\r\n]", "name": "invalid.illegal.dsk"})
    return {
        "name": "dsk",
        "scopeName": "source.dsk",
        "fileTypes": ["dsk"],
        "patterns": [{"include": "#file"}],
        "repository": {name: {"patterns": entries} for name, entries in contexts.items()},
    }


def text() -> str:
    """The file that is committed."""
    return json.dumps(grammar(words()), indent=1, ensure_ascii=False) + "\n"


def _entry(entry: Entry) -> Json:
    if isinstance(entry, Include):
        return {"include": f"#{entry.context}"}
    if isinstance(entry, Region):
        return {
            "begin": entry.begin.pattern,
            "beginCaptures": _captures(entry.begin),
            "end": entry.end.pattern,
            "endCaptures": _captures(entry.end),
            "patterns": [{"include": f"#{entry.inside}"}],
        }
    if len(entry.scopes) == 1:
        return {"match": entry.pattern, "name": _scope(entry.scopes[0])}
    return {"match": entry.pattern, "captures": _captures(entry)}


def _captures(rule: Rule) -> Json:
    first = 0 if len(rule.scopes) == 1 else 1
    return {str(i): {"name": _scope(scope)} for i, scope in enumerate(rule.scopes, start=first) if scope in SCOPES}


def _scope(scope: str) -> str:
    return f"{SCOPES[scope]}.dsk"
