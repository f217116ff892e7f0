"""JSON lines: a file whose lines are objects, one document each (https://jsonlines.org)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..problem import Problem
from .template import Template, Unfit

SUFFIXES = (".jsonl", ".jsonl.gz")
MARK = "\ufeff"  # some editors begin a file with it


@dataclass(frozen=True)
class Jsonl:
    """A Table of the lines of a file, which may be compressed by gzip. Numbers of rows are those of lines, from 1;
    blank lines are none.
    """

    path: Path
    name: str
    template: Template

    def rows(self, wanted: Iterable[int] | None = None) -> Iterator[tuple[int, str | Unfit]]:
        """See Table. Raises Problem when the file cannot be read, or is not whole."""
        numbers = None if wanted is None else iter(wanted)
        following = None if numbers is None else next(numbers, None)
        number = 0
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if numbers is None:
                        if line.strip():
                            yield number, self._text(number, line)
                    elif following is None:
                        return
                    elif number == following:
                        yield number, self._text(number, line)
                        following = next(numbers, None)
        except (OSError, EOFError, zlib.error) as error:
            reason = "it is cut off" if isinstance(error, EOFError) else getattr(error, "strerror", None) or str(error)
            raise Problem(f"{self.path}: it cannot be read after line {number:,}: {reason}") from error

    def _text(self, number: int, line: bytes) -> str | Unfit:
        try:
            text = line.decode()
            return self.template.fill(json.loads(text.removeprefix(MARK) if number == 1 else text))
        except UnicodeDecodeError as error:
            return Unfit("not UTF-8", f"its byte {error.start} is 0x{line[error.start]:02x}")
        except (ValueError, RecursionError) as error:
            return Unfit("not JSON", str(error) if isinstance(error, ValueError) else "it is nested too deeply")
