"""How long something takes on the GPU: replayed as a CUDA graph, so that what launching it takes does not count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

FLUSHED = 256 << 20  # bytes written before each run, five times the cache


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

    What is recorded already is replayed, and what cannot be captured is run as it is. Raises what `run` raises.
    """
    torch.cuda.synchronize()
    with torch.cuda.stream(timing_stream()):
        for _ in range(2):
            run()
    torch.cuda.synchronize()
    replay = _captured(run)
    flush = torch.empty(FLUSHED, dtype=torch.int8, device="cuda")
    times: list[float] = []
    while len(times) < fewest or (len(times) < most and sum(times) < seconds * 1e3):
        flush.zero_()
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return times


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    if isinstance(run, Recorded):
        return run
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=timing_stream(), capture_error_mode="thread_local"):
            run()
    except Exception:  # it waits for the GPU
        torch.cuda.synchronize()
        return run
    return Recorded(graph, run)


@cache
def timing_stream() -> torch.cuda.Stream:
    """The one stream that is captured: what backward runs on is where forward ran."""
    return torch.cuda.Stream()
