"""`dskc explain`: the page of a code in the terminal."""

from __future__ import annotations

import sys

import click

from .complete import CODE


@click.command(name="explain")
@click.argument("code", shell_complete=CODE)
def explain_command(code: str) -> None:
    """Say what a diagnostic means, why it is one, and how to put it right: dskc explain DSK0101."""
    from dskc.dsl.explain import UnknownCode, find_code, list_codes, read_page, show_page

    try:
        page = read_page(find_code(code))
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
