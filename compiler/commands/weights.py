"""`dskc import`: the weights of others."""

from __future__ import annotations

from pathlib import Path

import click

from .shared import SPEC, compiled, runtime_problems, settings_option


@click.command(name="import")
@click.argument("spec", type=SPEC)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="the folder to make")
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), help="to store weights in; as they are unless told")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="a tokenizer.json; the checkpoint's own unless told")
@settings_option
def import_command(
    spec: Path, checkpoint: Path, out: Path, dtype: str | None, tokenizer: Path | None, settings: tuple[str, ...]
) -> None:
    """Read the weights of others (safetensors or GGUF) by the spec's checkpoint map."""
    from ..launch import launch_import

    _, outputs = compiled(spec, None, settings)
    with runtime_problems():
        launch_import(outputs, checkpoint, out, dtype, tokenizer)
