"""A run from its cases to what is kept of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dskc.runtime.bench.case import Source
from dskc.runtime.bench.plot import plot
from dskc.runtime.bench.report import read_reports
from dskc.runtime.bench.run import chosen_cases, measure


@pytest.mark.slow
def test_two_runs_and_their_picture(tmp_path: Path) -> None:
    asked = chosen_cases([Source("tests.bench.fake_cases")], ["smooth"])
    told = io.StringIO()
    first = measure(asked, tmp_path, Console(file=told))
    second = measure(asked, tmp_path, Console(file=told))
    assert read_reports(tmp_path / "kernels.json") == [first, second]
    assert first.machine == second.machine and first.rows != second.rows
    assert told.getvalue().count("smooth  s   ") == 2
    plot(second, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")
