"""`dskc ir`: the graph after a pass."""

from __future__ import annotations

from pathlib import Path

import click

from .shared import SPEC, checked, fail, settings_option


@click.command(name="ir")
@click.argument("spec", type=SPEC)
@click.option("--after", default="canonicalize", help="the pass to stop behind: expand, infer, precision, canonicalize")
@click.option("--model", "name", help="the model, when the spec defines several")
@settings_option
def ir_command(spec: Path, after: str, name: str | None, settings: tuple[str, ...]) -> None:
    """Print the graph after a pass."""
    from ..pipeline import PASS_NAMES, lower
    from ..print_ir import print_graph

    if after not in PASS_NAMES:
        fail(f"there is no pass `{after}`", f"it can be {', '.join(PASS_NAMES)}")
    compiled = checked(spec, settings)
    for model, graph in compiled.graphs.items():
        if name in (None, model):
            click.echo(print_graph(lower(graph, after)))
