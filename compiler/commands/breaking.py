"""`dskc breaking`: what a change does to checkpoints that exist."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .complete import MODEL
from .shared import SPEC, checked, chosen, diagnosed, fail, stop_on

if TYPE_CHECKING:
    from ..ir import Graph
    from ..pipeline import Compiled


@click.command(name="breaking")
@click.argument("spec", metavar="OLD", type=SPEC)
@click.argument("new", metavar="[NEW]", required=False, type=SPEC)
@click.option("--against", metavar="REV", help="compare with the spec, and what it imports, at a git revision")
@click.option("--model", "name", shell_complete=MODEL, help="the model, when the specs define several")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", help="how to print")
def breaking_command(spec: Path, new: Path | None, against: str | None, name: str | None, style: str) -> None:
    """Tell what a change does to existing checkpoints: dskc breaking OLD NEW, or dskc breaking SPEC --against REV.

    Parameters that are renamed, reshaped, added or removed, and what changes results though all weights fit. Exit code
    1 when a checkpoint no longer loads or no longer gives what it gave, else 0.
    """
    from ..breaking.compare import compare
    from ..breaking.show import breaking_json, breaking_text

    if against is not None and new is not None:
        fail("two files and --against: it compares either", f"leave out --against {against}, or {new}")
    if against is None and new is None:
        fail("there is nothing to compare with", f"dskc breaking {spec} NEW, or dskc breaking {spec} --against HEAD")
    after = _graphs(checked(new or spec, ()), name, new or spec)
    before = _at(spec, against, name) if against is not None else _graphs(checked(spec, ()), name, spec)
    reports = compare(before, after)
    click.echo(breaking_json(reports) if style == "json" else breaking_text(reports))
    sys.exit(1 if any(report.breaks for report in reports) else 0)


def _graphs(compiled: Compiled, name: str | None, spec: Path) -> dict[str, Graph]:
    return {graph.name: graph for graph in chosen(compiled, name, spec)}


def _at(spec: Path, revision: str, name: str | None) -> dict[str, Graph]:
    from ..breaking.revision import RevisionError, at_revision
    from ..pipeline import check

    try:
        with diagnosed(), at_revision(spec, revision) as found:
            compiled = check(found.path, source=found.source)
            stop_on(compiled.problems)
            return _graphs(compiled, name, Path(found.source.path))
    except RevisionError as error:
        fail(str(error), error.way_out)
