"""Two runs' results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .results import Item, Result
from .statistics import Metric, paired

# Of an item, what says whether it was right for a score, and which answer that went by.
RIGHT = {"acc": "right", "acc_norm": "right_norm", "exact_match": "right", "pass@1": "right"}
ANSWERS = {"acc": "chosen", "acc_norm": "chosen_norm"}


@dataclass(frozen=True)
class Row:
    """One score of both. change_error: standard error of the change, over the same questions. changed: questions with
    another answer (of those with choices), or now right or wrong; gained and lost: those that are right now, and were.
    """

    task: str
    metric: str
    before: Metric
    after: Metric
    questions: int
    change_error: float | None = None
    changed: int | None = None
    gained: int = 0
    lost: int = 0

    @property
    def change(self) -> float:
        return self.after.value - self.before.value

    @property
    def relative(self) -> float | None:
        """Of the first; None where that is 0."""
        return self.change / abs(self.before.value) if self.before.value else None


def comparable(a: Result, b: Result) -> bool:
    """Whether both were asked the same in the same way."""
    return (a.task, a.kind, dict(a.of)) == (b.task, b.kind, dict(b.of))


def compare(before: Mapping[str, Result], after: Mapping[str, Result]) -> list[Row]:
    """A row for each score that both have, of tasks of the same name, which must be `comparable`."""
    rows: list[Row] = []
    for task, first in before.items():
        second = after.get(task)
        if second is None:
            continue
        assert comparable(first, second), task
        for metric, value in first.metrics.items():
            if metric in second.metrics:
                rows.append(_row(task, metric, value, second.metrics[metric], first.items, second.items))
    return rows


def _row(task: str, metric: str, before: Metric, after: Metric, first: Sequence[Item], second: Sequence[Item]) -> Row:
    right = RIGHT.get(metric)
    if right is None or len(first) != len(second) or not all(right in item for item in (*first, *second)):
        return Row(task, metric, before, after, max(len(first), len(second)))
    a, b = [bool(item[right]) for item in first], [bool(item[right]) for item in second]
    answer = ANSWERS.get(metric, right)
    key = answer if all(answer in item for item in (*first, *second)) else right
    return Row(
        task, metric, before, after, len(first),
        change_error=paired([float(x) for x in a], [float(x) for x in b]),
        changed=sum(x[key] != y[key] for x, y in zip(first, second, strict=True)),
        gained=sum(y and not x for x, y in zip(a, b, strict=True)),
        lost=sum(x and not y for x, y in zip(a, b, strict=True)),
    )  # fmt: skip
