"""Results and comparisons as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .compare import Row
from .results import Result
from .statistics import Metric


def results_table(results: Sequence[Result]) -> Table:
    """A row for each score: its value with its standard error, over how many, and the task's time."""
    made = Table("task", "score", box=None, pad_edge=False)
    for name in ("value", "questions", "seconds", "ms/token"):
        made.add_column(name, justify="right", no_wrap=True)
    for result in results:
        for place, (name, metric) in enumerate(result.metrics.items()):
            own = [result.task, f"{result.count:,}", f"{result.seconds:,.1f}", _ms(result)] if not place else [""] * 4
            made.add_row(own[0], name, with_error(metric), *own[1:])
    return made


def comparison_table(rows: Sequence[Row], names: tuple[str, str]) -> Table:
    """Both scores, what one is more than the other, and how many questions changed."""
    made = Table("task", "score", box=None, pad_edge=False)
    for name in (*names, "change", "relative", "changed"):
        made.add_column(name, justify="right", no_wrap=name not in names, overflow="fold")
    last = ""
    for row in rows:
        change = f"{row.change:+.4f}" + (f" ± {row.change_error:.4f}" if row.change_error is not None else "")
        relative = "" if row.relative is None else f"{row.relative:+.1%}"
        changed = "" if row.changed is None else f"{row.changed} of {row.questions:,} (+{row.gained} -{row.lost})"
        task = row.task if row.task != last else ""
        made.add_row(task, row.metric, with_error(row.before), with_error(row.after), change, relative, changed)
        last = row.task
    return made


def with_error(metric: Metric) -> str:
    """`0.3250 ± 0.0469`."""
    return f"{metric.value:.4f}" + (f" ± {metric.stderr:.4f}" if metric.stderr is not None else "")


def pace_line(result: Result) -> str:
    """`one sequence alone: prefill 0.42 ms a token, decode 21.3 ms a token`."""
    parts = [
        f"{name} {value:.3g} ms a token"
        for name in ("prefill", "decode")
        if (value := result.alone.get(f"{name}_ms")) is not None
    ]
    return f"one sequence alone: {', '.join(parts)} ({result.about['device']}, {result.about['dtype']})"


def _ms(result: Result) -> str:
    parts = [(result.prefill_ms, "prefill"), (result.decode_ms, "decode")]
    return ", ".join(f"{value:.3g} {name}" for value, name in parts if value is not None)
