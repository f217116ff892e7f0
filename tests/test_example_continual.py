"""The example on digits that come in two parts: held, a model keeps what it would else forget."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from dskc.compiler.cli import main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "continual"


def part(name: str) -> ModuleType:
    """A script of the example; another example has one of the same name."""
    found = importlib.util.spec_from_file_location(f"continual_{name}", EXAMPLE / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_what_was_learnt_first_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra `example`")
    monkeypatch.chdir(tmp_path)
    prepare, compare = part("prepare"), part("compare")
    prepare.main(tmp_path / "data")
    records = {part: tmp_path / "data" / part / "digits.safetensors" for part in prepare.PARTS}

    def train(part: str, out: str, *more: str) -> Path:
        spec = str(EXAMPLE / "digits.dsk")
        asked = ["train", spec, "--data", str(records[part]), "--out", out, "--device", "cpu", *more]
        result = CliRunner().invoke(main, asked, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return tmp_path / out

    first = train("first", "first")
    assert compare.accuracy(first, records["first"]) > 0.9
    second = [train("second", name, "--recipe", name, "--weights", "first") for name in ("plain", "held")]
    plain, held = ([compare.accuracy(run, records[part]) for part in ("first", "second")] for run in second)
    assert held[0] >= plain[0] + 0.2 and plain[1] > 0.7 and held[1] > 0.3, (plain, held)
