"""A bar for what takes long before the first step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """Within, a bar on a terminal that what is given moves on by a number of units (of `B`, bytes); nothing elsewhere.

    It is gone at the end: the lines that stay are said by who uses it.
    """
    if not sys.stdout.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    count = DownloadColumn() if unit == "B" else MofNCompleteColumn()
    with Progress(TextColumn(what), BarColumn(), count, TextColumn(unit * (unit != "B")), TimeRemainingColumn(),
                  transient=True) as bar:  # fmt: skip
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)
