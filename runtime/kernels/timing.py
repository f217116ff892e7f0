"""How long something takes on the GPU: launched while the GPU is kept waiting, so that launching does not count.

Nothing is recorded as a CUDA graph: what fails while it is recorded leaves torch's generator and its memory in a state
in which all that follows fails too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

FLUSHED = 256 << 20  # bytes written before each run, five times the cache
CLOCK = 2e9  # cycles a second that a GPU has at most, so that it never waits too short
LONGEST_WAIT = 0.02  # seconds: what takes longer to launch waits for the GPU itself


@dataclass(frozen=True, eq=False)
class Recorded:
    """A CUDA graph, and what it was recorded from.

    A graph holds addresses alone: what they belong to must not be freed as long as it is replayed, and each recording
    of another graph gives all memory back that nobody holds.
    """

    graph: torch.cuda.CUDAGraph
    held: object

    def __call__(self) -> None:
        self.graph.replay()


def gpu_times(run: Callable[[], object], fewest: int, most: int, seconds: float) -> list[float]:
    """Milliseconds of each of `fewest` to `most` runs, the cache emptied before each, until `seconds` are spent.

    The GPU waits until all of a run is launched. On a machine without one it is the clock's time. Raises what `run`
    raises.
    """
    run()
    if not torch.cuda.is_available():
        return _clocked(run, fewest, most, seconds)
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    launching = min(time.perf_counter() - began, LONGEST_WAIT)
    torch.cuda.synchronize()
    waits = int(CLOCK * (1.5 * launching + 3e-5))
    flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    times: list[float] = []
    while len(times) < fewest or (len(times) < most and sum(times) < seconds * 1e3):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        torch.cuda._sleep(waits)  # type: ignore[no-untyped-call]
        before.record()
        run()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return times


def _clocked(run: Callable[[], object], fewest: int, most: int, seconds: float) -> list[float]:
    times: list[float] = []
    while len(times) < fewest or (len(times) < most and sum(times) < seconds * 1e3):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return times
