"""`dskc bench`: measurements on this machine's GPU."""

from __future__ import annotations

from pathlib import Path

import click

from .complete import MODEL
from .shared import SPEC, chosen, compiled, runtime_problems, settings_option

COUNT = click.IntRange(min=1, max=2**24)
PUBLISHED = Path(__file__).resolve().parents[1] / "templates" / "published.dsk"  # whose row programs are timed


@click.group(name="bench")
def bench_command() -> None:
    """Measure on this machine's GPU."""


@bench_command.command(name="kernels")
@click.argument("spec", type=SPEC, required=False)
@click.option("--model", "name", shell_complete=MODEL, help="the model, when the spec defines several")
@click.option(
    "--only", multiple=True, metavar="TEXT", help="cases with this in their kernel or shape; again for others"
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="folder for kernels.json and roofline.png"
)
@click.option("--batch", type=COUNT, help="sequences, instead of the plan's, or of what makes 16,384 tokens")
@click.option("--length", "--seq", type=COUNT, help="tokens of a sequence, instead of the recipe's")
@click.option("--warm", type=click.IntRange(min=0, max=256), default=0, help="compile in so many processes first")
@click.option("--warm-only", is_flag=True, help="compile, and measure nothing")
@click.option("--timeout", type=click.FloatRange(min=1), metavar="SECONDS", help="that one may take for a case [240]")
@settings_option
def kernels_command(
    spec: Path | None,
    name: str | None,
    only: tuple[str, ...],
    out: Path | None,
    batch: int | None,
    length: int | None,
    warm: int,
    warm_only: bool,
    timeout: float | None,
    settings: tuple[str, ...],
) -> None:
    """Time every kernel beside what could be called instead, and beside what this GPU reaches at most.

    With SPEC the kernels that its model uses, at its shapes; else all of them, at published shapes. A run is added to
    the ones in --out.
    """
    from ..launch import launch_bench, require_gpu

    if warm_only and not warm:
        raise click.UsageError("--warm-only needs --warm N")
    if spec is None and (name or settings):
        raise click.UsageError("--model and --set are of a spec, and none is given")
    with runtime_problems():
        require_gpu()
    found, outputs = compiled(spec or PUBLISHED, None, settings)
    graph = chosen(found, name, spec or PUBLISHED)[-1]
    output = next(output for output in outputs if output.model == graph.name)
    flags = [*(f"--only={text}" for text in only), *(["--warm-only"] if warm_only else [])]
    told = {"out": out, "batch": batch, "length": length, "warm": warm, "timeout": timeout}
    flags += [f"--{flag}={value}" for flag, value in told.items() if value is not None]
    with runtime_problems():
        launch_bench(output, "model" if spec else "rows", flags)
