"""One text out of the fields of a row."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from ..problem import Problem
from .settings import DataSettings


@dataclass(frozen=True)
class Unfit:
    """Why a row is no document. reason: as it is counted, after a number: `3 without "text"`. detail: of this row."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return self.reason + (f"; {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Template:
    """Text and names of fields in turn: (("", "title"), (" [SEP] ", "content"), ("", None))."""

    parts: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """Each field that it names, once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, row: object) -> str | Unfit:
        """The text of a row, which holds a string by each name, or why there is none."""
        if not isinstance(row, Mapping):
            return Unfit("not an object with fields")
        for name in self.fields:
            if name not in row:
                there = ", ".join(f'"{each}"' for each in list(row)[:8])
                return Unfit(f'without "{name}"', f"it has {there}" if there else "it has no field")
            if not isinstance(row[name], str):
                return Unfit(f'whose "{name}" is no string', f"it is {_kind(row[name])}")
        return "".join(text + (row[name] if name is not None else "") for text, name in self.parts)


def template_of(settings: DataSettings) -> Template:
    """Of `--join`, or of the one field of `--text-field`. Raises Problem when the former cannot be read."""
    if settings.join is None:
        return Template((("", settings.text_field),))
    parts: list[tuple[str, str | None]] = []
    try:
        for text, name, form, conversion in string.Formatter().parse(settings.join):
            if name is not None and (not name or form or conversion):
                raise ValueError("between { and } stands the name of a field, and nothing else")
            parts.append((text.replace("\\n", "\n").replace("\\t", "\t"), name))
    except ValueError as error:
        raise Problem(
            f"--join {settings.join!r}: {error}",
            'it is text with names of fields, like "{title} [SEP] {content}"; a brace itself is written {{ or }}',
        ) from None
    if all(name is None for _, name in parts):
        raise Problem(f"--join {settings.join!r} names no field", 'write it like "{title} [SEP] {content}"')
    return Template(tuple(parts))


def _kind(value: object) -> str:
    """In JSON's words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "a number" if isinstance(value, int | float) else "a list" if isinstance(value, list) else "an object"
