"""What a shell may complete: specs, what they define, passes, codes. Only looked up when a shell asks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from ..program import Program

Completer = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def spec_paths(incomplete: str) -> list[CompletionItem]:
    """The specs of the folder that is begun, and of the folders in it."""
    folder, _, begun = incomplete.rpartition("/")
    base = Path(folder or ("/" if incomplete.startswith("/") else "."))
    try:
        inside = sorted(entry for entry in os.listdir(base) if entry.startswith(begun) and not entry.startswith("."))
        found = [name for name in inside if name.endswith(".dsk")]
        for name in inside:
            if (base / name).is_dir():
                found += [f"{name}/{entry}" for entry in sorted(os.listdir(base / name)) if entry.endswith(".dsk")]
    except OSError:  # nothing to offer, and a shell is no place for errors
        return []
    before = incomplete[: len(incomplete) - len(begun)]
    return _items((f"{before}{name}" for name in found), incomplete)


def _defined(names: Callable[[Program], Iterable[str]]) -> Completer:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dskc.dsl.diagnostics import DiagnosticError, Diagnostics
        from dskc.dsl.source import read_source

        from ..passes.resolve import resolve

        # Behind an option without its value click has read nothing yet, and the words are as they came.
        specs = [ctx.params.get("spec"), *(word for word in ctx.args if word.endswith(".dsk"))]
        spec = next((Path(word) for word in specs if word is not None), None)
        if spec is None:
            return []
        try:
            program = resolve(read_source(spec), spec, Diagnostics())
        except DiagnosticError:
            return []
        return _items(names(program), incomplete)

    return complete


def _passes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ..pipeline import PASS_NAMES

    return _items(PASS_NAMES, incomplete)


def _codes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from dskc.dsl.codes import CODES

    return _items(sorted(CODES), incomplete.upper())


MODEL = _defined(lambda program: program.models)
TRAIN = _defined(lambda program: program.trains)
PASS: Completer = _passes
CODE: Completer = _codes
