"""`dskc check`: every problem of specs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import click

from .lock import hold_to_lock, locked_option
from .shared import SPEC, report, settings_option


@click.command(name="check")
@click.argument("specs", nargs=-1, required=True, type=SPEC)
@click.option("--format", "style", type=click.Choice(["text", "json", "github"]), default="text", help="how to report")
@locked_option
@settings_option
def check_command(specs: tuple[Path, ...], style: str, locked: bool, settings: tuple[str, ...]) -> None:
    """Report every problem of the specs. Exit code 0 when there is none, else 1."""
    from dskc.dsl.diagnostics import Diagnostics

    from ..report import read_all

    problems = Diagnostics()
    gc.disable()  # looking for what is not in use any more would be a tenth of a check, in which nearly all is
    try:
        for path in specs:
            problems.extend(read_all(path, settings))
    finally:
        gc.enable()
    if locked and not problems.has_errors:
        hold_to_lock(specs)
    report(problems, style, f"{len(specs)} spec{'s' * (len(specs) != 1)} checked, no problems")
    sys.exit(1 if problems.has_errors else 0)
