"""`dskc explain`: the page of a code in the terminal."""

from __future__ import annotations

import sys

import click

from dskc.dsl.explain import UnknownCode, find_code, list_codes, read_page, show_page


def explain(text: str) -> None:
    """Prints the page of the code that `text` spells. Ends with exit code 1, and every code, when it spells none."""
    try:
        page = read_page(find_code(text))
    except UnknownCode as error:
        click.echo(list_codes(), err=True)
        click.echo(f"\nerror: {error}", err=True)
        way_out = f"did you mean `{error.near}`?" if error.near else "those above are all there are"
        click.echo(f"help: {way_out}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"error: the page cannot be read: {error.strerror or error}", err=True)
        click.echo("help: install dskc again", err=True)
        sys.exit(1)
    click.echo(show_page(page, color=sys.stdout.isatty()))
