"""The tables that Lark makes of the grammar, and the small machine that runs them.

Lark reads `grammar.lark`, proves it LALR(1) without conflicts, and builds its tables: half a second of work, done once
for a grammar. They are kept in the user's cache folder in a form that loads in a millisecond, without importing Lark.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .token import Token

if TYPE_CHECKING:
    from lark.grammar import Rule as LarkRule

FORMAT = 1  # of what is kept
DEEP = 2000  # states on the stack: to copy more of them for each token takes too long
# A rule: what it makes, the method of the tree builder that makes it, how many children it takes, which of them and
# with how many absent ones before each (and behind the last), and whether a single child passes as it is.
Rule = tuple[str, str, int, tuple[tuple[int, bool, int], ...], int, bool]
Action = int  # to shift into state n: n; to reduce rule n: -1 - n


class UnexpectedToken(Exception):
    """A token that fits nowhere; `expected` are the terminals that would."""

    def __init__(self, token: Token, expected: frozenset[str]) -> None:
        super().__init__(f"{token.type} at line {token.line}")
        self.token = token
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Tables:
    """Everything that parsing needs. `states` maps what may come in each state to an action."""

    lexer: re.Pattern[str]
    keywords: dict[str, str]
    ignored: frozenset[str]
    states: tuple[dict[str, Action], ...]
    rules: tuple[Rule, ...]
    start: int
    end: int

    def tokens(self, text: str) -> Iterator[Token]:
        """All tokens but what is ignored. The grammar's last terminal takes any character, so nothing is left over."""
        line, line_start = 1, 0
        keywords, ignored = self.keywords, self.ignored
        for found in self.lexer.finditer(text):
            kind = found.lastgroup
            assert kind is not None
            if kind in ignored:
                continue
            piece, start = found.group(), found.start()
            if kind == "NAME":
                kind = keywords.get(piece, kind)
            yield Token(kind, piece, start, line, start - line_start + 1)
            if kind == "NEWLINE":
                line, line_start = line + 1, found.end()


def advance(tables: Tables, stack: list[int], kind: str) -> bool:
    """Takes a terminal into a stack of states, building nothing; whether it fits. `$END` fits when all is read."""
    states, rules = tables.states, tables.rules
    while True:
        action = states[stack[-1]].get(kind)
        if action is None:
            return False
        if action >= 0:
            stack.append(action)
            return True
        origin, _, size, *_ = rules[-1 - action]
        if size:
            del stack[-size:]
        stack.append(states[stack[-1]][origin])
        if kind == "$END" and stack[-1] == tables.end:
            return True


def accepted(tables: Tables, stack: list[int]) -> frozenset[str]:
    """The terminals that may come next. (A state alone lists more: those that fit it in some other context.)"""
    candidates = (kind for kind in tables.states[stack[-1]] if kind.isupper() or kind == "$END")
    return frozenset(kind for kind in candidates if kind != "ERROR" and advance(tables, stack.copy(), kind))


class Machine:
    """An LALR parser in mid-flight: its stacks may be looked at, and cut back to recover from a mistake."""

    def __init__(self, tables: Tables, builder: object) -> None:
        self.tables = tables
        self.states = tables.states
        self.rules = tables.rules
        self.end = tables.end
        self.passed = [_passed(rule) for rule in tables.rules]  # what a rule makes of one symbol that it only passes on
        self.builder = builder
        self.state_stack = [tables.start]
        self.value_stack: list[object] = []

    def feed_token(self, token: Token, is_end: bool = False) -> object:
        """Takes a token in; the tree, when it is the end. Raises UnexpectedToken, the stacks as they then are."""
        before = self.state_stack  # what is reduced on the way to an error may hide what would have fitted
        if len(before) < DEEP:
            before = before.copy()
        states, stack, kind = self.states, self.state_stack, token.type
        while True:
            action = states[stack[-1]].get(kind)
            if action is None:
                raise UnexpectedToken(token, accepted(self.tables, before))
            if action >= 0:
                stack.append(action)
                self.value_stack.append(token)
                return None
            origin = self.passed[-1 - action]
            if origin is not None:  # most of all reductions: an operand on its way through the levels of operators
                stack[-1] = states[stack[-2]][origin]
            else:
                self._reduce(self.rules[-1 - action])
            if is_end and stack[-1] == self.end:
                return self.value_stack[-1]

    def _reduce(self, rule: Rule) -> None:
        origin, method, size, taken, absent_behind, passes_single = rule
        children: list[object] = []
        if size:
            given = self.value_stack[-size:]
            del self.value_stack[-size:]
            del self.state_stack[-size:]
            for index, spread, absent_before in taken:
                children.extend([None] * absent_before)
                child = given[index]
                if spread:  # a helper rule's children
                    assert isinstance(child, list), child
                    if children:
                        children.extend(child)
                    else:
                        children = child  # nobody else's any more; to copy it each time would take ever longer
                else:
                    children.append(child)
        children.extend([None] * absent_behind)
        if passes_single and len(children) == 1:
            value = children[0]
        elif method.startswith("_"):
            value = children
        else:
            build: Callable[[list[object]], object] = getattr(self.builder, method)
            value = build(children)
        self.state_stack.append(self.states[self.state_stack[-1]][origin])
        self.value_stack.append(value)


def _passed(rule: Rule) -> str | None:
    """The symbol that a rule reduces to, where it passes on its only one as it is."""
    origin, _, size, taken, absent_behind, passes_single = rule
    return origin if passes_single and size == 1 and taken == ((0, False, 0),) and not absent_behind else None


def load_tables(grammar: Path, folder: Path) -> Tables:
    """The tables of a grammar, from `folder` where they are kept, else built and put there."""
    text = grammar.read_text(encoding="utf-8")
    key = hashlib.sha256(f"{FORMAT} {sys.version_info[:2]} {text}".encode()).hexdigest()[:16]
    kept = folder / f"grammar-{key}.tables"
    try:
        plain = marshal.loads(kept.read_bytes())
    except (OSError, EOFError, ValueError, TypeError):
        plain = build_tables(text)
        keep(kept, marshal.dumps(plain))
    pattern, keywords, ignored, states, rules, start, end = plain
    return Tables(re.compile(pattern), keywords, frozenset(ignored), tuple(states), tuple(rules), start, end)


def keep(path: Path, data: bytes) -> None:
    """Writes the file whole, or leaves it: without it, tables are built again next time."""
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except OSError:
        pass


def build_tables(text: str) -> tuple[str, dict[str, str], list[str], list[dict[str, int]], list[Rule], int, int]:
    """Lark's tables of a grammar as plain values. Raises lark.exceptions.GrammarError on a conflict."""
    from lark import Lark
    from lark.lexer import PatternStr
    from lark.parsers.lalr_analysis import Shift

    lark = Lark(text, parser="lalr", lexer="basic", strict=True, maybe_placeholders=True, postlex=_KeepAll())
    table = lark.parser.parser._parse_table
    known = list(dict.fromkeys(arg for row in table.states.values() for kind, arg in row.values() if kind is not Shift))
    number = {rule: i for i, rule in enumerate(known)}
    order = list(table.states)
    place = {state: i for i, state in enumerate(order)}
    states = [
        {name: place[arg] if kind is Shift else -1 - number[arg] for name, (kind, arg) in table.states[state].items()}
        for state in order
    ]
    terminals = [t for t in lark.terminals if t.name not in ("ERROR",)]
    names = next(t for t in terminals if t.name == "NAME")
    is_name = re.compile(names.pattern.to_regexp()).fullmatch
    keywords = {
        t.pattern.value: t.name for t in terminals if isinstance(t.pattern, PatternStr) and is_name(t.pattern.value)
    }
    others = [t for t in terminals if t.name not in keywords.values()]
    others.sort(key=lambda t: (-t.priority, -t.pattern.max_width, -len(t.pattern.value), t.name))
    pattern = "|".join(f"(?P<{t.name}>{t.pattern.to_regexp()})" for t in others)
    start, end = table.start_states["start"], table.end_states["start"]
    return pattern, keywords, list(lark.ignore_tokens), states, [_rule(r) for r in known], place[start], place[end]


def _rule(rule: LarkRule) -> Rule:
    """One of Lark's rules, with what its tree building would do spelled out."""
    origin = rule.origin.name
    absent = _absent(rule.options.empty_indices, len(rule.expansion))
    taken, before = [], 0
    for i, symbol in enumerate(rule.expansion):
        before += absent[i]
        if rule.options.keep_all_tokens or not getattr(symbol, "filter_out", False):  # only terminals have it
            taken.append((i, not symbol.is_term and symbol.name.startswith("_"), before))
            before = 0
    passes = bool(rule.options.expand1 and not rule.alias)
    method = rule.alias or str(rule.options.template_source or origin)
    return str(origin), str(method), len(rule.expansion), tuple(taken), before + absent[-1], passes


def _absent(empty: tuple[bool, ...], size: int) -> list[int]:
    """How many optional symbols were left out before each symbol of an expansion, and behind the last."""
    if not empty:
        return [0] * (size + 1)
    counts = [0]
    for left_out in empty:
        if left_out:
            counts[-1] += 1
        else:
            counts.append(0)
    assert len(counts) == size + 1
    return counts


class _KeepAll:
    """Tells Lark to keep the terminals that no rule mentions; `layout.py` and `parser.py` look after them."""

    always_accept = ("NEWLINE", "COMMENT", "DOC", "UNTERMINATED", "UNREADABLE")

    def process(self, stream: Iterator[object]) -> Iterator[object]:
        return stream
