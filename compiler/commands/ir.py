"""`dskc ir`: the graph after a pass."""

from __future__ import annotations

from pathlib import Path

import click

from .complete import MODEL, PASS
from .shared import SPEC, checked, chosen, settings_option


def _known_pass(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    """The name of a pass, which are only looked up when the command runs."""
    from dskc.dsl.suggest import did_you_mean

    from ..pipeline import PASS_NAMES

    if value is None:
        return PASS_NAMES[-1]
    if value not in PASS_NAMES:
        near = did_you_mean(value, PASS_NAMES)
        way_out = f"did you mean `{near}`?" if near else f"it can be {', '.join(PASS_NAMES)}"
        raise click.BadParameter(f"there is no pass `{value}`: {way_out}")
    return value


@click.command(name="ir")
@click.argument("spec", type=SPEC)
@click.option(
    "--after",
    metavar="PASS",
    callback=_known_pass,
    shell_complete=PASS,
    help="stop behind it; the last one unless told",
)
@click.option("--model", "name", shell_complete=MODEL, help="the model, when the spec defines several")
@settings_option
def ir_command(spec: Path, after: str, name: str | None, settings: tuple[str, ...]) -> None:
    """Print the graph after a pass: expand, infer, precision, canonicalize and so on, in their order."""
    from ..pipeline import lower
    from ..print_ir import print_graph

    compiled = checked(spec, settings)
    click.echo("\n".join(print_graph(lower(graph, after)) for graph in chosen(compiled, name, spec)), nl=False)
