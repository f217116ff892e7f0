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
@click.option("--no-config", is_flag=True, help="leave the checkpoint's config.json unread")
@settings_option
def import_command(
    spec: Path,
    checkpoint: Path,
    out: Path,
    dtype: str | None,
    tokenizer: Path | None,
    no_config: bool,
    settings: tuple[str, ...],
) -> None:
    """Read the weights of others (safetensors or GGUF) by the spec's checkpoint map.

    A config.json beside them must not contradict the spec.
    """
    from ..launch import launch_import

    found, outputs = compiled(spec, None, settings)
    with runtime_problems():
        launch_import(found.graphs[outputs[-1].model], outputs[-1], checkpoint, out, dtype, tokenizer, not no_config)
