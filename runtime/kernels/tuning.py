"""Which of several ways to do an operation is taken: what was measured on this GPU, else what is recorded for GPUs of
its kind, else the first that can.

A call that has a choice goes through `run_best`. Within `tuning()` it first times every way on the tensors of the call,
so that running a model once tunes it, at the shapes that it has. What was measured is kept in the user's cache folder
by GPU and versions; `recorded/` holds what was measured on the GPUs that figures are published for.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from ..problem import Problem
from .timing import gpu_times

Key = tuple[int | str | bool | float | None, ...]
Result = TypeVar("Result")
RECORDED = Path(__file__).parent / "recorded"
ROUNDS, LONGEST = 20, 0.15  # timed runs of one way: as many, or as fit into so many seconds
CLOSE, AGAIN = 1.08, 3  # ways within so much of the best are timed again in turns, so often: a GPU slows with heat


class Unfit(Exception):
    """A way finds, once it is run, that it cannot take a call."""


@dataclass(frozen=True)
class Way:
    """One way to do an operation. `name` says it in full, tile and all: two ways of an operation differ in it."""

    name: str


@dataclass(frozen=True)
class Tile(Way):
    """A Triton kernel's block sizes by parameter name, warps of a program, and stages of its pipeline."""

    blocks: tuple[tuple[str, int], ...] = ()
    warps: int = 4
    stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """What a launch is given by name."""
        return {**dict(self.blocks), "num_warps": self.warps, "num_stages": self.stages}

    def __getitem__(self, block: str) -> int:
        for name, size in self.blocks:
            if name == block:
                return size
        raise KeyError(block)

    def __hash__(self) -> int:
        return hash(self.name)


def tile(warps: int, stages: int, **blocks: int) -> Tile:
    """`tile(4, 3, BLOCK_M=128, BLOCK_N=64)` is called `triton 128x64 w4 s3`."""
    return Tile(
        f"triton {'x'.join(map(str, blocks.values()))} w{warps} s{stages}", tuple(blocks.items()), warps, stages
    )


@dataclass(frozen=True)
class Timing:
    """What one way took: milliseconds, the median of its runs; None where it could not run, for `reason`."""

    operation: str
    key: Key
    way: str
    median: float | None
    reason: str = ""


@dataclass
class _State:
    chosen: dict[tuple[str, Key], str] = field(default_factory=dict)  # of this process
    failed: set[tuple[str, Key, str]] = field(default_factory=set)
    listener: Callable[[Timing], None] | None = None  # while tuning
    measured: set[tuple[str, Key]] = field(default_factory=set)  # by this `tuning()`
    timed: bool = True  # else ways are only run once, so that they are compiled


_state = _State()


def run_best(operation: str, key: Key, ways: Sequence[Way], run: Callable[[Way], Result]) -> Result:
    """`run(way)` of the best of `ways`, which are those that fit the call, the likeliest first.

    operation: "attention.forward". key: what the choice may depend on, shapes and dtype and options. A way that needs
    more shared memory or registers than there are is passed over, and remembered, and so is one that raises Unfit.
    Raises the last such error when none can run.
    """
    if _state.listener is not None and (operation, key) not in _state.measured and not _captured():
        _measure(operation, key, ways, run, _state.listener)
    usual = _state.chosen.get((operation, key))
    for way in ways:
        if way.name == usual:  # as in every call but the first
            try:
                return run(way)
            except Exception as error:
                if not _unfit(error):
                    raise
            break
    last: Exception | None = None
    for way in _in_order(operation, key, ways):
        try:
            made = run(way)
        except Exception as error:
            if not _unfit(error):
                raise
            last = error
            _state.failed.add((operation, key, way.name))
            continue
        _state.chosen[operation, key] = way.name
        return made
    raise last or Problem(f"no way of {operation} fits {key}")


def chosen(operation: str, key: Key, ways: Sequence[Way]) -> Way:
    """The way that `run_best` tries first."""
    return _in_order(operation, key, ways)[0]


@contextmanager
def tuning(listener: Callable[[Timing], None]) -> Iterator[None]:
    """Times every way of each operation called within, once for each key; each timing goes to `listener`."""
    with _trying(listener, timed=True):
        yield


@contextmanager
def compiling(listener: Callable[[Timing], None]) -> Iterator[None]:
    """Runs every way of each operation called within, once for each key, so that Triton keeps what it compiled.

    Nothing is timed or chosen: several processes may do it at once, before one of them is `tuning`.
    """
    with _trying(listener, timed=False):
        yield


@contextmanager
def _trying(listener: Callable[[Timing], None], timed: bool) -> Iterator[None]:
    assert _state.listener is None, "already tuning"
    _state.listener, _state.measured, _state.timed = listener, set(), timed
    try:
        yield
    finally:
        _state.listener, _state.timed = None, True


def measuring() -> bool:
    """Whether ways are timed now: what writes over what it reads must then be tried on something else first."""
    return _state.listener is not None


def known() -> dict[str, dict[str, str]]:
    """The way of each operation by its key's text, as kept for this GPU and recorded for its kind; none without one."""
    return {operation: dict(ways) for operation, ways in _known().items()}


def record(path: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    """Adds ways, by operation and key's text, to a file such as those in `recorded/`, whole or not at all."""
    _write(path, found)


def choices() -> dict[tuple[str, Key], str]:
    """What this process has chosen so far, by operation and key."""
    return dict(_state.chosen)


def forget() -> None:
    """Chooses anew from here on, from what is kept and recorded."""
    _state.chosen.clear()
    _state.failed.clear()
    _known.cache_clear()


# --- measuring


def _measure(
    operation: str, key: Key, ways: Sequence[Way], run: Callable[[Way], object], listener: Callable[[Timing], None]
) -> None:
    _state.measured.add((operation, key))
    timings: list[Timing] = []
    for way in ways:
        try:
            timing = Timing(operation, key, way.name, _milliseconds(partial(run, way)) if _state.timed else None)
            if not _state.timed:
                run(way)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            timing = Timing(operation, key, way.name, None, f"{type(error).__name__}: {reason}")
            _state.failed.add((operation, key, way.name))
            _require_sound(timing)
        timings.append(timing)
        listener(timing)
    ran = {t.way: t.median for t in timings if t.median is not None}
    if ran:
        best = _best_of(ran, {way.name: partial(run, way) for way in ways})
        _state.chosen[operation, key] = best
        _keep(operation, key, best)


def _best_of(ran: Mapping[str, float], runs: Mapping[str, Callable[[], object]]) -> str:
    """The fastest of ways by their first medians, after those that are close have taken turns."""
    fastest = min(ran.values())
    close = [way for way, median in ran.items() if median <= CLOSE * fastest]
    if len(close) == 1 or not torch.cuda.is_available():
        return min(ran, key=lambda way: ran[way])
    times: dict[str, list[float]] = {way: [] for way in close}
    for _ in range(AGAIN):
        for way in close:
            times[way] += gpu_times(runs[way], 3, ROUNDS, LONGEST)
    return min(close, key=lambda way: statistics.median(times[way]))


def _require_sound(timing: Timing) -> None:
    """Raises Problem where a way left the GPU unusable for this process, so that no other is blamed for it."""
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except Exception:
        raise Problem(
            f"{timing.operation} by `{timing.way}` broke this process's access to the GPU: {timing.reason}",
            "start again: what was chosen before is kept; please report the operation with its shape: "
            + key_text(timing.key),
        ) from None


def _captured() -> bool:
    """Whether this stream is recorded as a CUDA graph, in which nothing can be timed."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _milliseconds(run: Callable[[], object]) -> float:
    """The median of several runs on the GPU; on a CPU, of one by the clock."""
    if not torch.cuda.is_available():
        import time

        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) * 1e3
    return statistics.median(gpu_times(run, 3, ROUNDS, LONGEST))


def _unfit(error: Exception) -> bool:
    """Whether a way cannot: it says so, its kernel asked for more than a GPU of this kind has for one program, or is
    written for another version of Triton."""
    return isinstance(error, Unfit) or type(error).__name__ in ("OutOfResources", "PTXASError", "CompilationError")


# --- what is known


def _in_order(operation: str, key: Key, ways: Sequence[Way]) -> list[Way]:
    best = _state.chosen.get((operation, key)) or _known().get(operation, {}).get(key_text(key))
    able = [way for way in ways if (operation, key, way.name) not in _state.failed]
    return sorted(able, key=lambda way: way.name != best)


@cache
def _known() -> dict[str, dict[str, str]]:
    """Way by operation and key: what is recorded for this kind of GPU, and over it what was measured on this one."""
    if not torch.cuda.is_available():
        return {}
    known: dict[str, dict[str, str]] = {}
    for path in (RECORDED / f"{gpu_name()}.json", _place()):
        for operation, found in _read(path).items():
            known.setdefault(operation, {}).update(found)
    return known


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert all(isinstance(way, str) for ways in found.values() for way in ways.values())
    except (OSError, ValueError, AttributeError, AssertionError):
        return {}
    return found


def _keep(operation: str, key: Key, way: str) -> None:
    """Writes one choice to the file of this GPU, whole or not at all."""
    if not torch.cuda.is_available():
        return
    _write(_place(), {operation: {key_text(key): way}})
    _known.cache_clear()


def _write(path: Path, found: Mapping[str, Mapping[str, str]]) -> None:
    kept = _read(path)
    for operation, ways in found.items():
        kept.setdefault(operation, {}).update(ways)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)


def key_text(key: Key) -> str:
    """A key as files and tables have it."""
    return " ".join(map(str, key))


def gpu_name() -> str:
    """The GPU as files are called."""
    return re.sub(r"\W+", "_", torch.cuda.get_device_name())


def _place() -> Path:
    """DSKC_CACHE, XDG_CACHE_HOME, or the user's cache folder, and in it the GPU with the versions that were timed."""
    asked = os.environ.get("DSKC_CACHE")
    base = Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dskc"
    versions = "-".join(f"{name}{_version(name)}" for name in ("torch", "triton", "dskc"))
    return base / f"tuning-{gpu_name()}-{versions}.json"


def _version(package: str) -> str:
    if package == "torch":
        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is only on the path
        return "0"
