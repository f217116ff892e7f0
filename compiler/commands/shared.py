"""What the commands share: arguments, and how each ends when there is a problem."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from dskc.dsl.diagnostics import Diagnostics

    from ..compile import Output
    from ..ir import Graph
    from ..pipeline import Compiled


class SpecPath(click.Path):
    """A spec's path. A shell completes it with the specs of a folder and of those in it."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from .complete import spec_paths

        return spec_paths(incomplete)


SPEC = SpecPath(path_type=Path)
settings_option = click.option(
    "--set", "settings", multiple=True, metavar="PATH=VALUE", help="override, as in dims.D=512"
)


def checked(path: Path, settings: tuple[str, ...]) -> Compiled:
    """A spec without errors; ends the command where it has some."""
    from ..pipeline import check as run

    with diagnosed():
        found = run(path, settings)
    stop_on(found.problems)
    return found


def compiled(path: Path, out: Path | None, settings: tuple[str, ...]) -> tuple[Compiled, list[Output]]:
    """A spec without errors and the folders that belong to it; ends the command where it has some."""
    from ..compile import compile_spec

    with diagnosed():
        found, outputs = compile_spec(path, out, settings)
    stop_on(found.problems)
    return found, outputs


def require_sound(path: Path, settings: tuple[str, ...] = ()) -> None:
    """Ends the command where `dskc check` would report an error, in checkpoint maps too."""
    from ..report import read_all

    stop_on(read_all(path, settings))


def chosen(found: Compiled, name: str | None, path: Path) -> list[Graph]:
    """The graphs of the models that a file defines, or of the one called `name`; ends the command without any."""
    from dskc.dsl.suggest import did_you_mean

    models = list(found.program.models)
    if not models:
        fail(f"{path} defines no model", "a model is written `model NAME(tokens: ids[B, S]) -> ... { ... }`")
    if name is None:
        return [found.graphs[model] for model in models]
    if name not in models:
        near = did_you_mean(name, models)
        way_out = f"did you mean `{near}`?" if near else f"it can be {', '.join(models)}"
        fail(f"{path} defines no model `{name}`", way_out)
    return [found.graphs[name]]


def stop_on(problems: Diagnostics) -> None:
    if problems.has_errors:
        report(problems, "text", "")
        sys.exit(1)


def report(problems: Diagnostics, style: str, otherwise: str) -> None:
    """Prints problems as `style` says; `otherwise` where there are none."""
    if style == "text" and not len(problems):
        if otherwise:
            click.echo(otherwise)
        return
    from dskc.dsl.render import render, to_github, to_json

    if style == "json":
        click.echo(to_json(problems))
    elif style == "github":
        click.echo(to_github(problems), nl=False)
    else:
        click.echo(render(problems, color=sys.stderr.isatty()), err=True)
        count = len(problems)
        click.echo(f"\n{count} problem{'s' * (count != 1)}", err=True)


@contextmanager
def diagnosed() -> Iterator[None]:
    """Ends with the drawing of a problem that stopped everything, such as a file that cannot be read."""
    from dskc.dsl.diagnostics import DiagnosticError, Diagnostics

    try:
        yield
    except DiagnosticError as error:
        report(Diagnostics(error.diagnostics), "text", "")
        sys.exit(1)


@contextmanager
def runtime_problems() -> Iterator[None]:
    """Ends with the text of a problem of the runtime's, without a traceback."""
    from ..launch import runtime_problem

    try:
        yield
    except runtime_problem() as error:
        fail(str(error))  # which ends with the way out


def fail(message: str, help_: str | None = None) -> NoReturn:
    """Ends the command with a message and the way out."""
    click.echo(f"error: {message}", err=True)
    if help_:
        click.echo(f"help: {help_}", err=True)
    sys.exit(1)
