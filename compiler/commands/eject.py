"""`dskc eject`: a generated class as code of the user's own."""

from __future__ import annotations

from pathlib import Path

import click

from .shared import SPEC, diagnosed, fail, report, require_sound


@click.command(name="eject")
@click.argument("block")
@click.argument("spec", type=SPEC)
@click.option("--module", metavar="NAME", help="of the Python file to write, instead of SPEC_BLOCK")
def eject_command(block: str, spec: Path, module: str | None) -> None:
    """Move a block's class into code of your own, and point the spec at it: dskc eject swiglu specs/mine.dsk.

    Writes the class into a module beside the spec, and makes the block an extern one there. Weights keep their names,
    results stay what they were.
    """
    from ..eject.edit import EjectError
    from ..eject.eject import EjectProblems, eject
    from ..report import write_new, write_text

    require_sound(spec)
    try:
        with diagnosed():
            found = eject(spec, block, module)
    except EjectError as error:
        fail(str(error), error.way_out)
    except EjectProblems as error:
        report(error.problems, "text", "")
        counted = any(problem.code == "DSK0150" for problem in error.problems)
        fail(
            f"`{block}` cannot be ejected: with its class in code of your own the spec has the problems above",
            "what it holds is then not counted in `params`: take the requirement out first"
            if counted
            else "code of your own is called with its tensor, and is given sizes, numbers and nothing else",
        )
    try:
        write_new(found.module, found.module_text)
    except OSError as error:
        fail(f"{found.module} cannot be written: {error.strerror or error}", "make the folder writable")
    try:
        write_text(spec, found.spec_text)
    except OSError as error:
        found.module.unlink()
        fail(f"{spec} cannot be written: {error.strerror or error}", "make it writable; nothing was changed")
    click.echo(f"wrote {found.module}: class {found.class_name}")
    click.echo(f"changed {spec}: `{block}` is extern")
    if found.maps:
        click.echo(f"note: `weights {', '.join(found.maps)}` does not reach into it: dskc import leaves it out")
    click.echo("next, with the module's folder on Python's path:")
    click.echo(f"  export PYTHONPATH={found.module.parent}")
    click.echo(f"  dskc compile {spec}")
