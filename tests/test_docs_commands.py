"""docs/commands.md runs: its commands, one after another in one folder, print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from dskc.compiler.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Fence:
    language: str
    text: str
    follows: bool  # directly behind another


def fences() -> list[Fence]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```\n", PAGE, re.MULTILINE | re.DOTALL):
        found.append(Fence(match[1], match[2], PAGE[: match.start()].endswith("```\n\n")))
    return found


def git(*arguments: str) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *options, *arguments], env=environment, capture_output=True, check=True)


def run(lines: str) -> str:
    """What the commands of a block print."""
    output = ""
    for line in lines.splitlines():
        words = shlex.split(line)
        assert words[0] == "dskc", line
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == (1 if words[1] == "breaking" else 0), result.output
        output += result.output
    return output


def change(diff: str) -> None:
    """Each `-` line of the spec becomes the `+` line behind it."""
    spec = Path("my_model.dsk")
    text = spec.read_text(encoding="utf-8")
    lines = diff.splitlines()
    for before, after in zip(lines[::2], lines[1::2], strict=True):
        assert before[0] == "-" and after[0] == "+" and text.count(before[1:]) == 1, before
        text = text.replace(before[1:], after[1:])
    spec.write_text(text, encoding="utf-8")


def shown(text: str, output: str) -> bool:
    """Whether a block shows an output; a line `...` stands for any number of lines."""
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", text, flags=re.MULTILINE)]
    return re.fullmatch("(?:.*\n)*?".join(parts), output) is not None


def test_the_page_as_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    output, ran = "", 0
    for fence in fences():
        if fence.language == "sh":
            output = run(fence.text)
            ran += 1
        elif fence.language == "diff":
            git("add", ".")
            git("commit", "--quiet", "-m", "trained")
            change(fence.text)
        elif fence.language == "python":
            assert fence.text in Path("my_model_swiglu.py").read_text(encoding="utf-8")
        elif fence.follows:
            assert shown(fence.text, output), f"{output}\nis not what the page shows:\n{fence.text}"
        elif fence.text.startswith("error"):
            golden = ROOT / "tests" / "compiler" / "commands" / "golden" / "locked.txt"
            assert fence.text == golden.read_text(encoding="utf-8")
        else:
            assert fence.text in Path("my_model.dsk").read_text(encoding="utf-8")
    assert ran >= 7


def test_every_command_is_on_the_page() -> None:
    for name in COMMANDS:
        assert re.search(rf"`(dskc )?{name}\b|, `{name}`", PAGE), name
