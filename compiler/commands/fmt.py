"""`dskc fmt`: the one canonical style."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .shared import SPEC, diagnosed


@click.command(name="fmt")
@click.argument("specs", nargs=-1, required=True, type=SPEC)
@click.option("--check", "only_check", is_flag=True, help="write nothing; fail when a file is not in the style")
def fmt_command(specs: tuple[Path, ...], only_check: bool) -> None:
    """Put specs into the one canonical style."""
    from dskc.dsl.format import format_source
    from dskc.dsl.source import read_source

    changed = 0
    for path in specs:
        with diagnosed():
            source = read_source(path)
            text = format_source(source)
        if text == path.read_text(encoding="utf-8"):
            continue
        changed += 1
        if only_check:
            click.echo(f"{path} is not formatted", err=True)
        else:
            from ..report import write_text

            write_text(path, text)
            click.echo(f"formatted {path}")
    sys.exit(1 if only_check and changed else 0)
