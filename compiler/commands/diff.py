"""`dskc diff`: where two models part."""

from __future__ import annotations

from pathlib import Path

import click

from .shared import runtime_problems


@click.command(name="diff")
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option("--with", "other", required=True, metavar="RUN|hf", help="another run, or the model of transformers")
@click.option("--hf", type=click.Path(path_type=Path, file_okay=False), help="folder of config.json, for --with hf")
@click.option("--checkpoint", default="last", metavar="last|best|N", help="of RUN (last)")
@click.option("--with-checkpoint", default="last", metavar="last|best|N", help="of the other run (last)")
@click.option("--gradients", is_flag=True, help="compare gradients of the next-token loss, too")
@click.option("--length", type=click.IntRange(2, 1 << 20), default=64, help="tokens of a sequence (64)")
@click.option("--sequences", type=click.IntRange(1, 1 << 16), default=2, help="how many (2)")
@click.option("--seed", type=click.IntRange(0), default=0, help="of the tokens, where RUN has no data held out (0)")
@click.option(
    "--tolerance", type=click.FloatRange(0), metavar="SHARE", help="of the norm; 0 between runs, 1e-4 with transformers"
)
@click.option("--json", "as_json", is_flag=True, help="every operation, for programs")
def diff_command(run: Path, other: str, **options: object) -> None:
    """Run two models on the same tokens, and name the first operation whose output differs.

    Exits with 1 where they differ.
    """
    from ..launch import launch_diff

    with runtime_problems():
        launch_diff(run, other, options)
