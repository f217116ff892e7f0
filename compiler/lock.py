"""dskc.lock: what specs were last seen to rest on, by hash: the files they import, the library's, and the compiler.

One file for the specs of a folder, to be committed. An entry speaks of one spec alone: locking one leaves the others.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.source import read_source

from . import __version__
from .passes.resolve import resolve

NAME = "dskc.lock"
VERSION = 1
_HEAD = f"""\
# Written by dskc lock; dskc check --locked and dskc compile --locked hold specs to it. Commit it.
version = {VERSION}
"""


class LockError(Exception):
    """A lock that cannot be read; its text says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one spec rests on: hashes by the files' paths, those of imports relative to the lock."""

    compiler: str  # version and hash
    imports: dict[str, str] = field(default_factory=dict)
    library: dict[str, str] = field(default_factory=dict)


def lock_path(spec: Path) -> Path:
    return spec.parent / NAME


def entry_of(spec: Path) -> Entry:
    """What a spec rests on now. Raises DiagnosticError when it cannot be read."""
    sources = resolve(read_source(spec), spec, Diagnostics()).sources[1:]
    home = spec.resolve().parent
    imports = {
        Path(os.path.relpath(Path(source.path).resolve(), home)).as_posix(): _hash(source.text.encode())
        for source in sources
        if not source.library
    }
    library = {source.path: _hash(source.text.encode()) for source in sources if source.library}
    return Entry(f"{__version__} {_compiler_hash()}", imports, library)


def read_lock(path: Path) -> dict[str, Entry]:
    """The entries of a lock by the names of their specs. Raises FileNotFoundError, LockError."""
    from pydantic import ValidationError

    from .lock_file import LockFile

    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # of which the errors of TOML and of UTF-8 are kinds
        raise LockError(getattr(error, "strerror", None) or str(error)) from None
    if isinstance(content.get("version"), int) and content["version"] > VERSION:
        raise LockError("it was written by a newer dskc")
    try:
        file = LockFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise LockError(f"`{'.'.join(map(str, first['loc']))}`: {first['msg'].lower()}") from None
    return {name: Entry(part.compiler, part.imports, part.library) for name, part in file.specs.items()}


def lock_text(entries: dict[str, Entry]) -> str:
    """A lock as it is written: the same entries give the same bytes."""
    parts = [_HEAD]
    for name, entry in sorted(entries.items()):
        key = f"[specs.{_string(name)}"
        parts.append(f"\n{key}]\ncompiler = {_string(entry.compiler)}\n")
        for title, hashes in (("imports", entry.imports), ("library", entry.library)):
            if hashes:
                lines = (f"{_string(path)} = {_string(found)}\n" for path, found in sorted(hashes.items()))
                parts.append(f"\n{key}.{title}]\n{''.join(lines)}")
    return "".join(parts)


def changes(locked: Entry, now: Entry) -> list[str]:
    """What is not as it was locked, one line each."""
    found = [
        *_changes(locked.imports, now.imports, "an import"),
        *_changes(locked.library, now.library, "of the library"),
    ]
    if locked.compiler != now.compiler:
        before, after = (text.split(" ")[0] for text in (locked.compiler, now.compiler))
        versions = f"still {after}, but other code" if before == after else f"locked with {before}, this is {after}"
        found.append(f"the compiler has changed: {versions}")
    return found


def _changes(before: dict[str, str], after: dict[str, str], what: str) -> list[str]:
    found = []
    for path in sorted({*before, *after}):
        if path not in after:
            found.append(f"{path}, {what}, is no longer used")
        elif path not in before:
            found.append(f"{path}, {what}, was not used when it was locked")
        elif before[path] != after[path]:
            found.append(f"{path}, {what}, has changed")
    return found


def _hash(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _compiler_hash() -> str:
    """Of everything that decides what a spec means and becomes: not of the library, nor of what only prints."""
    rooms = [Path(__file__).resolve().parent, Path(__file__).resolve().parents[1] / "dsl"]
    digest = hashlib.sha256()
    for room in rooms:
        for path in sorted(room.rglob("*"), key=lambda path: path.relative_to(room).as_posix()):
            name = path.relative_to(room).as_posix()
            if path.suffix in (".py", ".lark", ".j2") and not name.startswith(("commands/", "std/", "cli.py")):
                digest.update(f"{room.name}/{name}\0".encode() + path.read_bytes() + b"\0")
    return f"sha256:{digest.hexdigest()}"


def _string(text: str) -> str:
    """A basic string of TOML."""
    shown = (f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else f"\\{c}" if c in '"\\' else c for c in text)
    return f'"{"".join(shown)}"'
