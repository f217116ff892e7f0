"""`dskc compile`: the generated folder of each model, written whole or not at all, or compared with what is there."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .emit.files import emit, short_hash
from .pipeline import Compiled, check

_HEADER = re.compile(r"# spec sha256:(\w+)  body sha256:(\w+)")


class EditedError(Exception):
    """A generated file was changed by hand, and is not overwritten."""


@dataclass(frozen=True, slots=True)
class Output:
    """One model's folder and what belongs into it."""

    model: str
    folder: Path
    files: dict[str, str]


def compile_spec(path: Path, out: Path | None = None, settings: tuple[str, ...] = ()) -> tuple[Compiled, list[Output]]:
    """Compiles every model that a spec defines. Nothing is written; nothing is emitted when there are problems."""
    compiled = check(path, settings)
    outputs: list[Output] = []
    if not compiled.problems.has_errors:
        base = out or default_folder(path)
        for name in compiled.program.models:
            outputs.append(Output(name, base / name, emit(compiled, name, settings)))
    return compiled, outputs


def default_folder(spec: Path) -> Path:
    """`generated/` beside the folder `specs` that a spec is in; beside the spec when that has another name."""
    folder = spec.resolve().parent
    return (folder.parent if folder.name == "specs" else folder) / "generated"


def write(output: Output, force: bool = False) -> list[str]:
    """Writes what differs and gives the names of those files. Raises EditedError before anything is written."""
    if not force:
        for name in output.files:
            path = output.folder / name
            if path.suffix == ".py" and path.exists() and not is_unedited(path.read_text(encoding="utf-8")):
                raise EditedError(str(path))
    output.folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in output.files.items():
        path = output.folder / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        partial = path.with_name(f".{name}.partial")
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
        changed.append(name)
    return changed


def is_unedited(text: str) -> bool:
    """Whether a file's body is the one that was generated; a file without our header is not ours."""
    head, lines = _HEADER.search(text), text.split("\n", 3)
    return head is not None and len(lines) == 4 and short_hash(lines[3]) == head[2]


def stale(output: Output) -> list[str]:
    """What differs from what would be written: for each file the reason and a diff."""
    found = []
    for name, text in output.files.items():
        path = output.folder / name
        if not path.exists():
            found.append(f"{path} is missing")
            continue
        there = path.read_text(encoding="utf-8")
        if there != text:
            found.append(f"{path}: {_reason(there, text)}\n{_diff(path, there, text)}")
    return found


def _reason(there: str, now: str) -> str:
    before, after = _HEADER.search(there), _HEADER.search(now)
    if before is None or after is None:
        return "is not what is generated now"
    if not is_unedited(there):
        return "was edited by hand"
    if before[1] != after[1]:
        return "the spec has changed"
    return "the compiler has changed"


def _diff(path: Path, there: str, now: str, most: int = 40) -> str:
    name = f"{path.parent.name}/{path.name}"
    lines = list(
        difflib.unified_diff(there.splitlines(), now.splitlines(), f"{name} (there)", f"{name} (now)", lineterm="", n=1)
    )
    more = [f"... {len(lines) - most} more lines"] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])
