"""What is seen while questions are asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..train.progress import EVERY, duration


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Within, a bar on a terminal that what is given moves on; elsewhere a line now and then, all on standard error."""
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)


def _lines(what: str, total: int) -> Callable[[int], None]:
    start = last = time.monotonic()
    done = 0

    def advance(more: int) -> None:
        nonlocal done, last
        done += more
        now = time.monotonic()
        if now - last >= EVERY and done < total:
            last = now
            left = duration((now - start) / done * (total - done)) if done else "?"
            print(f"{what}: {done:,}/{total:,}, {left} left", file=sys.stderr, flush=True)

    return advance
