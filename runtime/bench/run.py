"""Times cases and everyone in them: medians, spread, rates, and shares of what this GPU reaches at most.

    python -m dskc.runtime.bench.run [--only TEXT] [--out FOLDER]

A peer that cannot do a case, or is not installed, is left out of its row and named with the reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from ..kernels.timing import gpu_times, timing_stream
from ..kernels.tuning import tuning
from ..problem import Problem
from .case import OURS, Case

MODULES = ("attention", "decode", "experts", "linear_loss", "products", "optimizer_steps")
SECONDS = 0.25  # of timed runs, at least
FEWEST, MOST = 7, 200


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one who does a case: the median, and the tenth and ninetieth of a hundred."""

    name: str
    median: float
    low: float
    high: float
    rate: float  # in the case's unit


@dataclass(frozen=True)
class Row:
    """A case with everyone's times, ours first; `missing` are those that could not, with the reason."""

    kernel: str
    shape: str
    unit: str
    ceiling: str
    intensity: float  # FLOPs a byte
    times: tuple[Timed, ...]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer."""
        ours = next((t.median for t in self.times if t.name == OURS), None)
        peers = [t.median for t in self.times if not t.name.startswith(OURS)]
        return None if ours is None or not peers else min(peers) / ours


def all_cases(only: Sequence[str] = ("",)) -> Iterator[Case]:
    """Every case whose kernel and shape have one of `only` in them."""
    for name in MODULES:
        for case in import_module(f"{__package__}.{name}").cases():
            if any(text in f"{case.kernel} {case.shape}" for text in only):
                yield case


def ceilings() -> dict[str, float]:
    """What this GPU does at most: GB/s of a copy (read and written), TFLOP/s of products in each dtype (8192³)."""
    found: dict[str, float] = {}
    found["copy"] = _copy_rate()
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    work = 2 * size**3 / 1e9
    found["bf16"] = work / milliseconds(lambda: a @ b)[0]
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device="cuda")
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        found["fp8"] = work / milliseconds(lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16))[0]
    i8, j8 = (torch.randint(-127, 127, (size, size), device="cuda", dtype=torch.int8) for _ in range(2))
    found["int8"] = work / milliseconds(lambda: torch._int_mm(i8, j8.t()))[0]
    return found


def _copy_rate() -> float:
    x = torch.randn(1 << 30, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 4 * x.numel() / milliseconds(lambda: y.copy_(x))[0] / 1e6


def milliseconds(run: Callable[[], object]) -> tuple[float, float, float]:
    """Median, tenth and ninetieth percentile on the GPU."""
    times = gpu_times(run, FEWEST, MOST, SECONDS)
    tenths = statistics.quantiles(times, n=10)
    return statistics.median(times), tenths[0], tenths[-1]


def measure(case: Case) -> Row:
    """Everyone of a case, one after another; ours after it has tried its ways."""
    torch.manual_seed(0)
    work = case.flops / 1e9 if case.unit == "TFLOP/s" else case.bytes / 1e6
    times: list[Timed] = []
    missing: dict[str, str] = {}
    try:
        # Backward runs on the stream that forward ran on, which must be the one that is captured.
        with torch.cuda.stream(timing_stream()):
            runs = dict(case.build())
        torch.cuda.synchronize()
    except Exception as error:
        runs = {}
        missing["all"] = _reason(error)
    for name, run in runs.items():
        try:
            if name.startswith(OURS):
                with tuning(lambda timing: None), torch.cuda.stream(timing_stream()):
                    run()
            median, low, high = milliseconds(run)
            times.append(Timed(name, round(median, 5), round(low, 5), round(high, 5), round(work / median, 1)))
        except Exception as error:
            missing[name] = _reason(error)
            torch.cuda.synchronize()
    del runs
    torch.cuda.empty_cache()
    intensity = case.flops / max(case.bytes, 1)
    return Row(case.kernel, case.shape, case.unit, case.ceiling, round(intensity, 2), tuple(times), missing)


def shown(row: Row, most: dict[str, float]) -> list[str]:
    """Lines of a row: one for each who did it."""
    lines = [f"{row.kernel}  {row.shape}" + (f"   {row.ratio:.2f} x the best peer" if row.ratio else "")]
    for t in row.times:
        share = t.rate / most[row.ceiling] if row.ceiling in most and _comparable(row) else None
        part = f"{share:5.0%} of {row.ceiling}" if share is not None else ""
        lines.append(
            f"    {t.name:28} {t.median:9.4f} ms ({t.low:.4f} to {t.high:.4f}) {t.rate:9.1f} {row.unit} {part}"
        )
    return [*lines, *(f"    {name}: {reason}" for name, reason in row.missing.items())]


def plot(rows: Sequence[Row], most: dict[str, float], path: Path) -> None:
    """The roofline: each kernel's rate over its FLOPs a byte. Raises Problem where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise Problem("a plot needs matplotlib", "pip install 'dskc[plot]', or look at the JSON beside it") from None
    figure, axes = plt.subplots(figsize=(9, 6))
    across = [2.0**i for i in range(-4, 13)]
    for name, peak in most.items():
        if name != "copy":
            axes.plot(across, [min(peak, x * most["copy"] / 1e3) for x in across], label=f"{name}: {peak:,.0f} TFLOP/s")
    for mark, ours in (("o", True), ("x", False)):
        points = [(r.intensity, _tflops(r, t)) for r in rows for t in r.times if (t.name == OURS) == ours]
        if points:
            across_points, up = zip(*points, strict=True)
            axes.scatter(across_points, up, marker=mark, label="dskc" if ours else "peers", s=18)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="TFLOP/s")
    axes.set_title(f"{torch.cuda.get_device_name()}: copy {most['copy']:,.0f} GB/s")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dskc bench kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", help="cases with this in their kernel and shape; again for others")
    parser.add_argument("--out", type=Path, help="a folder for kernels.json and roofline.png")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise Problem("kernels are timed on a GPU, and there is none here", "dskc bench kernels runs where a GPU is")
    most = ceilings()
    print("  ".join(f"{name} {value:,.0f} {'GB/s' if name == 'copy' else 'TFLOP/s'}" for name, value in most.items()))
    rows: list[Row] = []
    for case in all_cases(options.only or [""]):
        rows.append(measure(case))
        print("\n".join(shown(rows[-1], most)), flush=True)
        if options.out is not None:  # after each, so that nothing is lost where one hangs
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "kernels.json").write_text(json.dumps(report(rows, most), indent=1) + "\n")
    if options.out is not None:
        plot(rows, most, options.out / "roofline.png")


def report(rows: Sequence[Row], most: dict[str, float]) -> dict[str, object]:
    """What is written: where it was measured, the ceilings and all rows."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "commit": _commit(),
        "versions": {name: _version(name) for name in ("torch", "triton")} | {"python": platform.python_version()},
        "ceilings": {name: round(value, 1) for name, value in most.items()},
        "rows": [asdict(row) | {"ratio": round(row.ratio, 3) if row.ratio else None} for row in rows],
    }


def _comparable(row: Row) -> bool:
    return (row.unit == "GB/s") == (row.ceiling == "copy")


def _tflops(row: Row, timed: Timed) -> float:
    return timed.rate if row.unit == "TFLOP/s" else timed.rate * row.intensity / 1e3


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _version(name: str) -> str:
    return str(getattr(import_module(name), "__version__", "?"))


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
        )
    except OSError:
        return None
    return found.stdout.strip() or None


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        print(f"error: {problem.message}\nhelp: {problem.help}", file=sys.stderr)
        sys.exit(1)
