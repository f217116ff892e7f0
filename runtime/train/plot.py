"""A run as a picture: its loss, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .log import Line, read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELD = "held_out."  # how the keys of terms begin that are measured on one of several sources
OF_TARGETS = ("next_token", "classify_", "regress_")
PANELS = (("rate", "learning rate"), ("norm", "gradient norm"), ("tokens_per_s", "tokens/s"))  # below the loss
MISSING = "matplotlib is not installed (pip install 'dskc[plot]')"
SMOOTH = 0.05  # weight of a new step in the drawn average, once there are many


def plot_loss(log: Path, to: Path, title: str, unigram_entropy: float | None = None) -> str | None:
    """Draw train.jsonl to a PNG: loss, its moving average, held-out loss; of several sources, the terms of each; below
    it learning rate, norm and speed. Returns why not, without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return f"no loss plot: {MISSING}"
    lines = [line for line in read_lines(log) if line["loss"] is not None]  # skipped steps may have none
    figure = Figure(figsize=(8, 6), dpi=120, layout="constrained")
    grid = FigureCanvasAgg(figure).figure.add_gridspec(2, len(PANELS), height_ratios=(3, 1))
    axes = figure.add_subplot(grid[0, :])
    terms = sorted({key for line in lines for key in line if key.startswith(HELD) and not key.endswith(".loss")})
    terms = [
        key for key in terms if key.rpartition(".")[2].startswith(OF_TARGETS)
    ]  # not the model's own, as balance is
    if terms:
        _draw_terms(axes, lines, terms)
    else:
        _draw_loss(axes, lines)
    if unigram_entropy is not None:
        axes.axhline(unigram_entropy, color="#636363", linestyle="--", linewidth=1, label="unigram entropy, held out")
    axes.set(title=title, xlabel="step", ylabel="loss" if terms else "loss (nats per token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    for number, (key, label) in enumerate(PANELS):
        _draw_panel(figure.add_subplot(grid[1, number]), lines, key, label)
    partial = to.with_name(to.name + ".partial")
    figure.savefig(partial, format="png")
    partial.replace(to)
    return None


def plot_losses(logs: Mapping[str, Path], to: Path) -> str | None:
    """Draw the losses of several runs over each other, averaged, and a dot for each time one was measured on held-out
    data. logs: by what each is called. Returns why not, without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return MISSING
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    for number, (name, log) in enumerate(logs.items()):
        lines = [line for line in read_lines(log) if line["loss"] is not None]
        steps, losses, colour = [line["step"] for line in lines], [line["loss"] for line in lines], f"C{number % 10}"
        axes.plot(steps, _smooth(losses), color=colour, linewidth=1.6, label=name)
        held = [line for line in lines if line.get("held_out") is not None]
        axes.plot([line["step"] for line in held], [line["held_out"] for line in held], "o", color=colour, markersize=4)
    axes.set(title="loss: averaged of training, dots on held-out data", xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(to, format="png")
    return None


def _draw_panel(axes: Axes, lines: list[Line], key: str, label: str) -> None:
    own = [line for line in lines if line.get(key) is not None]
    axes.plot([line["step"] for line in own], [line[key] for line in own], color="#08519c", linewidth=0.9)
    axes.set_title(label, fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_loss(axes: Axes, lines: list[Line]) -> None:
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="training, each step")
    axes.plot(steps, _smooth(losses), color="#08519c", linewidth=1.6, label="training, averaged")
    held = [line for line in lines if "held_out" in line]
    if held:
        axes.plot(
            [line["step"] for line in held], [line["held_out"] for line in held], "o", color="#d94801", label="held out"
        )


def _draw_terms(axes: Axes, lines: list[Line], keys: list[str]) -> None:
    """A curve for each term that is measured on held-out data, averaged, and a dot for each time it was."""
    for number, key in enumerate(keys):
        source, term = key.removeprefix(HELD).rsplit(".", 1)
        own = [line for line in lines if term in line]
        values, colour = _smooth([line[term] for line in own]), f"C{number}"
        axes.plot([line["step"] for line in own], values, color=colour, linewidth=1.6, label=f"{term}, averaged")
        held = [line for line in lines if key in line]
        label = f"{term}, held out of {source}"
        axes.plot([line["step"] for line in held], [line[key] for line in held], "o", color=colour, label=label)


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average, without the pull of a beginning at zero (arXiv:1412.6980, section 3)."""
    found, average, weight = [], 0.0, 0.0
    for value in values:
        average = (1 - SMOOTH) * average + SMOOTH * value
        weight = (1 - SMOOTH) * weight + SMOOTH
        found.append(average / weight)
    return found
