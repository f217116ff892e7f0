"""The loss of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from .log import read_lines

SMOOTH = 0.05  # weight of a new step in the drawn average, once there are many


def plot_loss(log: Path, to: Path, title: str, unigram_entropy: float | None = None) -> str | None:
    """Draw train.jsonl to a PNG: loss, its moving average, held-out loss. Returns why not, without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "no loss plot: matplotlib is not installed (pip install 'dskc[plot]')"
    lines = read_lines(log)
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="training, each step")
    axes.plot(steps, _smooth(losses), color="#08519c", linewidth=1.6, label="training, averaged")
    held = [line for line in lines if "held_out" in line]
    if held:
        axes.plot(
            [line["step"] for line in held], [line["held_out"] for line in held], "o", color="#d94801", label="held out"
        )
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="#636363", linestyle="--", linewidth=1, label="unigram entropy, held out")
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    partial = to.with_name(to.name + ".partial")
    figure.savefig(partial, format="png")
    partial.replace(to)
    return None


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average, without the pull of a beginning at zero (arXiv:1412.6980, section 3)."""
    found, average, weight = [], 0.0, 0.0
    for value in values:
        average = (1 - SMOOTH) * average + SMOOTH * value
        weight = (1 - SMOOTH) * weight + SMOOTH
        found.append(average / weight)
    return found
