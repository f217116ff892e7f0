"""Which documents are left out, and why: what is no text, what is of the wrong size, and what is there twice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .settings import DataSettings
from .template import Unfit

# C0 without tab, line feed, form feed and carriage return, and DEL; C1 as UTF-8 writes it (Unicode 16, table 23-1)
ASCII_CONTROLS = bytes([*(n for n in range(32) if n not in (9, 10, 12, 13)), 127])
LATIN_CONTROLS = re.compile(rb"\xc2[\x80-\x9f]")


@dataclass
class Measure:
    """Of a text as it is read: characters, how many of them are control characters, and whether all is white space."""

    chars: int = 0
    controls: int = 0
    blank: bool = True
    _last: bytes = b""

    def add(self, encoded: bytes, text: str) -> None:
        """Count some bytes, and the characters that are whole with them."""
        self.chars += len(text)
        self.controls += len(encoded) - len(encoded.translate(None, ASCII_CONTROLS))
        self.controls += len(LATIN_CONTROLS.findall(self._last + encoded))
        self.blank = self.blank and not text.strip()
        self._last = encoded[-1:]

    def unfit(self, settings: DataSettings) -> Unfit | None:
        """Why a text that measures this is left out, or None."""
        if self.blank:
            return Unfit("empty")
        if self.controls > settings.max_control * self.chars:
            return Unfit("with control characters", f"{self.controls / self.chars:.0%} of {self.chars:,} characters")
        if self.chars < settings.min_chars:
            return Unfit("too short", _characters(self.chars))
        if settings.max_chars is not None and self.chars > settings.max_chars:
            return Unfit("too long", _characters(self.chars))
        return None


@dataclass
class Cleaner:
    """Decides about one document after the other, in their order."""

    settings: DataSettings
    _names: dict[bytes, str] = field(default_factory=dict)  # of the first with this sha256

    def unfit(self, name: str, digest: bytes, measure: Measure) -> Unfit | None:
        """Why this document is left out, or None: then later ones with its text are."""
        if (reason := measure.unfit(self.settings)) is not None:
            return reason
        if self.settings.keep_duplicates:
            return None
        if (first := self._names.get(digest)) is not None:
            return Unfit("duplicate", f"of {first}")
        self._names[digest] = name
        return None


def _characters(count: int) -> str:
    return f"{count:,} character{'s' * (count != 1)}"
