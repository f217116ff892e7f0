"""`dskc lock`: what it writes, what `--locked` notices and says, and locks that are no locks."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import dskc.compiler.lock as lock_module

from .conftest import ROOT, Dskc, names

GOLDEN = Path(__file__).parent / "golden"
NANO = "specs/deepseek_nano.dsk"


def test_golden(project: Path, dskc: Dskc, golden: Callable[[Path, str], None]) -> None:
    printed = dskc("lock", "specs/moe_nano.dsk", NANO).output
    text = (project / "specs" / "dskc.lock").read_text(encoding="utf-8")
    golden(GOLDEN / "lock.txt", printed + re.sub(r"sha256:\w+", "sha256:...", text))
    tomllib.loads(text)


def test_the_same_whatever_the_order_and_written_once(project: Path, dskc: Dskc) -> None:
    lock = project / "specs" / "dskc.lock"
    dskc("lock", "specs/moe_nano.dsk", NANO)
    together = lock.read_bytes()
    lock.unlink()
    dskc("lock", NANO)
    dskc("lock", "specs/moe_nano.dsk")
    assert lock.read_bytes() == together
    stamp = lock.stat().st_mtime_ns
    assert "unchanged" in dskc("lock", NANO).output
    assert lock.stat().st_mtime_ns == stamp


def test_an_import_is_hashed_as_it_stands(project: Path, dskc: Dskc) -> None:
    dskc("lock", NANO)
    read = tomllib.loads((project / "specs" / "dskc.lock").read_text())["specs"]["deepseek_nano.dsk"]
    digest = hashlib.sha256((project / "specs" / "deepseek_7b.dsk").read_bytes()).hexdigest()
    assert read["imports"] == {"deepseek_7b.dsk": f"sha256:{digest}"}


def test_what_has_changed_is_said(
    project: Path, dskc: Dskc, monkeypatch: pytest.MonkeyPatch, golden: Callable[[Path, str], None]
) -> None:
    (project / "specs" / "blocks.dsk").write_text("dsk 1\n\nblock f(x: [.., D]) -> [.., D] {\n  return silu(x)\n}\n")
    spec = project / NANO
    spec.write_text(spec.read_text().replace("dsk 1\n", 'dsk 1\n\nuse "blocks.dsk" { f }\n', 1))
    dskc("lock", NANO)
    for command in ("check", "compile"):
        dskc(command, "--locked", NANO)

    base = project / "specs" / "deepseek_7b.dsk"
    base.write_text(base.read_text().replace("dsk 1\n", "dsk 1\n\nuse std { mlp }\n", 1).replace("10_000", "20_000"))
    spec.write_text(spec.read_text().replace('use "blocks.dsk" { f }', "use std { moe }"))
    monkeypatch.setattr(lock_module, "__version__", "9.0.0")
    monkeypatch.setattr(lock_module, "_compiler_hash", lambda: f"sha256:{'0' * 64}")
    before = names(project)
    for command in ("check", "compile"):
        golden(GOLDEN / "locked.txt", dskc(command, "--locked", NANO, exit_code=1).output)
    assert names(project) == before  # compile wrote nothing anew
    dskc("lock", NANO)
    dskc("check", "--locked", NANO)


def test_the_spec_itself_may_change(project: Path, dskc: Dskc) -> None:
    dskc("lock", NANO)
    spec = project / NANO
    spec.write_text(spec.read_text().replace("repeat layers 4", "repeat layers 5"))
    dskc("check", "--locked", NANO)


def test_another_compiler_of_the_same_version(project: Path, dskc: Dskc, monkeypatch: pytest.MonkeyPatch) -> None:
    dskc("lock", NANO)
    monkeypatch.setattr(lock_module, "_compiler_hash", lambda: f"sha256:{'0' * 64}")
    said = dskc("check", "--locked", NANO, exit_code=1).output
    assert "the compiler has changed: still 0.1.0, but other code" in said


def test_mistakes_come_before_the_lock(project: Path, dskc: Dskc) -> None:
    dskc("lock", NANO)
    base = project / "specs" / "deepseek_7b.dsk"
    base.write_text(base.read_text().replace("swiglu(", "swigloo("))
    for command in ("check", "compile"):
        said = dskc(command, "--locked", NANO, exit_code=1).output
        assert "DSK0101" in said and "rest on" not in said


def test_no_lock_and_not_in_it(project: Path, dskc: Dskc) -> None:
    assert (
        f"there is no specs/dskc.lock\nhelp: write it with `dskc lock {NANO}`"
        in dskc("check", "--locked", NANO, exit_code=1).output
    )
    dskc("lock", "specs/moe_nano.dsk")
    said = dskc("compile", "--locked", NANO, exit_code=1).output
    assert f"specs/dskc.lock does not hold deepseek_nano.dsk\nhelp: add it with `dskc lock {NANO}`" in said
    assert not (project / "generated").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<<<<<<< HEAD\n", "cannot be read: invalid"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"version = 2\n", "cannot be read: it was written by a newer dskc"),
        (b"", "cannot be read: `version`: field required"),
        (b'version = "1"\n', "cannot be read: `version`: input should be 1"),
        (b"version = 1\nspec = 2\n", "`spec`: extra inputs are not permitted"),
        (b'version = 1\n[specs."a.dsk"]\n', "`specs.a.dsk.compiler`: field required"),
        (b'version = 1\n[specs."a.dsk"]\ncompiler = "0.1"\n', "`specs.a.dsk.compiler`: string should match"),
    ],
)
def test_locks_that_are_none(content: bytes, said: str, project: Path, dskc: Dskc) -> None:
    lock = project / "specs" / "dskc.lock"
    lock.write_bytes(content)
    for arguments in (("lock", NANO), ("check", "--locked", NANO), ("compile", "--locked", NANO)):
        output = dskc(*arguments, exit_code=1).output
        assert said in output.lower() and "put it back from version control, or delete it" in output
    assert lock.read_bytes() == content
    dskc("check", NANO)  # which does not look


def test_specs_with_mistakes_are_not_locked(project: Path, dskc: Dskc) -> None:
    (project / "specs" / "bad.dsk").write_text("dsk 1\n\nuse std { nothing }\n")
    before = names(project)
    assert "DSK0104" in dskc("lock", NANO, "specs/bad.dsk", exit_code=1).output
    assert "there is no file" in dskc("lock", "specs/absent.dsk", exit_code=1).output
    assert names(project) == before


def test_specs_that_are_gone_leave_the_lock(project: Path, dskc: Dskc) -> None:
    dskc("lock", "specs/moe_nano.dsk")
    (project / "specs" / "moe_nano.dsk").unlink()
    assert "locked deepseek_nano.dsk, dropped moe_nano.dsk" in dskc("lock", NANO).output


def test_odd_names_survive(project: Path, dskc: Dskc) -> None:
    odd = 'a "b" \\ é.dsk'
    (project / odd).write_text((project / "specs" / "moe_nano.dsk").read_text())
    dskc("lock", odd)
    dskc("check", "--locked", odd)


def test_a_check_loads_nothing_for_locks() -> None:
    program = (
        "import sys; from dskc.compiler.cli import main\n"
        "try: main(['check', 'specs/moe_nano.dsk'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'pydantic', 'tomllib', 'rich', 'torch', 'lark'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
