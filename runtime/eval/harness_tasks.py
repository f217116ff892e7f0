"""Tasks by their names in lm-eval, which also fetches their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..problem import Problem
from .code import require_consent
from .lines import as_lines
from .results import Item
from .score import Work
from .settings import INSTALL, Settings
from .statistics import Metric
from .subject import Subject
from .tasks import Task, task_of_lines

# Tasks whose programs lm-eval would run itself: here only the data are its, and programs run in our sandbox.
CODE = {"humaneval": ("openai/openai_humaneval", "test")}
# Scores of a sample by whether one question was right.
RIGHT = {"acc": "right", "acc_norm": "right_norm", "exact_match": "right"}


@dataclass(frozen=True)
class HarnessTask:
    """A task or a group of tasks of lm-eval."""

    name: str
    settings: Settings
    of: Mapping[str, Any]
    size: int = 1
    kind: str = "lm-eval"

    def run(self, subject: Subject, work: Work) -> tuple[Mapping[str, Metric], Sequence[Item]]:
        """Its scores; of a group, those of the group and of each task in it, as `TASK: SCORE`."""
        from .harness import RunLM

        model = RunLM(subject, batch_tokens=work.batch_tokens)
        model.work = work
        found = _evaluated(self.name, model, self.settings)
        higher = found.get("higher_is_better", {})
        metrics = {
            (metric if task == self.name else f"{task}: {metric}"): Metric(
                float(value), _stderr(scores, metric), bool((higher.get(task) or {}).get(metric.split(",")[0], True))
            )
            for task, scores in {**found.get("results", {}), **found.get("groups", {})}.items()
            for metric, value in scores.items()
            if isinstance(value, int | float) and "_stderr" not in metric and not metric.startswith(("sample", "alias"))
        }
        return {name.removesuffix(",none"): metric for name, metric in metrics.items()}, _items(found)


def open_names(names: Sequence[str], settings: Settings) -> list[Task]:
    """The tasks of these names; Problem where lm-eval is not installed, or does not know one."""
    from . import harness  # says what to install

    assert harness.RunLM is not None
    for option, value in (("--extract", settings.extract), ("--shots", settings.shots), ("--style", settings.style)):
        if value is not None:
            raise Problem(f"{option} is for files of questions: {names[0]} of lm-eval says that itself")
    try:
        from lm_eval import __version__
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise Problem(f"lm-eval is there without what it needs ({error})", INSTALL) from error

    manager = TaskManager()
    tasks: list[Task] = []
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, 1)
            raise Problem(
                f"there is no file and no task of lm-eval called {name}",
                f"did you mean {near[0]}?"
                if near
                else "`lm_eval ls tasks` lists those; files of questions end in .jsonl",
            )
        if name in CODE:
            tasks.append(_code(name, settings))
            continue
        of: dict[str, Any] = {"lm_eval": __version__, "limit": settings.limit, "few_shot": settings.few_shot or None}
        of |= {"max_tokens": settings.max_tokens, "until": list(settings.until)}
        tasks.append(HarnessTask(name, settings, of | dict(settings.model)))
    return tasks


def _evaluated(name: str, model: Any, settings: Settings) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` says of a task; its refusals and failures to get data as a Problem."""
    from lm_eval import simple_evaluate

    generation = {"max_gen_toks": settings.max_tokens, "until": list(settings.until)}
    chosen = {key: value for key, value in generation.items() if value}
    try:
        found = simple_evaluate(
            model=model, tasks=[name], num_fewshot=settings.few_shot or None, limit=settings.limit,
            gen_kwargs=chosen or None, bootstrap_iters=1000, log_samples=True,
        )  # fmt: skip
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        if "unsafe" in str(error):
            raise Problem(
                f"lm-eval runs the programs of {name} itself, outside of our sandbox",
                "evaluate its questions as a file of lines with `prompt`, `test` and `entry_point`",
            ) from error
        raise Problem(
            f"lm-eval cannot evaluate {name}: {error}", "its data must be on this machine, or to be had"
        ) from error
    assert found is not None  # only other ranks get nothing
    return dict(found)


def _items(found: Mapping[str, Any]) -> list[Item]:
    """Of each question, whether it was right by each score that says so of one question."""
    items: list[Item] = []
    for task, samples in sorted((found.get("samples") or {}).items()):
        first = samples[0].get("filter") if samples else None  # each filter of answers has all questions
        for sample in samples:
            if sample.get("filter") == first:
                right = {
                    RIGHT[name]: bool(sample[name])
                    for name in RIGHT
                    if isinstance(sample.get(name), int | float | bool)
                }
                items.append({"task": task, "line": sample.get("doc_id")} | right)
    return items


def _stderr(scores: Mapping[str, Any], metric: str) -> float | None:
    name, comma, rest = metric.partition(",")
    value = scores.get(f"{name}_stderr{comma}{rest}")
    return float(value) if isinstance(value, int | float) else None


def _code(name: str, settings: Settings) -> Task:
    require_consent(settings)
    from datasets import load_dataset  # one of lm-eval's own needs

    source, split = CODE[name]
    try:
        rows = [dict(row) for row in load_dataset(source, split=split)]
    except Exception as error:  # of many kinds: the network's, the hub's, the file system's
        raise Problem(
            f"the data of {name} cannot be had: {error}", "evaluate its questions as a file of lines instead"
        ) from error
    return task_of_lines(name, as_lines(Path(name), rows), settings)
