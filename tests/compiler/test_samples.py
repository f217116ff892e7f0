"""`dskc check` as users see it: the three samples of the language's design, and what the command loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dskc.compiler.cli import main

ROOT = Path(__file__).resolve().parents[2]

HEADS = """\
error[DSK0204]: attention heads do not divide over the tensor-parallel axis
  --> specs/deepseek_7b.dsk:40:14
   |
39 |   mesh     { dp = 16, pp = 4, tp = 12 }
   |                               ------- 12 ranks
40 |   shard    { H -> tp, F -> tp, V -> tp, optimizer -> dp }
   |              ^^^^^^^ H = 32 leaves 8 over
   |
   = also: F = 11_008 leaves 4, V = 102_400 leaves 4
   = help: tp can be 1, 2, 4, 8, 16 or 32; with dp = 16 and pp = 4 only 8 gives 512
"""
NAME = """\
error[DSK0101]: no block is called `swigloo`
  --> specs/deepseek_7b.dsk:18:10
   |
18 |     x += swigloo(rms_norm(x), inner: F)
   |          ^^^^^^^ did you mean `swiglu`? It is in std, and already imported
"""
REQUIREMENT = """\
error[DSK0150]: this requirement does not hold
  --> specs/deepseek_7b.dsk:22:11
   |
22 |   require params == 6_910_365_696
   |           ------ is 6_707_982_336: 202_383_360 too few
   |
   = note: embed 419_430_400 + layers 29 x 202_383_360 + norm 4_096 + logits 419_430_400
   = help: one more of `layers` (line 16) gives the number exactly
"""


def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, *options: str) -> str:
    """What `dskc check specs/deepseek_7b.dsk` prints once `before` is written as `after`."""
    (tmp_path / "specs").mkdir()
    text = (ROOT / "specs" / "deepseek_7b.dsk").read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "specs" / "deepseek_7b.dsk").write_text(text.replace(before, after), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["check", "specs/deepseek_7b.dsk", *options])
    assert result.exit_code == 1
    return result.output


def test_a_misspelt_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(tmp_path, monkeypatch, "swiglu(rms", "swigloo(rms") == f"{NAME}\n1 problem\n"


def test_a_requirement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(tmp_path, monkeypatch, "repeat 30", "repeat 29") == f"{REQUIREMENT}\n1 problem\n"


def test_heads_over_the_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = checked(tmp_path, monkeypatch, "tp = 8 ", "tp = 12 ")
    assert HEADS in output
    ranks, _ = output.split(HEADS)
    assert "--> specs/deepseek_7b.dsk:39:" in ranks
    assert "16 × 4 × 12 is 768 and not 512" in ranks
    assert output.endswith("\n2 problems\n")


def test_as_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(checked(tmp_path, monkeypatch, "swiglu(rms", "swigloo(rms", "--format", "json"))
    (problem,) = found if isinstance(found, list) else found["diagnostics"]
    assert (problem["code"], problem["line"], problem["column"]) == ("DSK0101", 18, 10)


LOADED = """
import sys
from dskc.compiler.cli import main
try:
    main(["check", *sys.argv[1:]])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "pydantic", "rich", "jinja2", "lark", "numpy", "triton"} & set(sys.modules)
assert not heavy, heavy
assert not any(name.startswith("dskc.runtime") for name in sys.modules)
"""


def test_check_loads_neither_torch_nor_pydantic() -> None:
    specs = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "specs").glob("*.dsk"))]
    done = subprocess.run([sys.executable, "-c", LOADED, *specs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_grammar_has_no_conflict_and_its_tables_are_rebuilt_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    monkeypatch.setenv("DSKC_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "dskc.compiler.cli", "check", "specs/moe_nano.dsk"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout == "1 spec checked, no problems\n", done.stderr
    (kept,) = (tmp_path / "cache").glob("*.tables")
    kept.write_bytes(b"broken")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
