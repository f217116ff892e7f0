"""What the tests of commands share: a folder to run them in, and the command as users call it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dskc.compiler.cli import main

ROOT = Path(__file__).resolve().parents[3]
Dskc = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped specs, in the current folder."""
    shutil.copytree(ROOT / "specs", tmp_path / "specs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def dskc(project: Path) -> Dskc:
    """Runs `dskc` with arguments; an exception of Python's is never an answer."""

    def run(*arguments: str, exit_code: int | None = 0) -> Result:
        result = CliRunner().invoke(main, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert exit_code is None or result.exit_code == exit_code, result.output
        return result

    return run


def names(folder: Path) -> set[str]:
    """Every file under a folder, to see that nothing was left there."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
