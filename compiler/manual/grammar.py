"""The grammar to read: Lark's file without what only the parser needs."""

from __future__ import annotations

import re
import textwrap

WIDTH = 110
MANY = 8  # keywords among a rule's alternatives are called `keyword` when there are more
_LITERAL = re.compile(r'^([A-Z_]+): "([^"]*)"$', re.MULTILINE)
_PATTERN = re.compile(r"^([A-Z_]+): (/.*/)$", re.MULTILINE)
_RULE = re.compile(r"[?!]?_?([a-z_]+): (.*)")
_LEAVES = {"NAME": "name", "DIM": "dim", "NUMBER": "number", "STRING": "string", "NEWLINE": "newline"}


def readable(grammar: str) -> str:
    """Rules with their terminals written out, as a person would write them down."""
    rules, _, terminals = grammar.partition("// --- terminals")
    literals = {name: f'"{text}"' for name, text in _LITERAL.findall(terminals)}
    patterns = dict(_PATTERN.findall(terminals))
    lines: list[str] = []
    keywords: list[str] = []
    for name, alternatives in _rules(rules):
        if not name:
            lines += ["", f"# {alternatives[0]}", ""]
        elif len(alternatives) == 1 and alternatives[0] in patterns:
            lines.append(f"{name}: {patterns[alternatives[0]]}")
        else:
            shown = [_written(text, literals) for text in alternatives if not text.startswith("ERROR")]
            words = [text for text in shown if re.fullmatch(r'"[a-z]+"', text)]
            if len(words) > MANY:
                keywords = words
                shown = [text for text in shown if text not in words] + ["keyword"]
            lines += _laid_out(name, shown)
    return "\n".join([*lines, *_laid_out("keyword", keywords)]).strip()


def _rules(text: str) -> list[tuple[str, list[str]]]:
    """Each rule with its alternatives; a heading is a rule without a name."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("// --- "):
            found.append(("", [line.removeprefix("// --- ")]))
        elif rule := _RULE.fullmatch(line):
            found.append((rule[1], _alternatives(rule[2])))
        elif line.startswith("|"):
            found[-1][1].extend(_alternatives(line[1:]))
    return found


def _alternatives(text: str) -> list[str]:
    text = re.sub(r"\s*->\s*[a-z_]+\s*(?=\||$)", " ", text)  # what the syntax tree calls it
    return [part.strip() for part in re.split(r"\|(?![^(]*\))", text)]


def _written(text: str, literals: dict[str, str]) -> str:
    text = re.sub(r"\b[A-Z][A-Z_]+\b", lambda found: literals.get(found[0]) or _LEAVES[found[0]], text)
    return re.sub(r"\b_(?=[a-z])", "", text)


def _laid_out(name: str, alternatives: list[str]) -> list[str]:
    """On one line where that is short or all are words, else an alternative a line."""
    whole = f"{name}: {' | '.join(alternatives)}"
    if all(" " not in a for a in alternatives):
        return textwrap.wrap(whole, WIDTH, subsequent_indent=" " * (len(name) + 2))
    return [f"{name}: {alternatives[0]}", *(f"{' ' * len(name)}| {a}" for a in alternatives[1:])]
