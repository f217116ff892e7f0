"""The process that measures: cases that it is asked for, one after another, everyone of a case in turns.

A GPU that was busy for a second is slower than one that has rested, by more than what is compared here. So everyone of
a case first runs once, where ours tries its ways and peers compile, and then all take turns.

What breaks a process's access to the GPU (an illegal address, say) breaks it for good. Therefore all measuring is done
here, and the process that asks (`isolate.py`) starts another one and goes on.
"""

from __future__ import annotations

import gc
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ..kernels.timing import gpu_times
from ..kernels.tuning import compiling, tuning
from .case import OURS, Case, Run, Source
from .report import Machine, Timed

SECONDS = 0.25  # of timed runs, at least, over all turns
FEWEST, MOST = 9, 99  # of them, over all turns
TURNS = 3
BUILDING = "all"  # in the place of a name: what all of a case need


@dataclass(frozen=True)
class Request:
    """A case by its source, kernel and shape. without: names that are not to be run. timed: else only compiled."""

    source: Source
    kernel: str
    shape: str
    without: tuple[str, ...] = ()
    timed: bool = True


@dataclass(frozen=True)
class Begun:
    """From here on it is this one that is at work."""

    name: str


@dataclass(frozen=True)
class Missing:
    """This one cannot. sound: whether the process can go on."""

    name: str
    reason: str
    sound: bool = True


@dataclass(frozen=True)
class Done:
    """All of a request is answered."""


Answer = Begun | Timed | Missing | Done


def serve(connection: Connection, ceilings_first: bool) -> None:
    """Answers requests until the other end closes; before them, where asked, tells the machine and its ceilings."""
    try:
        if ceilings_first:
            connection.send((machine(), ceilings()))
        while True:
            request: Request = connection.recv()
            if not _answer(request, connection.send):
                return
            _free()
            connection.send(Done())
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _answer(request: Request, tell: Callable[[Answer], None]) -> bool:
    """Measures everyone of a case; whether this process can go on."""
    torch.manual_seed(0)
    torch._dynamo.reset()  # which compiles one function for so many shapes, and then no more
    tell(Begun(BUILDING))
    try:
        case = _cases(request.source)[request.kernel, request.shape]
        runs = dict(case.build())
    except Exception as error:
        runs = {}
        tell(Missing(BUILDING, _reason(error), _is_sound()))
        if not _is_sound():
            return False
    ready: dict[str, Run] = {}
    for name, run in runs.items():
        if name in request.without:
            continue
        with _told(name, tell) as failure:
            with _trying(name, request.timed):
                run()
            ready[name] = run
        if failure.unsound:
            return False
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(TURNS if request.timed else 0):
        for name in list(times):
            with _told(name, tell) as failure:
                times[name] += gpu_times(ready[name], FEWEST // TURNS, MOST // TURNS, SECONDS / TURNS)
            if failure.unsound:
                return False
            if failure.failed:
                del times[name]
    for name in times if request.timed else ():
        with _told(name, tell) as failure:
            tell(_timed(case, name, times[name], ready[name]))
        if failure.unsound:
            return False
    return True


@dataclass
class Failure:
    """Of one at work: whether it failed, and whether this process can then not go on."""

    failed: bool = False
    unsound: bool = False


@contextmanager
def _told(name: str, tell: Callable[[Answer], None]) -> Iterator[Failure]:
    """Who is at work, and what comes of it where it fails."""
    tell(Begun(name))
    failure = Failure()
    try:
        yield failure
    except Exception as error:
        sound = _is_sound()
        failure.failed, failure.unsound = True, not sound
        tell(Missing(name, _reason(error), sound))


def _free() -> None:
    """Gives back what a case held: others may be at work on the same GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@cache
def _cases(source: Source) -> dict[tuple[str, str], Case]:
    return {(case.kernel, case.shape): case for case in source.cases()}


def _timed(case: Case, name: str, times: Sequence[float], run: Run) -> Timed:
    median, low, high = spread(times)
    work = case.flops / 1e9 if case.unit == "TFLOP/s" else case.bytes / 1e6
    return Timed(name, round(median, 5), round(low, 5), round(high, 5), round(work / median, 1), round(_beside(run), 3))


def _beside(run: Run) -> float:
    """GiB at the peak of one more run beyond what is there before it, which are the results of the last one too."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _trying(name: str, timed: bool) -> AbstractContextManager[None]:
    """Of ours every way is tried, or only compiled; a peer chooses and compiles what it does."""
    if not name.startswith(OURS):
        return nullcontext()
    return tuning(lambda timing: None) if timed else compiling(lambda timing: None)


def _is_sound() -> bool:
    """Whether this process can still use the GPU, and its generator of random numbers."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return bool(torch.rand(2, device="cuda").isfinite().all())
    except Exception:
        return False


def milliseconds(run: Run) -> float:
    """The median on the GPU."""
    return spread(gpu_times(run, FEWEST, MOST, SECONDS))[0]


def spread(times: Sequence[float]) -> tuple[float, float, float]:
    """Median, tenth and ninetieth percentile."""
    tenths = statistics.quantiles(times, n=10)
    return statistics.median(times), tenths[0], tenths[-1]


def ceilings() -> dict[str, float]:
    """What this GPU does at most: GB/s of a copy (read and written), TFLOP/s of products in each dtype (8192³)."""
    if not torch.cuda.is_available():
        return {}
    found: dict[str, float] = {"copy": _copy_rate()}
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    work = 2 * size**3 / 1e9
    found["bf16"] = work / milliseconds(lambda: a @ b)
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device="cuda")
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        found["fp8"] = work / milliseconds(lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16))
    i8, j8 = (torch.randint(-127, 127, (size, size), device="cuda", dtype=torch.int8) for _ in range(2))
    found["int8"] = work / milliseconds(lambda: torch._int_mm(i8, j8.t()))
    return {name: round(rate, 1) for name, rate in found.items()}


def _copy_rate() -> float:
    x = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 4 * x.numel() / milliseconds(lambda: y.copy_(x)) / 1e6


def machine() -> Machine:
    """This one, as a report has it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    versions = {name: _version(name) for name in ("torch", "triton")} | {"python": platform.python_version()}
    return Machine(gpu, versions, _commit())


def _version(name: str) -> str:
    return str(getattr(import_module(name), "__version__", "?"))


def _commit() -> str | None:
    asked: Sequence[str] = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
