"""How a trainer ends: with an error for people, or because it was asked to."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..problem import Problem


def stop_on_problem(main: Callable[[], object]) -> None:
    """Run `main`; a Problem is printed as `error: ...` and `help: ...` on stderr, and the exit code is 1.

    Other errors pass with their tracebacks. An interrupt exits with 130, SIGTERM with 143, and a reader of the output
    that has gone with 141, as a shell would report them.
    """
    try:
        with _on_signal(signal.SIGTERM, lambda: sys.exit(128 + signal.SIGTERM)):
            main()
    except Problem as problem:
        print_problem(problem)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        hush()
        sys.exit(128 + signal.SIGPIPE)


def print_problem(problem: Problem) -> None:
    """`error: ...`, its notes and `help: ...`, on stderr."""
    lines = [f"error: {problem.message}", *getattr(problem, "__notes__", [])]
    if problem.help:
        lines.append(f"help: {problem.help}")
    sys.stdout.flush()
    print("\n".join(lines), file=sys.stderr)


def hush() -> None:
    """Send what is still to be printed nowhere: its reader has gone (see "Note on SIGPIPE" in Python's `signal`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Stop:
    """Remembers that the run was asked to stop: `signal` is the number of the signal, 0 while there was none."""

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, SIGINT and SIGTERM are remembered instead of obeyed; a second SIGINT interrupts at once."""
        with (
            _on_signal(signal.SIGTERM, lambda: self.ask(signal.SIGTERM)),
            _on_signal(signal.SIGINT, lambda: self.ask(signal.SIGINT)),
        ):
            yield

    def ask(self, number: int) -> None:
        """Stop at the end of this step."""
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def _on_signal(number: int, act: Callable[[], object]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only it may set handlers
        yield
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        act()

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)
