"""What an evaluation found, as it lies in `RUN/eval/NAME.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..problem import Problem
from ..train.folder import write_json
from .statistics import Metric

FORMAT = 1
FOLDER = "eval"

Item = Mapping[str, Any]  # of one question: what came out, with `line` and mostly `right`


@dataclass(frozen=True)
class Result:
    """Of one task. of: what was asked and how, so that equal ones can be compared. about: the model and machine.

    items: of each question. prefill_ms, decode_ms: milliseconds a token, in batches as they came. alone: the same of
    one sequence by itself.
    """

    task: str
    kind: str
    metrics: Mapping[str, Metric]
    of: Mapping[str, Any]
    items: Sequence[Item] = ()
    count: int = 0
    seconds: float = 0.0
    prefill_ms: float | None = None
    decode_ms: float | None = None
    alone: Mapping[str, float | None] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self)


def path_of(run: Path, task: str) -> Path:
    """Where a task's result lies; what cannot be in a file's name becomes `_`."""
    return run / FOLDER / (re.sub(r"[^\w.+-]", "_", task) + ".json")


def save(run: Path, result: Result) -> Path:
    """Written whole or not at all; Problem when the folder cannot be written."""
    path = path_of(run, result.task)
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, result.to_json())
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror or error}", "--json FILE writes elsewhere") from error
    return path


def load(path: Path) -> Result:
    """A saved result; Problem when the file is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != FORMAT:
            raise ValueError("of another version")
        fields["metrics"] = {name: Metric(**metric) for name, metric in fields["metrics"].items()}
        return Result(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Problem(f"{path} is no result of an evaluation: {error}", "remove it, and evaluate again") from error


def saved(run: Path) -> dict[str, Result]:
    """All results that lie in a run, by task."""
    results = (load(path) for path in sorted((run / FOLDER).glob("*.json")))
    return {result.task: result for result in results}
