"""Files of questions: JSON lines (https://jsonlines.org), and what each line must hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ..data.jsonl import MARK, SUFFIXES
from ..problem import Problem

# What a field may also be called, besides what --fields says.
ALIASES = {"choices": ("options",), "topic": ("subject",)}


@dataclass(frozen=True)
class Line:
    """An object of a file, with the names of `--fields` already put in place."""

    path: Path
    number: int
    values: Mapping[str, object]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def text(self, name: str) -> str:
        """A field that must be text; Problem where it is not there, or is something else."""
        value = self._get(name)
        return value if isinstance(value, str) else self.wrong(f"`{name}` must be text, and is {_short(value)}")

    def texts(self, name: str) -> list[str]:
        """A field that must be a list of texts, none of them empty. A number is the text it is written as, and what is
        missing (null, NaN) the word None: that is how tables lose it."""
        value = self._get(name)
        found = [_as_text(part) for part in value] if isinstance(value, list) else []
        if not found or not all(found):
            self.wrong(f"`{name}` must be a list of texts, and is {_short(value)}")
        return found

    def value(self, name: str) -> object:
        return self._get(name)

    def wrong(self, what: str) -> NoReturn:
        raise Problem(f"{self.path}:{self.number}: {what}", "docs/evaluation.md has the fields of each kind of task")

    def _get(self, name: str) -> object:
        if name not in self.values:
            there = ", ".join(f"`{key}`" for key in self.values) or "none"
            self.wrong(f"there is no `{name}`; its fields are {there} (--fields {name}=THEIRS names another)")
        return self.values[name]


def is_file_of_lines(name: str) -> bool:
    """Whether a task is named by its file."""
    return name.endswith(SUFFIXES) or Path(name).is_file()


def task_name(path: Path) -> str:
    """The file's name without its ending."""
    return next((path.name.removesuffix(end) for end in SUFFIXES[::-1] if path.name.endswith(end)), path.stem)


def read_lines(path: Path, fields: Mapping[str, str] | None = None) -> list[Line]:
    """Every line of a file that is not blank. fields: ours -> what the file calls it.

    Raises Problem, with the file and the line, where one is no object or the file cannot be read or has none.
    """
    found: list[Line] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    found.append(_line(path, number, text, fields or {}))
    except (OSError, EOFError, zlib.error) as error:
        raise Problem(f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not found:
        raise Problem(f"{path}: there is no line in it")
    return found


def as_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> list[Line]:
    """Rows that came from elsewhere, as if they were the lines of a file of this name."""
    return [Line(path, number, row) for number, row in enumerate(rows, 1)]


def digest(lines: Sequence[Line]) -> str:
    """SHA-256 over what the lines hold: the same for the same questions, wherever they lie."""
    made = hashlib.sha256()
    for line in lines:
        made.update(json.dumps(line.values, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return made.hexdigest()


def parse_fields(given: Sequence[str]) -> dict[str, str]:
    """`answer=expected_index,choices=endings` and the like as a mapping; Problem when it is no such list."""
    found: dict[str, str] = {}
    for part in (part for text in given for part in text.split(",")):
        ours, equals, theirs = (each.strip() for each in part.partition("="))
        if not (ours and equals and theirs):
            raise Problem(f"--fields {part}: it names no pair of fields", "write OURS=THEIRS, as in choices=endings")
        found[ours] = theirs
    return found


def _line(path: Path, number: int, text: bytes, fields: Mapping[str, str]) -> Line:
    try:
        value = json.loads(text.decode().removeprefix(MARK) if number == 1 else text.decode())
    except UnicodeDecodeError as error:
        raise Problem(f"{path}:{number}: not UTF-8, its byte {error.start} is 0x{text[error.start]:02x}") from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}:{number}: not JSON: {error}", "each line is an object of its own") from error
    if not isinstance(value, dict):
        raise Problem(f"{path}:{number}: a line must be an object, and this is {_short(value)}")
    return Line(path, number, dict(_named(value, fields)))


def _named(value: Mapping[str, object], fields: Mapping[str, str]) -> Iterator[tuple[str, object]]:
    yield from value.items()
    for ours, others in ALIASES.items():
        for theirs in others:
            if theirs in value and ours not in value:
                yield ours, value[theirs]
    for ours, theirs in fields.items():
        if theirs in value:
            yield ours, value[theirs]


def _as_text(value: object) -> str:
    """Empty where it is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "None"
    if isinstance(value, bool | list | dict):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
