"""`dskc tune`: which of several ways each operation of a model takes on this GPU."""

from __future__ import annotations

from pathlib import Path

import click

from .bench import COUNT
from .complete import MODEL
from .shared import SPEC, chosen, compiled, runtime_problems, settings_option


@click.command(name="tune")
@click.argument("spec", type=SPEC)
@click.option("--model", "name", shell_complete=MODEL, help="the model, when the spec defines several")
@click.option("--batch", type=COUNT, help="sequences of a forward pass, instead of the plan's")
@click.option("--length", "--seq", type=COUNT, help="tokens of a sequence, instead of the recipe's")
@click.option("--show", is_flag=True, help="run nothing; print what was chosen, on every GPU that it was tuned on")
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="add the choices to a file such as runtime/kernels/recorded/NVIDIA_H100_80GB_HBM3.json",
)
@settings_option
def tune_command(
    spec: Path,
    name: str | None,
    batch: int | None,
    length: int | None,
    show: bool,
    record: Path | None,
    settings: tuple[str, ...],
) -> None:
    """Time every way of each operation of a model, at its shapes, and keep the fastest for this GPU.

    Kept is it in the user's cache, from where every program takes it, and in tuned.json beside the generated code, to
    be read and committed. With --set nothing is written beside the code.
    """
    from ..launch import launch_tune, require_gpu, show_tuned
    from ..recipe import TrainRecipe

    found, outputs = compiled(spec, None, settings)
    graph = chosen(found, name, spec)[-1]
    output = next(output for output in outputs if output.model == graph.name)
    with runtime_problems():
        if show:
            show_tuned(output, record)
            return
        require_gpu()
        own: list[TrainRecipe] = [r for r in found.recipes.trains.values() if r.model == graph.name]
        optimizer = own[0].optimizer.name if own else "adamw"
        launch_tune(output, settings, optimizer, batch, length, record)
