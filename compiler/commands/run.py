"""`dskc train`, `dskc merge` and `dskc generate`: the commands that run a model."""

from __future__ import annotations

from pathlib import Path

import click

from .shared import SPEC, compiled, runtime_problems, settings_option


@click.command(name="train", context_settings={"ignore_unknown_options": True})
@click.argument("spec", type=SPEC)
@click.option("--recipe", metavar="NAME", help="which `train` section of the spec; the first unless told")
@settings_option
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def train_command(spec: Path, recipe: str | None, settings: tuple[str, ...], arguments: tuple[str, ...]) -> None:
    """Compile a spec and run its trainer: dskc train SPEC --data FOLDER --steps 300 --out RUN.

    The trainer's own flags: dskc train SPEC -- --help.
    """
    from ..launch import launch_trainer

    _, outputs = compiled(spec, None, settings)
    with runtime_problems():
        launch_trainer(outputs, settings, arguments, recipe)


@click.command(name="generate", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def generate_command(arguments: tuple[str, ...]) -> None:
    """Sample from a run: dskc generate RUN --prompt TEXT."""
    from ..launch import launch_generate

    with runtime_problems():
        launch_generate(arguments)


@click.command(name="merge")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the folder to make")
def merge_command(run: Path, out: Path) -> None:
    """Make a model of its own of a run that trained adapters: dskc merge RUN -o OUT."""
    from ..launch import launch_merge

    with runtime_problems():
        launch_merge(run, out)
    click.echo(f"merged: {out}")


@click.command(name="eval", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def eval_command(arguments: tuple[str, ...]) -> None:
    """Score a run, or compare two: dskc eval RUN --tasks FILE."""
    from ..launch import launch_eval

    with runtime_problems():
        launch_eval(arguments)
