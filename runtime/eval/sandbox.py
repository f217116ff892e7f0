"""Programs that a model wrote, run where they can do no harm; Linux has the means for most of it.

What keeps a program in is told in docs/evaluation.md, and done by `sandbox_child.py`, a script of its own in a new,
isolated interpreter. Here it is started, watched and stopped.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CHILD = Path(__file__).with_name("sandbox_child.py")
MEMORY = 512 * 2**20  # bytes of address space
REPORT = 4096  # bytes that are read of what a program's interpreter says
START = 10.0  # seconds that the interpreter may take to start, on top of the program's own


@dataclass(frozen=True)
class Verdict:
    """passed: whether the program ran to its end. reason: why not, for people."""

    passed: bool
    reason: str = ""


def run_program(parts: Sequence[str], seconds: float = 10.0, memory: int = MEMORY) -> Verdict:
    """Whether Python code runs to its end without an exception, within `seconds` of time and of the CPU, and `memory`
    bytes of address space. The parts run one after another in one module; each is read by itself, so that a string
    that one leaves open cannot swallow the next.

    Only a program whose last line was reached has passed: leaving the interpreter in any other way is a failure. No
    process of it is left when this returns, nor any file.
    """
    word = secrets.token_hex(16)  # what the interpreter says at the end; the program never sees it before
    with tempfile.TemporaryDirectory(prefix="dskc-") as folder:
        read, write = os.pipe()
        command = [sys.executable, "-I", "-S", "-B", str(CHILD), str(write)]
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(write,), cwd=folder, env={}, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write)
        try:
            job = {"parts": list(parts), "seconds": seconds, "memory": memory, "word": word, "parent": os.getpid()}
            said = _converse(child, read, json.dumps(job).encode(), time.monotonic() + START, seconds)
        finally:
            os.close(read)
            _end(child)
    return _verdict(said, word, child.returncode, seconds)


def run_programs(programs: Sequence[Sequence[str]], seconds: float = 10.0, memory: int = MEMORY) -> Iterable[Verdict]:
    """The verdict of each, in order; several run at once where there are processors for them."""
    with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
        yield from pool.map(lambda parts: run_program(parts, seconds, memory), programs)


def _converse(child: subprocess.Popen[bytes], read: int, job: bytes, deadline: float, seconds: float) -> bytes:
    """Hands over the job, and returns what comes back until the child ends or its time does.

    The interpreter says `ready` before the program begins, from when on the program's own time counts.
    """
    assert child.stdin is not None
    with suppress(BrokenPipeError):
        child.stdin.write(job)
        child.stdin.close()
    said, ready = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(read, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and len(said) < REPORT:
            if not selector.select(left):
                break
            part = os.read(read, REPORT)
            if not part:
                return said  # its end of the pipe is closed: the child has ended, or is about to
            said += part
            if not ready and said.startswith(b"ready\n"):
                ready, deadline = True, time.monotonic() + seconds
    return said + b"\nlate"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kills the child with all of its session, once it had a moment to end by itself."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(0.2)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        child.kill()
    child.wait()


def _verdict(said: bytes, word: str, status: int, seconds: float) -> Verdict:
    text = said.decode(errors="replace").removeprefix("ready\n").strip()
    if text == word and status == 0:
        return Verdict(True)
    if text.endswith("late"):
        return Verdict(False, f"did not end within {seconds:g} s")
    if status == -signal.SIGXCPU:
        return Verdict(False, f"used the CPU for more than {seconds:g} s")
    if status == -signal.SIGSYS:
        return Verdict(False, "asked the system for something that is not allowed")
    if status < 0:
        return Verdict(False, f"was stopped by {signal.Signals(-status).name}")
    return Verdict(False, text.replace(word, "")[:300] or f"left the interpreter (status {status})")
