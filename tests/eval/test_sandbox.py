"""Programs that must fail, and leave nothing behind."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dskc.runtime.eval import sandbox
from dskc.runtime.eval.sandbox import run_program, run_programs

SECONDS = 2.0
LINUX = sys.platform.startswith("linux") and platform.machine() in ("x86_64", "aarch64")
on_linux = pytest.mark.skipif(not LINUX, reason="seccomp and Landlock are Linux's")

RIGHT = {
    "an assertion that holds": "def f(x): return x + 1\nassert f(1) == 2",
    "much of the library": "import collections, decimal, functools, hashlib, itertools, math, random, re, string\n"
    "from typing import List\nassert hashlib.md5(b'1').hexdigest() and random.random() < 1 and math.pi",
    "threads": "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()",
    "much printed": "print('x' * 10**7)",
    "an empty environment": "import os\nassert set(os.environ) <= {'LC_CTYPE'}",
    "a folder of its own, with nothing in it": "import os\nassert os.listdir() == []",
}
WRONG = {
    "an assertion": ("assert 1 == 2", "AssertionError"),
    "bad syntax": ("def f(:", "SyntaxError"),
    "an infinite loop": ("while True: pass", "2 s"),
    "a long sleep": ("import time\ntime.sleep(1000)", "did not end"),
    "a loop that catches all": (
        "import time\nwhile True:\n    try: time.sleep(1000)\n    except BaseException: pass", "did not end"),
    "a memory bomb": ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
    "a fork bomb": ("import os\nwhile True:\n    try: os.fork()\n    except Exception: pass", "not allowed"),
    "a program": ("import subprocess\nsubprocess.run(['true'])", "not allowed"),
    "a shell": ("import os\nos.system('true')", "not allowed"),
    "a file of the home folder": ("open('@HOME@/secret').read()", "not allowed"),
    "such a file, hidden in an exception": ("try: open('@HOME@/secret').read()\nexcept Exception: pass", "not allowed"),
    "a link out of the folder": ("open('../' * 20 + '@HOME@/secret')", "not allowed"),
    "a list of the home folder": ("import os\ntry: os.listdir('@HOME@')\nexcept Exception: pass", "not allowed"),
    "the users": ("open('/etc/passwd')", "not allowed"),
    "writing outside": ("try: open('@HOME@/new', 'w').write('x')\nexcept Exception: pass", "not allowed"),
    "writing inside": ("try: open('new', 'w').write('x')\nexcept Exception: pass", "not allowed"),
    "making a folder": ("import os\ntry: os.mkdir('@HOME@/new')\nexcept Exception: pass", "not allowed"),
    "removing a file": ("import os\ntry: os.remove('@HOME@/secret')\nexcept Exception: pass", "not allowed"),
    "a connection": (
        "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept Exception: pass", "not allowed"),
    "a server": ("import socket\ntry: socket.socket()\nexcept Exception: pass", "not allowed"),
    "the evaluation's process": ("import os\ntry: os.kill(os.getppid(), 0)\nexcept Exception: pass", "not allowed"),
    "code of C": ("try:\n    import ctypes\n    ctypes.CDLL(None)\nexcept Exception: pass", "not allowed"),
    "a higher limit": (
        "import resource\ntry: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nexcept OSError: pass", "not allowed"),
    "an exit": ("import sys\nsys.exit(0)", "SystemExit"),
    "a hard exit": ("import os\nos._exit(0)", "left the interpreter"),
    "an exit that is caught": ("class A:\n    def __eq__(s, o): raise SystemExit(0)\nassert A() == 1", "SystemExit"),
    "an exit at the end": ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "AssertionError"),
    "an exit in a thread": (
        "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()\ntime.sleep(100)", "left"),
    "words to the evaluation": (
        "import os\nfor i in range(32):\n    try: os.write(i, b'passed')\n    except OSError: pass\nos._exit(0)",
        "passed"),
    "many words to the evaluation": (
        "import os\nwhile True:\n    for i in range(1, 32):\n        try: os.write(i, b'x' * 1000)\n"
        "        except OSError: pass", ""),
    "a crash": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f([x])\nf(0)", ""),
    "the standard input": ("input()", "EOFError"),
}  # fmt: skip


def processes() -> set[str]:
    """What runs of the sandbox: those whose command has its script."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if sandbox.CHILD.name.encode() in (folder / "cmdline").read_bytes():
                found.add(folder.name)
        except OSError:
            continue
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """No process, no file, and what was there is as it was."""
    folders = tmp_path_factory.mktemp("sandbox")
    monkeypatch.setattr("tempfile.tempdir", str(folders))
    yield
    assert not processes()
    assert not list(folders.iterdir())
    assert [path.name for path in home.iterdir()] == ["secret"]
    assert (home / "secret").read_text(encoding="utf-8") == "secret"


@pytest.mark.parametrize("name", RIGHT)
def test_programs_that_pass(name: str) -> None:
    verdict = run_program([RIGHT[name]], 10.0)
    assert verdict.passed, verdict.reason


@pytest.mark.parametrize("name", WRONG)
def test_programs_that_fail(name: str, home: Path) -> None:
    text, reason = WRONG[name]
    verdict = run_program([text.replace("@HOME@", str(home))], SECONDS)
    assert not verdict.passed
    assert reason in verdict.reason, verdict.reason


@on_linux
def test_what_the_hook_does_not_hear_of_is_stopped_too(home: Path) -> None:
    """A process by the function behind `subprocess`, and a pipe in the file system."""
    fork = "from multiprocessing import util\nutil.spawnv_passfds(b'/bin/true', [b'true'], [])"
    verdict = run_program([fork], SECONDS)
    assert not verdict.passed and "not allowed" in verdict.reason, verdict
    if landlock():
        verdict = run_program([f"import os\nos.mkfifo({str(home / 'new')!r})"], SECONDS)
        assert not verdict.passed and "PermissionError" in verdict.reason, verdict


def test_a_part_cannot_swallow_the_next() -> None:
    assert run_program(["x = 1\n", "assert x == 1"]).passed
    for end in ('"""', "'''", "(", "if False:\n", "\\"):
        verdict = run_program([f"x = 1\n{end}", "assert x == 2, '''\n'''"])
        assert not verdict.passed, end


def test_verdicts_come_in_order() -> None:
    found = list(run_programs([["import time; time.sleep(0.2)"], ["assert False"], ["pass"]]))
    assert [verdict.passed for verdict in found] == [True, False, True]


def alone(layer: str, program: str) -> subprocess.CompletedProcess[str]:
    """A program behind one layer, without the others."""
    text = f"import sys\nsys.path.append({str(sandbox.CHILD.parent)!r})\nimport sandbox_child as s\n{layer}\n{program}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", text], capture_output=True, text=True, timeout=60)


@on_linux
@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()", "import os; os.execv('/bin/true', ['true'])", "import os; os.system('true')",
        "import os; os.kill(os.getpid(), 0)", "s.LIBC.fork()", "s.LIBC.syscall(57 if s.MACHINES else 0)",
        "import socket; socket.socket()",
    ],
)  # fmt: skip
def test_the_system_is_closed_without_the_hook(program: str) -> None:
    if "57" in program and platform.machine() != "x86_64":
        pytest.skip("a number of x86-64")
    assert alone("s.close_system()", program).returncode == -signal.SIGSYS
    assert (
        alone("s.close_system()", "import threading; t = threading.Thread(target=int); t.start(); t.join()").returncode
        == 0
    )


def landlock() -> bool:
    return LINUX and "yes" in alone("", "print('yes' if s.LIBC.syscall(444, None, 0, 1) >= 1 else 'no')").stdout


@on_linux
def test_files_are_closed_without_the_hook(home: Path) -> None:
    if not landlock():
        pytest.skip("this kernel has no Landlock")
    readable = (
        "import os; readable = [os.path.dirname(os.__file__)]; s.LIBC.prctl(38, 1, 0, 0, 0); s.close_files(readable)"
    )
    assert alone(readable, "import json, random, colorsys").returncode == 0
    secret, new = str(home / "secret"), str(home / "new")
    for program in (
        f"open({secret!r})", f"open({new!r}, 'w')", f"os.listdir({str(home)!r})", f"os.remove({secret!r})",
        "open('/etc/passwd')",
    ):  # fmt: skip
        assert "PermissionError" in alone(readable, program).stderr, program


def test_limits_hold_without_the_rest(tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("written")
    bomb = alone("s.limit(5, 2**28, False)", "x = bytearray(2**29)")
    assert "MemoryError" in bomb.stderr
    full = alone("s.limit(5, 2**28, False)", f"open({str(tmp_path / 'new')!r}, 'wb', 0).write(b'x')")
    assert "File too large" in full.stderr
    assert alone("s.limit(1, 2**28, False)", "while True: pass").returncode == -signal.SIGXCPU


@on_linux
def test_it_ends_with_the_evaluation() -> None:
    """Killed without a chance to clean up, it takes its programs with it."""
    text = "from dskc.runtime.eval.sandbox import run_program\nrun_program(['import time; time.sleep(1000)'], 900)"
    evaluation = subprocess.Popen([sys.executable, "-c", text])
    try:
        wait_for(lambda: bool(processes()))
    finally:
        evaluation.kill()
        evaluation.wait()
    wait_for(lambda: not processes())


def wait_for(condition: object) -> None:
    assert callable(condition)
    gone = threading.Event()
    for _ in range(600):
        if condition():
            return
        gone.wait(0.1)
    raise AssertionError("it did not come true within a minute")
