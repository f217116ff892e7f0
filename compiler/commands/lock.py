"""`dskc lock`, and what `--locked` does in other commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .shared import SPEC, diagnosed, fail, require_sound

if TYPE_CHECKING:
    from ..lock import Entry

locked_option = click.option("--locked", is_flag=True, help="fail when what a spec rests on is not as in dskc.lock")


@click.command(name="lock")
@click.argument("specs", nargs=-1, required=True, type=SPEC)
def lock_command(specs: tuple[Path, ...]) -> None:
    """Write down what specs rest on, by hash, in the dskc.lock beside them.

    These are the files they import, the library's, and the compiler. Commit the lock: dskc check --locked and
    dskc compile --locked fail when one of them is another.
    """
    from ..lock import entry_of, lock_path, lock_text
    from ..report import write_text

    locks: dict[Path, dict[str, Entry]] = {}
    for spec in specs:
        require_sound(spec)
        lock = lock_path(spec)
        if lock not in locks:
            locks[lock] = _read(lock, spec) or {}
        with diagnosed():
            locks[lock][spec.name] = entry_of(spec)
    for lock, entries in locks.items():
        gone = [name for name in entries if not (lock.parent / name).exists()]
        text = lock_text({name: entry for name, entry in entries.items() if name not in gone})
        if lock.exists() and lock.read_text(encoding="utf-8") == text:
            click.echo(f"{lock}: unchanged")
            continue
        try:
            write_text(lock, text)
        except OSError as error:
            fail(f"{lock} cannot be written: {error.strerror or error}", "choose a folder that you may write to")
        dropped = f", dropped {', '.join(gone)}" if gone else ""
        click.echo(f"{lock}: locked {', '.join(spec.name for spec in specs if lock_path(spec) == lock)}{dropped}")


def hold_to_lock(specs: tuple[Path, ...]) -> None:
    """Ends the command when one of these specs, which have no errors, rests on something else than it is locked to."""
    from ..lock import changes, entry_of, lock_path

    found = []
    for spec in specs:
        lock = lock_path(spec)
        entries = _read(lock, spec)
        if entries is None:
            fail(f"there is no {lock}", f"write it with `dskc lock {spec}`, and commit it")
        if spec.name not in entries:
            fail(f"{lock} does not hold {spec.name}", f"add it with `dskc lock {spec}`")
        with diagnosed():
            different = changes(entries[spec.name], entry_of(spec))
        if different:
            found.append((spec, different))
    for spec, different in found:
        click.echo(f"error: {spec} does not rest on what {lock_path(spec)} says", err=True)
        for line in different:
            click.echo(f"  {line}", err=True)
    if found:
        names = " ".join(str(spec) for spec, _ in found)
        click.echo(f"help: put back what has changed, or accept it with `dskc lock {names}`", err=True)
        raise SystemExit(1)


def _read(lock: Path, spec: Path) -> dict[str, Entry] | None:
    from ..lock import LockError, read_lock

    try:
        return read_lock(lock)
    except FileNotFoundError:
        return None
    except LockError as error:
        fail(
            f"{lock} cannot be read: {error}", f"put it back from version control, or delete it and `dskc lock {spec}`"
        )
