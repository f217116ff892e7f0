"""Pieces of Python text: expressions with their precedence, and lines that fit the page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..reserved import PYTHON

WIDTH = 120

ATOM, PRODUCT, SUM, LOOSE = 3, 2, 1, 0


@dataclass(frozen=True, slots=True)
class Text:
    """An expression. `level` says how tightly it holds together; `parts` breaks a long call at its arguments."""

    text: str
    level: int = ATOM
    parts: tuple[str, tuple[str, ...]] | None = None  # callee, arguments

    def __str__(self) -> str:
        return self.text

    def at(self, level: int) -> str:
        """The text, in parentheses where it would fall apart in such company."""
        return self.text if self.level >= level else f"({self.text})"

    def method(self, call: str) -> Text:
        return Text(f"{self.at(ATOM)}.{call}")


def call(callee: str, arguments: tuple[str, ...]) -> Text:
    return Text(f"{callee}({', '.join(arguments)})", ATOM, (callee, arguments))


def number(value: float | int) -> str:
    """A number as a person writes it: 10_000.0, 1e-06."""
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if value == int(value) and abs(value) < 1e16:
        whole = int(value)
        return f"{whole:_}.0" if abs(whole) >= 10_000 else f"{whole}.0"
    text = repr(value)
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def fit(indent: str, head: str, arguments: tuple[str, ...], tail: str) -> list[str]:
    """`head(arguments)tail` within the width, broken as ruff breaks it: all arguments on a line, else one a line."""
    line = f"{indent}{head}({', '.join(arguments)}){tail}"
    if len(line) <= WIDTH or not arguments:
        return [line]
    inner = f"{indent}    {', '.join(arguments)}"
    if len(inner) <= WIDTH:
        return [f"{indent}{head}(", inner, f"{indent}){tail}"]
    lines = (line for argument in arguments for line in _argument(f"{indent}    ", argument))
    return [f"{indent}{head}(", *lines, f"{indent}){tail}"]


def _argument(indent: str, argument: str) -> list[str]:
    """An argument on a line of its own; a call of plain arguments that is too long for it is broken too."""
    found = re.fullmatch(r"((?:\w+=)?\w+)\(([^()\[\]{}]+)\)", argument)
    if found is None or len(indent) + len(argument) < WIDTH:
        return [f"{indent}{argument},"]
    return fit(indent, found[1], tuple(found[2].split(", ")), ",")


def camel(name: str) -> str:
    """`shared_expert` as a class is called: `SharedExpert`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def singular(name: str) -> str:
    """What one of `layers` is called."""
    item = name[:-1]
    return item if name.endswith("s") and len(name) > 2 and item not in PYTHON else f"{name}_item"
