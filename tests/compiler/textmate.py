"""A small TextMate tokenizer: as much of it as a grammar of matches and of regions with begin and end needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

ILLEGAL = "invalid.illegal.dsk"


@dataclass(frozen=True)
class _Frame:
    end: re.Pattern[str] | None
    rule: dict[str, Any]


class TextMate:
    """Line by line, as editors do: at each place the leftmost match wins, then a region's end, then the order."""

    def __init__(self, grammar: dict[str, Any]) -> None:
        self.grammar = grammar
        self.compiled: dict[str, re.Pattern[str]] = {}

    def scopes(self, text: str) -> list[str | None]:
        """The scope of every character; None where it has none."""
        found: list[str | None] = []
        stack = [_Frame(None, self.grammar)]
        for line in text.splitlines(keepends=True):
            given: list[str | None] = [None] * len(line)
            self._line(line, stack, given)
            found += given
        return found

    def _line(self, line: str, stack: list[_Frame], given: list[str | None]) -> None:
        place, entered = 0, -1
        while place <= len(line):
            frame = stack[-1]
            candidates = [(frame.end.search(line, place), None)] if frame.end else []
            candidates += [(self._pattern(r).search(line, place), r) for r in self._rules(frame.rule["patterns"])]
            hits = [(match.start(), i, match, rule) for i, (match, rule) in enumerate(candidates) if match]
            if not hits:
                return
            start, _, match, rule = min(hits, key=lambda hit: hit[:2])
            if rule is None:
                self._capture(match, frame.rule.get("endCaptures", {}), given)
                assert match.end() > entered or match.end() > start, "a region that ends where it began"
                stack.pop()
            elif "begin" in rule:
                self._capture(match, rule.get("beginCaptures", {}), given)
                stack.append(_Frame(self._compile(rule["end"]), rule))
                entered = match.end()
            else:
                assert match.end() > start, f"{rule['match']} takes nothing"
                named = {"0": {"name": rule["name"]}} if "name" in rule else rule["captures"]
                self._capture(match, named, given)
            place = match.end()

    def _rules(self, patterns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = []
        for rule in patterns:
            if "include" in rule:
                found += self._rules(self.grammar["repository"][rule["include"].removeprefix("#")]["patterns"])
            else:
                found.append(rule)
        return found

    def _pattern(self, rule: dict[str, Any]) -> re.Pattern[str]:
        return self._compile(rule.get("begin") or rule["match"])

    def _compile(self, pattern: str) -> re.Pattern[str]:
        return self.compiled.setdefault(pattern, re.compile(pattern))

    def _capture(self, match: re.Match[str], captures: dict[str, Any], given: list[str | None]) -> None:
        for group, capture in captures.items():
            for place in range(*match.span(int(group))):
                given[place] = capture["name"]
