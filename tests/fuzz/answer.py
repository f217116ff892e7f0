"""What the compiler says of a mutation, and how well it says it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from types import FrameType

from dskc.compiler.report import read_all
from dskc.dsl.diagnostics import Diagnostic
from dskc.dsl.render import render, to_github, to_json

from .mutations import Mutation

LIMIT = 1.0  # seconds of this process's own time


@dataclass(frozen=True)
class Answer:
    """The problems found, in order, and the seconds it took."""

    mutation: Mutation
    found: tuple[Diagnostic, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{self.mutation}\n{render(self.found)}"

    @property
    def on_the_line(self) -> bool:
        """Whether the first problem shows the line that is wrong."""
        lines = {mark.span.line for mark in self.found[0].drawn_marks}
        return self.mutation.line in lines

    @property
    def suggests(self) -> bool:
        """Whether the first problem names the word as it was, or (where others have it right) as it is now."""
        first = self.found[0]
        said = [first.title, *(mark.label for mark in first.drawn_marks), *(text for _, text in first.notes)]
        return any(self.mutation.original in text or f"`{self.mutation.written}`?" in text for text in said)


def answer(mutation: Mutation, folder: Path) -> Answer:
    """Checks a mutation as `dskc check` does, with its neighbours in `folder`, and draws its problems in every form.

    Raises AssertionError, with the spec and how to make it again, on a traceback or after LIMIT.
    """
    path = folder / "mutated.dsk"
    path.write_bytes(mutation.data)
    start = process_time()
    try:
        with _limited(LIMIT):
            found = tuple(read_all(path))
            drawn = render(found)
            to_json(found), to_github(found)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{mutation}") from error
    assert all(problem.title in drawn or not problem.title.isprintable() for problem in found), mutation
    return Answer(mutation, found, process_time() - start)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError when what is inside computes for longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"over {seconds} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
