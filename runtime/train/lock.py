"""One process at a time trains in a run's folder; others can see whether one does."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..problem import Problem

FILE = "lock"  # in a run's folder; what counts is who has it locked, which ends with the process, however that ends


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Within, this process is the one that trains in this folder. Raises Problem when another one does."""
    with (run / FILE).open("a+", encoding="utf-8") as file:
        if not _lock(file.fileno()):
            raise _taken(run)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def require_free(run: Path) -> None:
    """Raises Problem when another process trains in this folder."""
    if is_running(run):
        raise _taken(run)


def is_running(run: Path) -> bool:
    """Whether another process trains in this folder."""
    try:
        with (run / FILE).open("r+", encoding="utf-8") as file:
            return not _lock(file.fileno())  # closing it gives it back
    except OSError:
        return False


def _lock(number: int) -> bool:
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # belongs to the process: it may train in turns
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _taken(run: Path) -> Problem:
    number = (run / FILE).read_text(encoding="utf-8").strip()
    return Problem(f"{run} is being trained by another process ({number})", "wait for it, or stop it with Ctrl-C there")
