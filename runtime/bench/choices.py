"""What was chosen for a model on each GPU that it was tuned on: the file beside its generated code, and its table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from ..problem import Problem


@dataclass(frozen=True)
class Choice:
    """For one operation at one shape: the fastest way and its milliseconds, and the next, None where there is none."""

    operation: str
    shape: str
    way: str
    ms: float
    next_way: str | None = None
    next_ms: float | None = None


@dataclass(frozen=True)
class Choices:
    """All of one GPU, with the versions, the batch and the length that they were found with."""

    gpu: str
    versions: Mapping[str, str]
    batch: int
    length: int
    choices: tuple[Choice, ...]

    def recorded(self) -> dict[str, dict[str, str]]:
        """The way by operation and shape, as `kernels/recorded/` holds it."""
        found: dict[str, dict[str, str]] = {}
        for choice in self.choices:
            found.setdefault(choice.operation, {})[choice.shape] = choice.way
        return found


def read_choices(file: Path) -> list[Choices]:
    """By GPU; none where there is no file. Raises Problem where it holds something else."""
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return [
            Choices(gpu, one["versions"], one["batch"], one["length"], tuple(Choice(**c) for c in one["choices"]))
            for gpu, one in found.items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Problem(f"{file} holds no choices of kernels", "move it away, and tune again") from None


def add_choices(file: Path, found: Choices) -> None:
    """Puts those of one GPU into the file, in the place of what it said of the same operations and shapes there."""
    before = {one.gpu: one for one in read_choices(file)}
    kept = {(c.operation, c.shape): c for c in before[found.gpu].choices} if found.gpu in before else {}
    kept |= {(c.operation, c.shape): c for c in found.choices}
    before[found.gpu] = Choices(found.gpu, found.versions, found.batch, found.length, tuple(kept.values()))
    texts = [f"{json.dumps(gpu)}: {_text(one)}" for gpu, one in sorted(before.items())]
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text("{\n" + ",\n".join(texts) + "\n}\n", encoding="utf-8")
    partial.replace(file)


def _text(one: Choices) -> str:
    """A choice a line, so that a change of one is a change of a line."""
    choices = ",\n".join(f"  {json.dumps(asdict(choice))}" for choice in one.choices)
    about = {"versions": one.versions, "batch": one.batch, "length": one.length}
    head = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in about.items())
    return f'{{{head}, "choices": [\n{choices}\n]}}'


def table(found: Choices) -> Table:
    """Operation, shape, the chosen way, its milliseconds, and the next best."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    made = Table(
        title=f"{found.gpu}: {found.batch} x {found.length} tokens, {versions}", title_justify="left", show_edge=False
    )
    made.add_column("operation", no_wrap=True)
    for name in ("shape", "chosen"):
        made.add_column(name, overflow="fold")
    made.add_column("ms", justify="right", no_wrap=True)
    made.add_column("next best", overflow="fold")
    for c in found.choices:
        behind = f"{c.next_way}, {c.next_ms:.4f} ms" if c.next_way and c.next_ms is not None else ""
        made.add_row(c.operation, c.shape, c.way, f"{c.ms:.4f}", behind)
    return made
