"""A spec as it was at a git revision, with the files that it imports as they were then."""

from __future__ import annotations

import os
import posixpath
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostics
from dskc.dsl.parser import parse
from dskc.dsl.source import Source, read_source


class RevisionError(Exception):
    """A revision that cannot be read; its text says why, `way_out` what to do."""

    def __init__(self, message: str, way_out: str) -> None:
        super().__init__(message)
        self.way_out = way_out


@dataclass(frozen=True, slots=True)
class Revision:
    """A spec written out: `source` to check as if it stood at `path`."""

    source: Source
    path: Path


@contextmanager
def at_revision(spec: Path, revision: str) -> Iterator[Revision]:
    """Writes a spec and its imports of a revision into a folder of their own, for as long as they are needed.

    Raises RevisionError where git, the revision or a file is missing, and where an import lies outside the repository.
    """
    folder = spec.resolve().parent
    root = Path(_git(folder, "rev-parse", "--show-toplevel", way_out="name two files instead: dskc breaking OLD NEW"))
    way_out = "name a commit, a branch or a tag of this repository, such as HEAD or main"
    commit = _git(
        folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", way_out=way_out
    )
    name = spec.resolve().relative_to(root.resolve()).as_posix()
    with tempfile.TemporaryDirectory() as apart:
        base = Path(apart) / "repository"
        _write_out(root, commit, revision, name, base)
        path = base / name
        yield Revision(read_source(path, f"{revision}:{name}"), path)


def _write_out(root: Path, commit: str, revision: str, name: str, base: Path) -> None:
    """The file called `name` in the repository, then what it imports, each once."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        done = _run(root, "cat-file", "blob", f"{commit}:{name}")
        if done.returncode:
            if len(seen) == 1:
                way_out = f"where was it then? git log --follow -- {name}, and name the two files"
                raise RevisionError(f"{revision} has no file {name}", way_out)
            continue  # the import of it is reported in its place
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(done.stdout)
        waiting += _imports(path, name, revision)


def _imports(path: Path, name: str, revision: str) -> list[str]:
    found = []
    tree = parse(read_source(path, f"{revision}:{name}"), Diagnostics())
    for item in tree.items:
        if isinstance(item, s.Use) and isinstance(item.library, s.String):
            value = item.library.value
            wanted = posixpath.normpath(posixpath.join(posixpath.dirname(name), value))
            if PurePosixPath(value).is_absolute() or wanted.startswith("../"):
                way_out = "import it by a relative path within the repository, or name two files"
                place = f"{revision}:{name}:{item.library.span.line}"
                raise RevisionError(f'"{value}" ({place}) is outside the repository and has no revisions', way_out)
            found.append(wanted)
    return found


def _git(folder: Path, *arguments: str, way_out: str) -> str:
    """The answer of git, one line."""
    done = _run(folder, *arguments)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        said = (
            lines[0].removeprefix("fatal: ")
            if lines
            else f"there is no revision `{arguments[-1].removesuffix('^{commit}')}`"
        )
        raise RevisionError(said, way_out)
    return os.fsdecode(done.stdout).removesuffix("\n")


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise RevisionError("git is not installed", "install it, or name two files: dskc breaking OLD NEW") from None
