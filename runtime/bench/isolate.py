"""Cases measured in another process: one that crashes, hangs or breaks the GPU costs itself, and the next goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from ..problem import Problem
from .case import Case, Source
from .report import Machine, Row, Timed
from .worker import BUILDING, Begun, Done, Missing, Request, serve

TIMEOUT = 240.0  # seconds that one may take for a case, compiling and trying its ways included
STARTING = 120.0  # seconds that a process may take to start and to measure the ceilings


class Worker:
    """A process that measures, and how to talk to it. at: at whom of a case it is. starting: nothing was said yet."""

    def __init__(self, ceilings_first: bool = False) -> None:
        context = get_context("spawn")  # a forked process cannot use the GPU
        ours, theirs = context.Pipe()
        self.connection: Connection = ours
        self.process: BaseProcess = context.Process(target=serve, args=(theirs, ceilings_first))
        self.process.start()
        theirs.close()
        self.at = BUILDING
        self.starting = True

    def ask(self, request: Request) -> None:
        self.at = BUILDING
        self.connection.send(request)

    def answer(self, seconds: float) -> object:
        """What it says next. Raises Lost where it says nothing for so long, once it has started, or is gone."""
        try:
            if not self.connection.poll(max(seconds, STARTING) if self.starting else seconds):
                raise Lost(f"nothing came of it within {seconds:.0f} s")
            self.starting = False
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            raise Lost(_end(self.process.exitcode)) from None

    def stop(self) -> None:
        """Ends it, whatever it is doing."""
        self.connection.close()
        self.process.join(0.5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(10)


class Lost(Exception):
    """A process that measures is of no more use; the message says why."""


class Isolated:
    """Measures cases in a process of its own, and in a new one after each that cannot go on. A context manager."""

    def __init__(self, seconds: float = TIMEOUT) -> None:
        self._seconds = seconds
        self._worker: Worker | None = None

    def __enter__(self) -> Isolated:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop()

    def about(self) -> tuple[Machine, Mapping[str, float]]:
        """The machine and its ceilings. Raises Problem where even these cannot be measured."""
        self._stop()
        self._worker = Worker(ceilings_first=True)
        try:
            found = self._worker.answer(STARTING)
        except Lost as lost:
            self._stop()
            raise Problem(f"this GPU's rates of copying and of products cannot be measured: {lost}") from None
        assert isinstance(found, tuple)
        return found

    def measure(self, source: Source, case: Case) -> Row:
        """Everyone's times; who fails is missing with the reason, and so is everyone where building fails."""
        times: list[Timed] = []
        missing: dict[str, str] = {}
        while not self._go_on(source, case, times, missing):
            if BUILDING in missing:
                break
        return Row(case.kernel, case.shape, case.unit, case.ceiling, case.flops, case.bytes, tuple(times), missing)

    def _go_on(self, source: Source, case: Case, times: list[Timed], missing: dict[str, str]) -> bool:
        """Asks for those that are not there yet; whether all are, or else one more is missing."""
        worker = self._worker = self._worker or Worker()
        done = (*(t.name for t in times), *missing)
        try:
            worker.ask(Request(source, case.kernel, case.shape, done))
            while not isinstance(answer := worker.answer(self._seconds), Done):
                if isinstance(answer, Begun):
                    worker.at = answer.name
                elif isinstance(answer, Timed):
                    times.append(answer)
                else:
                    assert isinstance(answer, Missing)
                    missing[answer.name] = answer.reason
                    if not answer.sound:
                        self._stop()
                        return False
        except (Lost, OSError) as lost:
            missing[worker.at] = str(lost) if isinstance(lost, Lost) else "its process was gone"
            self._stop()
            return False
        return True

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


def warm(asked: Sequence[tuple[Source, Case]], processes: int, seconds: float = TIMEOUT) -> Iterator[Case]:
    """Compiles all ways and peers of cases in so many processes at once, and yields each case that is done.

    What is compiled stays in the caches of Triton and of torch.compile, where the processes that measure find it. What
    fails here fails there, and is told then.
    """
    left = list(reversed(asked))
    workers: dict[Worker, tuple[Case, float]] = {}
    try:
        while left or workers:
            while left and len(workers) < processes:
                _give(Worker(), left, workers)
            for worker, (case, began) in list(workers.items()):
                state = _drained(worker)
                if state == "busy" and time.monotonic() - began < seconds:
                    continue
                del workers[worker]
                yield case
                if state == "idle" and left:
                    _give(worker, left, workers)
                else:
                    worker.stop()
            wait([worker.connection for worker in workers], timeout=0.5)
    finally:
        for worker in workers:
            worker.stop()


def _give(worker: Worker, left: list[tuple[Source, Case]], workers: dict[Worker, tuple[Case, float]]) -> None:
    source, case = left.pop()
    workers[worker] = (case, time.monotonic())
    with suppress(OSError):  # it is gone, as is seen next
        worker.ask(Request(source, case.kernel, case.shape, timed=False))


def _drained(worker: Worker) -> str:
    """Takes in what a worker has said: whether it is "busy", "idle" or "gone"."""
    try:
        while worker.connection.poll():
            if isinstance(worker.connection.recv(), Done):
                return "idle"
    except (EOFError, OSError):
        return "gone"
    return "busy"


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"
