"""Which checkpoints of a run are there: listed, seen to be whole, found again, and removed when there are too many.

checkpoints/step-00000100/   .metadata  __0_0.distcp  checkpoint.json
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..problem import Problem

FACTS = "checkpoint.json"
NAME = re.compile(r"step-(\d{8,})")
DAMAGED = ".damaged"  # ends the name of one that was set aside

Which = int | str | None  # a checkpoint by its step, "last" (as None) or "best"


@dataclass(frozen=True)
class Position:
    """Where training stood. step: optimizer steps done; sequences: taken from the data so far. loss_scale, good_steps:
    of fp16, as `LossScale` has them.
    """

    step: int
    sequences: int = 0
    seed: int = 0
    spec_hash: str = ""
    text: str = ""  # hash of the documents trained on
    loss_scale: float = 0.0
    good_steps: int = 0


@dataclass(frozen=True)
class Stored:
    """What checkpoint.json says. files: bytes of each; sha256: of each, empty in those that were written before there
    were any. held_out: loss on what is held out, None where it was not measured.
    """

    position: Position
    files: Mapping[str, int]
    sha256: Mapping[str, str] = field(default_factory=dict)
    held_out: float | None = None

    @classmethod
    def of(cls, folder: Path, position: Position, held_out: float | None) -> Stored:
        """Of the files in a folder. SHA-256, which the standard library has at 1 to 2 GB/s on a core with instructions
        for it (BLAKE2 is half as fast there), so about as fast as disks write; it can be checked by `sha256sum`, too.
        """
        files = sorted(file for file in folder.iterdir() if file.name != FACTS)
        return cls(
            position,
            {file.name: file.stat().st_size for file in files},
            {file.name: _digest(file) for file in files},
            held_out,
        )

    def write(self, folder: Path) -> None:
        fields = asdict(self)
        fields["sha256"] = dict(self.sha256) | {FACTS: _digest_of(fields)}
        (folder / FACTS).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if NAME.fullmatch(path.name)), key=step_of)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    match = NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def find_checkpoint(folder: Path, which: Which = None) -> tuple[Path, Position]:
    """One checkpoint, whose files are there in full length; their contents are not looked at.

    Raises Problem when there is none, and when it is damaged: then it says which others are not.
    """
    there = _require_some(folder)
    path = there[-1] if which in (None, "last") else _best(folder) if which == "best" else None
    if path is None:
        if not str(which).isdecimal():
            raise Problem(f"there is no checkpoint `{which}`", "it can be last, best or the number of its step")
        path = checkpoint_path(folder, int(str(which)))
    if path not in there:
        steps = ", ".join(str(step_of(each)) for each in there)
        raise Problem(f"{folder} holds no checkpoint of step {which}", f"there are those of steps {steps}")
    stored, reason = inspect(path)
    if stored is None:
        raise damaged(path, reason)
    return path, stored.position


def find_sound(folder: Path) -> tuple[Path, Position, dict[Path, str]]:
    """The last checkpoint whose contents are what was written, by their checksums: what a run goes on from. Third,
    later ones that are damaged, and how.

    Raises Problem when there is none.
    """
    wrong: dict[Path, str] = {}
    for path in reversed(_require_some(folder)):
        stored, reason = inspect(path, contents=True)
        if stored is not None:
            return path, stored.position, wrong
        wrong[path] = reason
    raise damaged(*next(iter(wrong.items())))


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it is none any more but can still be looked at."""
    to = path.with_name(path.name + DAMAGED)
    shutil.rmtree(to, ignore_errors=True)
    os.replace(path, to)
    return to


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints and the one with the least held-out loss."""
    best = _best(folder)
    for old in list_checkpoints(folder)[:-keep]:
        if old != best:
            shutil.rmtree(old)


def inspect(path: Path, contents: bool = False) -> tuple[Stored | None, str]:
    """What a checkpoint holds whose files are all there in full length (and, with `contents`, with the checksums that
    they were written with); else None and what is wrong.
    """
    try:
        stored = _read(path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        return None, f"{FACTS} cannot be read ({error})"
    if stored.position.step != step_of(path):
        return None, f"{FACTS} is of step {stored.position.step}"
    for name, size in stored.files.items():
        file = path / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            return None, f"{name} " + ("is missing" if found is None else f"has {found:,} bytes of {size:,}")
    if contents:
        for name, digest in stored.sha256.items():
            try:
                same = _digest(path / name) == digest
            except OSError as error:
                return None, f"{name} cannot be read ({error.strerror or error})"
            if not same:
                return None, f"{name} is not what was written: its SHA-256 is another"
    return stored, ""


def damaged(path: Path, reason: str) -> Problem:
    """The Problem of a damaged checkpoint that was asked for."""
    others = [each for each in list_checkpoints(path.parent) if each != path and inspect(each)[0] is not None]
    earlier = [each for each in others if step_of(each) < step_of(path)]
    if earlier:
        way = f"{earlier[-1].name} is whole: ask for it (--checkpoint {step_of(earlier[-1])})"
    else:
        way = "no earlier checkpoint of this run is whole: start again with another --out"
    return Problem(f"the checkpoint {path} is damaged: {reason}", way)


def _require_some(folder: Path) -> list[Path]:
    there = list_checkpoints(folder)
    if not there:
        raise Problem(
            f"{folder} holds no checkpoint: the run ended before its first save",
            "remove the folder and start again, or name another --out",
        )
    return there


def _best(folder: Path) -> Path | None:
    """The checkpoint with the least held-out loss, the earliest of equals; the last where none was measured."""
    there = list_checkpoints(folder)
    measured = [
        (stored.held_out, step_of(path), path)
        for path in there
        if (stored := inspect(path)[0]) is not None and stored.held_out is not None and math.isfinite(stored.held_out)
    ]
    return min(measured)[2] if measured else there[-1] if there else None


def _read(path: Path) -> Stored:
    fields = json.loads((path / FACTS).read_text(encoding="utf-8"))
    digests = fields.get("sha256", {})
    own = digests.pop(FACTS, None)
    if own is not None and own != _digest_of(fields):
        raise ValueError("it is not what was written")
    return Stored(Position(**fields["position"]), fields["files"], digests, fields.get("held_out"))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest_of(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
