"""Which files tables write, in whole or between markers, and what belongs into them."""

from __future__ import annotations

import re
from pathlib import Path

from ..highlight import textmate
from .library import library_page
from .reference import PARTS

_PART = re.compile(r"<!-- generated: (\S+) -->\n(.*?)<!-- end of \1 -->\n", re.DOTALL)


class MarkerError(Exception):
    """A page's markers are not those of the parts that there are."""


def filled(text: str) -> str:
    """A page with each part between its markers written anew. Raises MarkerError when one is missing or unknown."""
    found = [name for name, _ in _PART.findall(text)]
    if sorted(found) != sorted(PARTS):
        odd = sorted(set(found) ^ set(PARTS)) or sorted({name for name in found if found.count(name) > 1})
        raise MarkerError(f"markers and parts differ: {', '.join(odd)}")
    return _PART.sub(lambda part: marked(part[1], PARTS[part[1]]()), text)


def marked(name: str, lines: list[str]) -> str:
    """A part within its markers."""
    return "\n".join([f"<!-- generated: {name} -->", "", *lines, f"<!-- end of {name} -->", ""])


def pages(root: Path) -> dict[Path, str]:
    """Every file that is written, with its text, for the repository at `root`."""
    language = root / "docs" / "language.md"
    return {
        language: filled(language.read_text(encoding="utf-8")),
        root / "docs" / "standard-library.md": library_page(),
        root / "editors" / "vscode" / "syntaxes" / "dsk.tmLanguage.json": textmate.text(),
    }
