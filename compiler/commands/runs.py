"""`dskc runs`: what was trained, and where several runs differ."""

from __future__ import annotations

from pathlib import Path

import click

from .shared import runtime_problems


@click.command(name="runs")
@click.argument("paths", nargs=-1, metavar="[FOLDER | RUN RUN...]", type=click.Path(path_type=Path, file_okay=False))
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="draw losses into a PNG")
@click.option("--json", "as_json", is_flag=True, help="for programs")
def runs_command(paths: tuple[Path, ...], plot: Path | None, as_json: bool) -> None:
    """List the runs below a folder (runs/ unless told), or compare several.

    Compared are the facts that differ, and losses at steps that all have.
    """
    from ..launch import launch_runs

    with runtime_problems():
        launch_runs(paths or (Path("runs"),), plot, as_json)
