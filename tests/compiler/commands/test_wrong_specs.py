"""Specs with mistakes: every command that reads one answers as `dskc check` does, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from dskc.compiler.pipeline import check

from ..wrong_specs import WRONG, Wrong
from .conftest import Dskc, names

GOOD = """\
dsk 1

use std { swiglu }

model m(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 32, D = 16 }
  x = embed(tokens, V -> D)
  x += swiglu(rms_norm(x), inner: D)
  logits = linear(x, D -> V)
}
"""
COMMANDS = (
    ("shapes", "wrong.dsk"),
    ("ir", "wrong.dsk"),
    ("lock", "wrong.dsk"),
    ("check", "wrong.dsk", "--locked"),
    ("compile", "wrong.dsk", "--locked"),
    ("breaking", "wrong.dsk", "good.dsk"),
    ("breaking", "good.dsk", "wrong.dsk"),
    ("eject", "swiglu", "wrong.dsk"),
)
NO_MAPS = frozenset({"shapes", "ir", "breaking"})  # these take no notice of checkpoint maps: no graph depends on them


@pytest.mark.parametrize("wrong", WRONG[::4], ids=lambda wrong: f"{wrong.code}-{wrong.underlined[:20]}")
def test_every_command_shows_the_mistake(wrong: Wrong, project: Path, dskc: Dskc) -> None:
    (project / "good.dsk").write_text(GOOD)
    (project / "wrong.dsk").write_text(wrong.text, encoding="utf-8")
    before = names(project)
    if dskc("check", "wrong.dsk", exit_code=None).exit_code == 0:
        return  # a warning
    in_maps = not check(Path("wrong.dsk")).problems.has_errors
    for command in COMMANDS:
        if in_maps and command[0] in NO_MAPS:
            continue
        result = dskc(*command, exit_code=1)
        assert f"[{wrong.code}]" in result.output, command
    assert names(project) == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"\0" * 9, b"x" * 1_000_001, b"dsk 1\n" + b"(" * 5000])
def test_files_that_are_no_specs(content: bytes, project: Path, dskc: Dskc) -> None:
    (project / "good.dsk").write_text(GOOD)
    (project / "wrong.dsk").write_bytes(content)
    before = names(project)
    for command in COMMANDS:
        assert "error" in dskc(*command, exit_code=1).output
    assert names(project) == before


def test_folders_and_files_that_are_not_there(project: Path, dskc: Dskc) -> None:
    (project / "good.dsk").write_text(GOOD)
    before = names(project)
    for command in COMMANDS:
        missing = tuple("specs/absent.dsk" if word == "wrong.dsk" else word for word in command)
        assert "there is no file `specs/absent.dsk`" in dskc(*missing, exit_code=1).output
        folder = tuple("specs" if word == "wrong.dsk" else word for word in command)
        assert "is a folder, not a spec file" in dskc(*folder, exit_code=1).output
    assert names(project) == before
