"""`dskc new`: a commented spec to start from."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from .shared import SPEC, fail

TEMPLATES = {
    "dense": "attention and a gated feed-forward",
    "moe": "a mixture of experts",
    "local": "layers that look back over a window, and few over all; tied embeddings",
    "block": "a block of one's own",
}
_FOLDER = Path(__file__).resolve().parents[1] / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@click.command(name="new")
@click.argument("name", type=SPEC)
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    default="dense",
    show_default=True,
    help="; ".join(f"{name}: {what}" for name, what in TEMPLATES.items()),
)
def new_command(name: Path, template: str) -> None:
    """Write a commented spec to start from: dskc new my_model, or dskc new specs/my_model.

    A file that is there is never overwritten.
    """
    from ..report import write_new

    path = name.with_name(f"{name.name}.dsk") if name.name and name.suffix != ".dsk" else name
    model = path.name.removesuffix(".dsk")
    _refuse_bad_name(model, path)
    text = re.sub(r"\bstarter\b", model, (_FOLDER / f"{template}.dsk").read_text(encoding="utf-8"))
    _refuse_taken_name(model, path, text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_new(path, text)
    except FileExistsError:
        what = "is there already" if os.path.lexists(path) else f"needs a folder, and {path.parent} is a file"
        fail(f"{path} {what}", "choose another name, or move it away: dskc new overwrites nothing")
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror or error}", "choose a folder that you may write to")
    click.echo(f"wrote {path}: {TEMPLATES[template]}")
    click.echo("next:")
    for line in (
        f"dskc check {path}",
        f"dskc shapes {path} --train small",
        f"dskc compile {path}",
        f"dskc train {path} --data FOLDER --steps 300 --out runs/{model}",
    ):
        click.echo(f"  {line}")


def _refuse_bad_name(model: str, path: Path) -> None:
    if _NAME.fullmatch(model) and len(model) <= 64:
        return
    spelled = re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", model).lower(), flags=re.ASCII)
    spelled = re.sub(r"^(?=\d)", "model_", spelled.strip("_"))[:64].rstrip("_")
    way_out = f"such as `dskc new {path.with_name(spelled)}`" if spelled else "such as `dskc new my_model`"
    fail(f"a model cannot be called `{model}`", f"small letters, digits and _, a letter first, 64 at most: {way_out}")


def _refuse_taken_name(model: str, path: Path, text: str) -> None:
    """Words of the language's and Python's, and names that the template itself uses."""
    from dskc.dsl.diagnostics import DiagnosticError, Diagnostics
    from dskc.dsl.source import Source

    from ..pipeline import check
    from ..reserved import result_problem

    problem = result_problem(model)
    if problem is None:
        try:
            found = check(path, source=Source(str(path), text)).problems
        except DiagnosticError as error:
            found = Diagnostics(error.diagnostics)
        if not found.has_errors:
            return
        problem = f"`{model}` has a meaning in the spec already"
    fail(f"a model cannot be called `{model}`: {problem}", f"such as `dskc new {path.with_name(f'my_{model}')}`")
