"""The log of a run: JSON, a line a step."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..problem import Problem

Line = dict[str, Any]  # numbers by their names; None for one that is not finite; `skipped` is a name


@dataclass
class Log:
    """Appends to train.jsonl; each line is on its way to the disk when `write` returns."""

    file: TextIO

    @classmethod
    def open(cls, path: Path, after: int) -> Log:
        """The log of a run that has done `after` steps: lines of later ones, and a torn last one, are cut off."""
        kept = [line for line in read_lines(path) if line["step"] <= after]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
        return cls(path.open("a", encoding="utf-8"))

    def write(self, line: Line) -> None:
        """Raises Problem when the disk does not take it."""
        try:
            self.file.write(json.dumps(_finite(line), allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise Problem(
                f"{self.file.name} could not be written: {error.strerror or error}",
                "make room on the disk, then go on from the last checkpoint with --resume",
            ) from error

    def close(self) -> None:
        with suppress(OSError):  # which `write` has told
            self.file.close()


def read_lines(path: Path) -> list[Line]:
    """The lines of a log up to the first that is not whole; none when there is no file."""
    found: list[Line] = []
    if not path.exists():
        return found
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or "step" not in line:
            break
        found.append(line)
    return found


def _finite(line: Line) -> Line:
    """What JSON has numbers for."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in line.items()}
