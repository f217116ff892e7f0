"""The roofline: what each kernel does a second, over how many FLOPs it has for each byte."""

from __future__ import annotations

from pathlib import Path

from ..problem import Problem
from .case import OURS
from .report import Report, Row, Timed


def plot(report: Report, path: Path) -> None:
    """Writes it as a picture. Raises Problem where matplotlib is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise Problem("a plot needs matplotlib", "pip install 'dskc[plot]', or look at the JSON beside it") from None
    most = report.ceilings
    copy = most.get("copy", 0.0)
    figure, axes = plt.subplots(figsize=(9, 6))
    across = [2.0**i for i in range(-4, 13)]
    for name, peak in most.items():
        if name != "copy":
            axes.plot(across, [min(peak, x * copy / 1e3) for x in across], label=f"{name}: {peak:,.0f} TFLOP/s")
    for mark, ours in (("o", True), ("x", False)):
        points = [(r.intensity, _tflops(r, t)) for r in report.rows for t in r.times if (t.name == OURS) == ours]
        points = [point for point in points if min(point) > 0]
        if points:
            right, up = zip(*points, strict=True)
            axes.scatter(right, up, marker=mark, label="dskc" if ours else "peers", s=18)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="TFLOP/s")
    axes.set_title(f"{report.machine.gpu}: copy {copy:,.0f} GB/s")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _tflops(row: Row, timed: Timed) -> float:
    return timed.rate if row.unit == "TFLOP/s" else timed.rate * row.intensity / 1e3
