"""`dskc compile`: the generated code of every model."""

from __future__ import annotations

from pathlib import Path

import click

from .lock import hold_to_lock, locked_option
from .shared import SPEC, compiled, fail, require_sound, settings_option


@click.command(name="compile")
@click.argument("specs", nargs=-1, required=True, type=SPEC)
@click.option("--check", "only_check", is_flag=True, help="write nothing; fail with a diff when what is there is stale")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="folder to write into, instead of generated/")
@click.option("--force", is_flag=True, help="overwrite files that were edited by hand")
@locked_option
@settings_option
def compile_command(
    specs: tuple[Path, ...], only_check: bool, out: Path | None, force: bool, locked: bool, settings: tuple[str, ...]
) -> None:
    """Generate the code of every model that the specs define."""
    from ..compile import EditedError, stale, write

    if locked:
        for path in specs:
            require_sound(path, settings)
        hold_to_lock(specs)
    failed = False
    for path in specs:
        _, outputs = compiled(path, out, settings)
        for output in outputs:
            if only_check:
                for text in stale(output):
                    failed = True
                    click.echo(text, err=True)
                continue
            try:
                changed = write(output, force)
            except EditedError as error:
                fail(f"{error} was edited by hand", "keep the change in a subclass, or overwrite it with --force")
            except OSError as error:
                fail(f"{output.folder}: {error.strerror or error}", "name another folder with --out")
            what = f"wrote {', '.join(changed)}" if changed else "unchanged"
            click.echo(f"{output.folder}: {what}")
    if failed:
        fail("generated code is not what the compiler writes now", "run dskc compile without --check")
