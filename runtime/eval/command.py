"""`dskc eval`: its options, and what they lead to."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..kernels.choice import CHOICES, choose_kernels
from ..problem import Problem
from ..train.folder import RunFolder
from .choice import STYLES
from .compare import comparable, compare
from .evaluate import evaluate
from .lines import is_file_of_lines, parse_fields
from .results import Result, path_of, save, saved
from .settings import Settings
from .show import comparison_table, pace_line, results_table
from .subject import current_step, open_subject
from .tasks import PERPLEXITY, Task, open_file, open_perplexity

MODEL = ("length", "prefix", "precision")  # options that change what a model says


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dskc eval", description="Score a trained or imported model, or compare two.")
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="the folder of a run or an import")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), type=Path, help="two runs, instead of one")
    tasks = parser.add_argument_group("what is asked")
    tasks.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME_OR_FILE",
        help="files of JSON lines, `perplexity`, or names of lm-eval's tasks",
    )  # fmt: skip
    tasks.add_argument("--data", nargs="+", default=[], type=Path, metavar="PATH", help="texts of `perplexity`")
    tasks.add_argument("--limit", type=_count, metavar="N", help="the first N questions of each task")
    tasks.add_argument("--few-shot", type=_count, metavar="N", help="examples before each question (0)")
    tasks.add_argument("--shots", type=Path, metavar="FILE", help="where they come from; else the same file")
    tasks.add_argument(
        "--fields", action="append", default=[], metavar="OURS=THEIRS,...",
        help="what a file calls its fields, as in choices=endings,answer=label",
    )  # fmt: skip
    tasks.add_argument("--style", choices=STYLES, help="of `question` with `choices`: score letters, or texts")
    answers = parser.add_argument_group("answers that are written")
    answers.add_argument("--max-tokens", type=_count, metavar="N", help="of an answer")
    answers.add_argument("--until", action="append", default=[], metavar="TEXT", help="what ends an answer; repeatable")
    answers.add_argument("--extract", metavar="REGEX", help="what counts of an answer: the last match, its first group")
    answers.add_argument("--allow-code-execution", action="store_true", help="run programs that the model writes")
    answers.add_argument("--code-seconds", type=_seconds, default=10.0, metavar="S", help="time of each of them (10)")
    model = parser.add_argument_group("the model")
    model.add_argument("--checkpoint", default="last", metavar="last|best|N", help="which one (last)")
    model.add_argument("--length", type=_count, metavar="N", help="tokens that it sees at once: as trained, or 2048")
    model.add_argument("--prefix", metavar="TOKEN", help="before a text with nothing before it; the tokenizer's own")
    model.add_argument("--overlap", type=_count, default=1, metavar="N", help="tokens that windows repeat at least (1)")
    model.add_argument("--batch-tokens", type=_count, metavar="N", help="tokens at once; chosen unless told")
    model.add_argument("--precision", choices=("fp32", "bf16"), help="of computing; as the run has it")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (auto)")
    model.add_argument("--kernels", default="auto", choices=CHOICES, help="as in dskc generate (auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a file, too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """`dskc eval RUN --tasks ...` and `dskc eval --compare A B`: prints scores, and keeps them in RUN/eval/."""
    options = parse(arguments)
    if (options.run is None) == (options.compare is None):
        raise Problem("one run is evaluated, or two compared", "write dskc eval RUN --tasks ..., or --compare A B")
    choose_kernels(options.kernels)
    tasks = open_tasks(options)
    if options.compare is not None:
        _compare(options.compare[0], options.compare[1], tasks, options)
        return
    if not tasks:
        raise Problem("there is nothing to ask", "name files or tasks with --tasks")
    results = _run(options.run, tasks, options)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(results_table(results))
    console.print(pace_line(results[0]), highlight=False)
    if options.json:
        _write(options.json, [result.to_json() for result in results])


def open_tasks(options: argparse.Namespace) -> list[Task]:
    """The tasks that were named, each checked; Problem when one is not there, or two have one name."""
    settings = Settings(
        limit=options.limit, few_shot=options.few_shot or 0, shots=options.shots, fields=parse_fields(options.fields),
        style=options.style, until=tuple(options.until), extract=options.extract, max_tokens=options.max_tokens,
        overlap=options.overlap, data=tuple(options.data), allow_code=options.allow_code_execution,
        code_seconds=options.code_seconds,
        model={name: value for name in MODEL if (value := getattr(options, name)) is not None},
    )  # fmt: skip
    if settings.data and PERPLEXITY not in options.tasks:
        raise Problem("--data is for the task `perplexity`", "add --tasks perplexity")
    tasks: list[Task] = []
    names: list[str] = []  # of lm-eval
    for name in options.tasks:
        if name == PERPLEXITY:
            tasks.append(open_perplexity(settings))
        elif is_file_of_lines(name):
            tasks.append(open_file(Path(name), settings))
        else:
            names.append(name)
    if names:
        from .harness_tasks import open_names  # needs lm-eval

        tasks += open_names(names, settings)
    paths = [path_of(Path(), task.name) for task in tasks]
    twice = {path.stem for path in paths if paths.count(path) > 1}
    if twice:
        raise Problem(f"two tasks are called {', '.join(sorted(twice))}", "evaluate them one after the other")
    return tasks


def _run(run: Path, tasks: Sequence[Task], options: argparse.Namespace) -> list[Result]:
    """Evaluates and saves."""
    subject = open_subject(
        run, options.checkpoint, options.device, options.precision, options.length, options.prefix
    )  # fmt: skip
    results: list[Result] = []
    for result in evaluate(subject, tasks, options.batch_tokens):
        save(run, result)
        results.append(result)
    return results


def _compare(a: Path, b: Path, tasks: Sequence[Task], options: argparse.Namespace) -> None:
    before, after = (_known(run, tasks, options) for run in (a, b))
    same = [task for task, result in before.items() if task in after and comparable(result, after[task])]
    if not same:
        raise Problem(f"{a} and {b} have no results of the same tasks", "name what to evaluate in both with --tasks")
    rows = compare({task: before[task] for task in same}, after)
    console = Console(width=None if Console().is_terminal else 200)
    console.print(comparison_table(rows, (str(a), str(b))))
    for task in before.keys() & after.keys() - set(same):
        console.print(f"{task}: asked in different ways, name it with --tasks to evaluate both", highlight=False)
    if options.json:
        _write(options.json, [{**vars(row), "change": row.change, "relative": row.relative} for row in rows])


def _known(run: Path, tasks: Sequence[Task], options: argparse.Namespace) -> dict[str, Result]:
    """The results of these tasks, or all that are saved: those of the checkpoint that is there now, and asked in the
    same way, are taken as they are."""
    RunFolder(run).read()  # that it is a run
    there = saved(run)
    if not tasks:
        return there
    step = current_step(run, options.checkpoint)

    def holds(task: Task) -> bool:
        found = there.get(task.name)
        return found is not None and found.about.get("step") == step and dict(found.of) == dict(task.of)

    missing = [task for task in tasks if not holds(task)]
    new = {result.task: result for result in _run(run, missing, options)} if missing else {}
    return {task.name: new.get(task.name) or there[task.name] for task in tasks}


def _write(path: Path, value: object) -> None:
    try:
        path.write_text(json.dumps(value, indent=2, default=vars) + "\n", encoding="utf-8")
    except OSError as error:
        raise Problem(f"--json {path}: it cannot be written: {error.strerror or error}") from error


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 3600:
        raise argparse.ArgumentTypeError(f"{text} is no time of up to an hour")
    return number
