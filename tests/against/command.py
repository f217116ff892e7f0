"""The command `dskc` within this process, and what it must say of bad input."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from dskc.compiler.cli import main


def dskc(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *said: str) -> None:
    """It ended with an error for people that says this, before the first step and without a traceback."""
    assert isinstance(result.exception, SystemExit), f"{result.exception!r} escaped"
    assert result.exit_code == 1, result.output
    assert "error" in result.output and "Traceback" not in result.output and "step 1" not in result.output
    for text in said:
        assert text in result.output, result.output
