"""A run asked several tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..train.device import device_name
from .pace import Pace, measure
from .progress import progress
from .results import Item, Result
from .score import Work
from .statistics import Metric
from .subject import Subject
from .tasks import Task


def evaluate(subject: Subject, tasks: Sequence[Task], batch_tokens: int | None = None) -> Iterator[Result]:
    """The result of each task, as it comes."""
    alone = measure(subject)
    for task in tasks:
        start = time.perf_counter()
        with progress(task.name, task.size) as advance:
            work = Work(batch_tokens, advance)
            metrics, items = task.run(subject, work)
        of = (task.name, task.kind, metrics, task.of, items)
        yield result_of(subject, *of, seconds=time.perf_counter() - start, pace=work.pace, alone=alone)


def result_of(
    subject: Subject,
    task: str,
    kind: str,
    metrics: Mapping[str, Metric],
    of: Mapping[str, Any],
    items: Sequence[Item],
    seconds: float,
    pace: Pace,
    alone: Pace,
) -> Result:
    """With what is to be known of the model and the machine."""
    return Result(
        task=task, kind=kind, metrics=metrics, of=of, items=items, count=len(items), seconds=seconds,
        prefill_ms=pace.prefill_ms, decode_ms=pace.decode_ms,
        alone={"prefill_ms": alone.prefill_ms, "decode_ms": alone.decode_ms},
        about=about(subject),
    )  # fmt: skip


def about(subject: Subject) -> dict[str, Any]:
    return {
        "step": subject.step, "length": subject.length, "prefix": subject.prefix, "dtype": subject.dtype,
        "device": f"{subject.device.type}: {device_name(subject.device)}",
    }  # fmt: skip
