"""The base of a generated model: its errors end with the line of the spec they come from."""

from __future__ import annotations

import bisect
import functools
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

SOURCE_MAP = "source.map.json"
HIDDEN = "hidden"  # the method of models whose losses take what their last linear map takes: it is called as a model is


class SpecModule(nn.Module):
    """An nn.Module that, when a call of it fails, adds to the error the line of the spec that the failing line came
    from.

    The map lies in `source.map.json` beside the generated module: `{"files": {"model.py": {"41": ["specs/x.dsk", 17,
    "x += attention(...)"]}}}`; a line that it lacks has the entry of the nearest one above.
    """

    if not TYPE_CHECKING:  # to a type checker, calls are nn.Module's

        def __call__(self, *arguments: object, **options: object) -> object:
            # A compiled call never comes back through this frame with a Python error, and a bare call traces best.
            if torch.compiler.is_compiling():
                return super().__call__(*arguments, **options)
            try:
                return super().__call__(*arguments, **options)
            except Exception as error:
                add_spec_line(error, _folder(sys.modules[type(self).__module__]))
                raise

        def __init_subclass__(cls, **options: object) -> None:
            super().__init_subclass__(**options)
            if HIDDEN in vars(cls):
                setattr(cls, HIDDEN, _noted(vars(cls)[HIDDEN]))


def _noted(method: Callable[..., object]) -> Callable[..., object]:
    """A method whose errors carry the line of the spec, as those of a call of its module do."""

    @functools.wraps(method)
    def call(self: SpecModule, *arguments: object, **options: object) -> object:
        if torch.compiler.is_compiling():
            return method(self, *arguments, **options)
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            add_spec_line(error, _folder(sys.modules[type(self).__module__]))
            raise

    return call


@contextmanager
def spec_lines(module: ModuleType) -> Iterator[None]:
    """Errors raised within, where they pass through generated code beside `module`, carry the line of the spec."""
    try:
        yield
    except Exception as error:
        add_spec_line(error, _folder(module))
        raise


def add_spec_line(error: BaseException, folder: Path | None) -> None:
    """Add to the error a note with the spec's line for the deepest frame whose file lies in `folder`, unless it has
    one.

    Does nothing when there is no such frame, no map, or no entry: an error is never replaced by one about its note.
    """
    if folder is None:
        return
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.parent != folder:
            continue
        found = _lookup(folder / SOURCE_MAP, file.name, line)
        if found is not None:
            note = f"  {found[0]}:{found[1]}: {found[2]}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        return


def spec_line(file: Path, line: int) -> str:
    """`specs/x.dsk:17: x += attention(...)`, where a line of generated code comes from; empty where nothing says so."""
    found = _lookup(file.parent / SOURCE_MAP, file.name, line)
    return f"{found[0]}:{found[1]}: {found[2]}" if found is not None else ""


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).parent if file else None


def _lookup(source_map: Path, file: str, line: int) -> tuple[str, int, str] | None:
    try:
        lines = _read_map(source_map).get(file, {})
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    known = sorted(lines)
    at = bisect.bisect_right(known, line)
    return lines[known[at - 1]] if at else None


@lru_cache(maxsize=16)
def _read_map(source_map: Path) -> dict[str, dict[int, tuple[str, int, str]]]:
    files = json.loads(source_map.read_text(encoding="utf-8"))["files"]
    return {
        name: {int(number): (str(spec), int(at), str(text)) for number, (spec, at, text) in lines.items()}
        for name, lines in files.items()
    }
