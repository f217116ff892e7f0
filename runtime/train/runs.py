"""The runs below a folder: how each stands, and where several differ."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..problem import Problem
from .folder import RunFolder
from .lock import is_running
from .log import Line, read_lines
from .plot import plot_losses

DEPTH = 3  # folders below the one that is given, in which runs are looked for
SHOWN = 10  # steps at which losses are compared

State = Literal["running", "done", "stopped", "imported"]


@dataclass(frozen=True)
class Summary:
    """How a run stands. step: that are done, of `steps` in all. loss, held_out: the last that were measured; None
    before any was. tokens_per_s: median of the log. changed: when it last was, in local time.
    """

    run: str
    model: str
    state: State
    step: int
    steps: int
    loss: float | None
    held_out: float | None
    tokens_per_s: float | None
    changed: str


@dataclass(frozen=True)
class Comparison:
    """Of several runs, in their order. facts: of run.json, and the tokenizer, by name where they differ; losses,
    held_out: by step, at some steps that all have.
    """

    runs: list[Summary]
    facts: dict[str, list[Any]]
    losses: dict[int, list[float]]
    held_out: dict[int, list[float]]


def find_runs(folder: Path) -> list[Path]:
    """The runs in a folder and in those below it, by name; the folder itself where it is one."""
    return sorted(_walk(folder, DEPTH))


def summarise(run: Path) -> Summary:
    """Raises Problem when the folder is no run."""
    folder, facts = RunFolder(run), RunFolder(run).read()
    lines = read_lines(folder.log)
    step = lines[-1]["step"] if lines else 0
    if facts.recipe is None:
        state: State = "imported"
    elif is_running(run):
        state = "running"
    else:
        state = "done" if step >= facts.steps and (run / "result.json").exists() else "stopped"
    newest = folder.log if folder.log.exists() else folder.facts
    return Summary(
        str(run),
        facts.model,
        state,
        step,
        facts.steps,
        _last(lines, "loss"),
        _last(lines, "held_out"),
        round(statistics.median(line["tokens_per_s"] for line in lines), 1) if lines else None,
        datetime.fromtimestamp(newest.stat().st_mtime).isoformat(" ", "minutes"),
    )


def compare(runs: Sequence[Path]) -> Comparison:
    """Raises Problem when one of them is no run."""
    summaries = [summarise(run) for run in runs]
    known = [_facts(run) for run in runs]
    names = list(dict.fromkeys(name for facts in known for name in facts))
    values = {name: [facts.get(name) for facts in known] for name in names}
    logs = [read_lines(RunFolder(run).log) for run in runs]
    return Comparison(
        summaries,
        {name: found for name, found in values.items() if any(value != found[0] for value in found)},
        _at_common_steps(logs, "loss"),
        _at_common_steps(logs, "held_out"),
    )


def show(paths: Sequence[Path], plot: Path | None = None, as_json: bool = False) -> str:
    """What `dskc runs` prints: a list of the runs below one path, or a comparison of several. plot: a PNG to draw their
    losses into.

    Raises Problem when there is no run, and when the picture cannot be drawn.
    """
    several = len(paths) > 1
    runs = list(paths) if several else find_runs(paths[0])
    if not runs:
        raise Problem(f"there is no run in {paths[0]}", "name a folder of runs, as given to --out")
    if plot is not None and (missing := plot_losses({str(run): RunFolder(run).log for run in runs}, plot)):
        raise Problem(f"--plot {plot}: {missing}")
    if several:
        found = compare(runs)
        return json.dumps(asdict(found), indent=2) if as_json else comparison_text(found)
    summaries = [summarise(run) for run in runs]
    return json.dumps([asdict(one) for one in summaries], indent=2) if as_json else list_text(summaries)


def list_text(summaries: Sequence[Summary]) -> str:
    """A table, a run a line."""
    rows = [("run", "model", "state", "step", "loss", "held out", "tokens/s", "changed")]
    for one in summaries:
        rows.append(
            (
                one.run,
                one.model,
                one.state,
                f"{one.step:,}/{one.steps:,}" if one.steps else "",
                _number(one.loss),
                _number(one.held_out),
                "" if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}",
                one.changed,
            )
        )
    return _table(rows, right=(3, 4, 5, 6))


def comparison_text(found: Comparison) -> str:
    """The list, then what differs, then the losses side by side; runs by their numbers in the list."""
    numbers = [f"[{number}]" for number in range(1, len(found.runs) + 1)]
    listed = list_text(found.runs).splitlines()
    parts = ["\n".join(f"{number:<4}{line}" for number, line in zip(["", *numbers], listed, strict=True))]
    if found.facts:
        rows = [("differs", *numbers)]
        rows += [(name, *(_short(value) for value in values)) for name, values in found.facts.items()]
        parts.append(_table(rows))
    else:
        parts.append("no fact differs")
    for title, losses in (("loss at step", found.losses), ("held out at step", found.held_out)):
        if losses:
            rows = [(title, *numbers)]
            rows += [(f"{step:,}", *(f"{loss:.4f}" for loss in row)) for step, row in losses.items()]
            parts.append(_table(rows, right=tuple(range(1, len(numbers) + 1))))
    if not found.losses:
        parts.append("they have no step in common")
    if "tokenizer" in found.facts:
        parts.append("note: they have different tokenizers, so losses of a token do not compare")
    return "\n\n".join(parts)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").is_file():
        yield folder
    elif depth:
        try:
            below = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."]
        except OSError as error:
            raise Problem(f"{folder} cannot be read: {error.strerror}") from error
        for each in below:
            yield from _walk(each, depth - 1)


def _last(lines: Sequence[Line], name: str) -> float | None:
    return next((line[name] for line in reversed(lines) if line.get(name) is not None), None)


def _facts(run: Path) -> dict[str, Any]:
    """What run.json says, nested names joined by dots, and the tokenizer's hash."""
    fields = json.loads(RunFolder(run).facts.read_text(encoding="utf-8"))
    found = dict(_flat(fields))
    tokenizer = RunFolder(run).tokenizer
    if tokenizer.is_file():
        found["tokenizer"] = hashlib.sha256(tokenizer.read_bytes()).hexdigest()[:16]
    return found


def _flat(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _at_common_steps(logs: Sequence[Sequence[Line]], name: str) -> dict[int, list[float]]:
    """Evenly spread ones, the last among them."""
    known = [{line["step"]: line[name] for line in log if line.get(name) is not None} for log in logs]
    steps = sorted(set.intersection(*(set(own) for own in known)))
    chosen = {steps[len(steps) * (i + 1) // SHOWN - 1] for i in range(SHOWN)} if len(steps) > SHOWN else set(steps)
    return {step: [own[step] for own in known] for step in sorted(chosen)}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _short(value: object) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    first = text.splitlines()[0] if text else '""'
    return first if len(first) <= 40 and first == (text or '""') else f"{first[:37]}..."


def _table(rows: Sequence[tuple[str, ...]], right: Sequence[int] = ()) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells))
    return "\n".join(line.rstrip() for line in lines)
