"""docs/tutorial-blocks.md as its reader would do it: in a folder of their own, outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from .test_docs import PAGES, blocks, dskc

PAGE = PAGES["tutorial-blocks.md"]
ATTENTION, ROUTER, MODEL = blocks(PAGE, "dsk")
CHECKED, ERROR = blocks(PAGE, "")
FORWARD, LOADING = blocks(PAGE, "python")
FORMAT, COMPILE, TRAIN = blocks(PAGE, "sh")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader is, with the files that the page has them write."""
    (tmp_path / "blocks.dsk").write_text(f"{ATTENTION}\n{ROUTER}", encoding="utf-8")
    (tmp_path / "mine.dsk").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_files_are_in_the_canonical_style_and_right(folder: Path) -> None:
    formatting, checking = (line.split()[1:] for line in FORMAT.splitlines())
    result = dskc(*formatting)
    assert (result.exit_code, result.output) == (0, "")
    result = dskc(*checking)
    assert (result.exit_code, result.output) == (0, CHECKED)


def test_its_mistake_is_reported_as_shown(folder: Path) -> None:
    wrong = next(part for part in PAGE.split("`") if part.startswith("gate = sigmoid"))
    text = (folder / "blocks.dsk").read_text(encoding="utf-8")
    right = "gate = sigmoid(linear(x, D -> [H, E]) as gate)"
    assert right in text
    (folder / "blocks.dsk").write_text(text.replace(right, wrong), encoding="utf-8")
    result = dskc("check", "mine.dsk")
    assert result.exit_code == 1
    assert ERROR.strip() in result.output


def test_its_model_is_written_as_shown_trains_and_samples(folder: Path) -> None:
    """As one command after another in a shell, on a smaller folder of text."""
    (folder / "text").mkdir()
    source = Path(sysconfig.get_paths()["stdlib"]) / "email"
    for name in ("header.py", "message.py", "charset.py"):
        (folder / "text" / name).write_bytes((source / name).read_bytes())
    assert "$DATA/email" in TRAIN
    commands = f"{COMPILE}\n{TRAIN.replace('$DATA/email', 'text')}"
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    script = "set -eu\n" + 'dskc() { "$PYTHON" -m dskc.compiler.cli "$@"; }\npython() { "$PYTHON" "$@"; }\n' + commands
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    model = (folder / "generated" / "mine" / "model.py").read_text(encoding="utf-8")
    assert FORWARD in model
    plan = (folder / "generated" / "mine" / "plan.json").read_text(encoding="utf-8")
    for name in ("gated_attention.gate", "sigmoid_moe.experts.up"):
        assert name in plan
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "torch.Size([8, 128])\n"), done.stderr
