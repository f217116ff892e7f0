"""What the command line needs of files: all problems of one, and writing text whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from dskc.dsl.diagnostics import DiagnosticError, Diagnostics


def read_all(path: Path, settings: tuple[str, ...] = ()) -> Diagnostics:
    """Every problem of the spec at `path`, including those that keep it from being read."""
    from .checkpoint_map import check_maps, checkpoint_rules
    from .pipeline import check

    try:
        compiled = check(path, settings)
    except DiagnosticError as error:
        return Diagnostics(error.diagnostics)
    for name, model in compiled.program.models.items():
        if name in compiled.graphs:
            checkpoint_rules(model, compiled.graphs[name], compiled.problems)
        else:
            check_maps(model, compiled.problems)
    return compiled.problems


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def write_new(path: Path, text: str) -> None:
    """Writes a file whole or not at all, and only where there is none. Raises FileExistsError where there is one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.link(partial, path)  # which, unlike a rename, overwrites nothing
    finally:
        partial.unlink(missing_ok=True)
