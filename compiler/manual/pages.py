"""Which files tables write, in whole or between markers, and what belongs into them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from ..highlight import textmate
from .library import library_page
from .reference import PARTS
from .speed import check_time

_PART = re.compile(r"<!-- generated: (\S+) -->\n(.*?)<!-- end of \1 -->\n", re.DOTALL)


class MarkerError(Exception):
    """A page's markers are not those of the parts that there are."""


def filled(text: str, parts: Mapping[str, Callable[[], list[str]]] = PARTS) -> str:
    """A page with each part between its markers written anew. Raises MarkerError when one is missing or unknown."""
    found = [name for name, _ in _PART.findall(text)]
    if sorted(found) != sorted(parts):
        odd = sorted(set(found) ^ set(parts)) or sorted({name for name in found if found.count(name) > 1})
        raise MarkerError(f"markers and parts differ: {', '.join(odd)}")
    return _PART.sub(lambda part: marked(part[1], parts[part[1]]()), text)


def marked(name: str, lines: list[str]) -> str:
    """A part within its markers."""
    return "\n".join([f"<!-- generated: {name} -->", "", *lines, f"<!-- end of {name} -->", ""])


def pages(root: Path) -> dict[Path, str]:
    """Every file that is written, with its text, for the repository at `root`."""
    language, compiler = root / "docs" / "language.md", root / "docs" / "compiler.md"
    timed = {"check-time": partial(check_time, root / "benchmarks" / "results" / "check_time.json")}
    return {
        language: filled(language.read_text(encoding="utf-8")),
        compiler: filled(compiler.read_text(encoding="utf-8"), timed),
        root / "docs" / "standard-library.md": library_page(),
        root / "editors" / "vscode" / "syntaxes" / "dsk.tmLanguage.json": textmate.text(),
    }
