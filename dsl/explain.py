"""The long form of a diagnostic: a page of `docs/diagnostics`, which is installed along with the compiler."""

from __future__ import annotations

import re
from pathlib import Path

from .codes import CODES
from .suggest import did_you_mean

PAGES = Path(__file__).parent.parent / "docs" / "diagnostics"
_BOLD = "1"
_BLUE = "1;34"
_CODE = re.compile(r"(?:DSK)?(\d{1,4})", re.IGNORECASE)


class UnknownCode(Exception):
    """There is no such code; `near` is the one that was probably meant."""

    def __init__(self, text: str, near: str | None) -> None:
        super().__init__(f"there is no diagnostic `{text}`")
        self.near = near


def find_code(text: str) -> str:
    """The code that a text spells: `DSK0101`, `dsk101`, `101`. Raises UnknownCode."""
    found = _CODE.fullmatch(text.strip())
    code = f"DSK{int(found[1]):04}" if found else text.strip().upper()
    if code not in CODES:
        raise UnknownCode(text, did_you_mean(code, CODES))
    return code


def read_page(code: str) -> str:
    """The page of a code, in Markdown. Raises OSError when it is not installed."""
    return (PAGES / f"{code}.md").read_text(encoding="utf-8")


def list_codes() -> str:
    """Every code with what it means, a line each."""
    return "\n".join(f"{code}  {meaning}" for code, meaning in CODES.items())


def show_page(page: str, color: bool = False) -> str:
    """A page as the terminal shows it: headings without their signs, examples indented instead of fenced."""
    lines: list[str] = []
    inside = False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = not inside
            _, _, name = line.removeprefix("```").partition(" ")
            if inside and name:
                lines += [_painted(f"{name}:", _BLUE, color), ""]
        elif inside:
            lines.append(f"    {line}".rstrip())
        elif line.startswith("#"):
            lines.append(_painted(line.lstrip("# "), _BOLD, color))
        else:
            lines.append(line)
    return "\n".join(lines)


def _painted(text: str, style: str, color: bool) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if color else text
