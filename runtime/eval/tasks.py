"""Tasks: files of questions, whose kind is seen by their fields, and text to be foretold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..problem import Problem
from .answer import Answer
from .choice import STYLES, Choice
from .code import Code
from .completion import Completion, Text, documents, perplexity
from .lines import Line, digest, read_lines, task_name
from .results import Item
from .score import Work
from .settings import Settings
from .shots import Shots, topic_of
from .statistics import Metric
from .subject import Subject

PERPLEXITY = "perplexity"  # the task that takes its texts from --data


class Task(Protocol):
    """What a run can be asked. of: what makes two evaluations comparable. size: questions, for the progress."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def of(self) -> Mapping[str, Any]: ...
    @property
    def size(self) -> int: ...

    def run(self, subject: Subject, work: Work) -> tuple[Mapping[str, Metric], Sequence[Item]]:
        """The scores, and what came of each question."""
        ...


class Asked(Protocol):
    """A question of some kind."""

    @property
    def example(self) -> str: ...


class Kind(Protocol):
    """One kind of question: how a line becomes one, and how they are asked."""

    @property
    def kind(self) -> str: ...

    def parse(self, line: Line, settings: Settings) -> Any: ...

    def run(
        self, subject: Subject, questions: Sequence[Any], shots: Shots, settings: Settings, work: Work
    ) -> tuple[dict[str, Metric], list[Item]]: ...


@dataclass(frozen=True)
class FileTask:
    """Questions of one kind, from the lines of a file."""

    name: str
    questions: Sequence[Asked]
    shots: Shots
    settings: Settings
    of: Mapping[str, Any]
    how: Kind

    @property
    def kind(self) -> str:
        return self.how.kind

    @property
    def size(self) -> int:
        return sum(len(getattr(question, "choices", (0,))) for question in self.questions)

    def run(self, subject: Subject, work: Work) -> tuple[Mapping[str, Metric], Sequence[Item]]:
        return self.how.run(subject, self.questions, self.shots, self.settings, work)


@dataclass(frozen=True)
class PerplexityTask:
    """Text files, to be foretold token by token."""

    settings: Settings
    of: Mapping[str, Any]
    size: int
    name: str = PERPLEXITY
    kind: str = "text"

    def run(self, subject: Subject, work: Work) -> tuple[Mapping[str, Metric], Sequence[Item]]:
        return perplexity(subject, self.settings, work)


def open_file(path: Path, settings: Settings) -> FileTask:
    """The task of a file of lines; Problem, with file and line, where something is missing or wrong."""
    return task_of_lines(task_name(path), read_lines(path, settings.fields), settings)


def task_of_lines(name: str, lines: Sequence[Line], settings: Settings) -> FileTask:
    """The task of these lines, all of the kind of the first."""
    if settings.style not in (None, *STYLES):
        raise Problem(f"--style {settings.style}: there is no such style", f"it can be {' or '.join(STYLES)}")
    how = _kind(lines[0])
    for line in lines:
        if type(_kind(line)) is not type(how):
            line.wrong(f"this is of the kind `{_kind(line).kind}`, and the first line of the kind `{how.kind}`")
    questions = [how.parse(line, settings) for line in lines]
    shots = _shots(how, lines, questions, settings)
    count = settings.limit or len(lines)
    of: dict[str, Any] = (
        {"sha256": digest(lines[:count]), "kind": how.kind} | dict(settings.model) | _settings_of(how, settings, shots)
    )
    return FileTask(name, questions[:count], shots, settings, of, how)


def open_perplexity(settings: Settings) -> PerplexityTask:
    """The task of `settings.data`; Problem where there is no text."""
    found = documents(settings)
    of: dict[str, Any] = {
        "sha256": [document.sha256 for document in found],
        "kind": "text",
        "overlap": settings.overlap,
    } | dict(settings.model)
    return PerplexityTask(settings, of, len(found))


def _kind(line: Line) -> Kind:
    if "test" in line and "entry_point" in line:
        return Code()
    if "choices" in line:
        return Choice()
    if "completion" in line:
        return Completion()
    if "answer" in line:
        return Answer()
    if "text" in line:
        return Text()
    there = ", ".join(f"`{key}`" for key in line.values) or "none"
    return line.wrong(
        f"this is no question: it has no `choices`, `answer`, `completion`, `text` or `test`, but {there}"
    )


def _shots(how: Kind, lines: Sequence[Line], questions: Sequence[Asked], settings: Settings) -> Shots:
    if not settings.few_shot:
        return Shots()
    topics = [topic_of(line) for line in lines]
    if settings.shots is None:
        examples = [(topic, each.example) for topic, each in zip(topics, questions, strict=True)]
        return Shots(settings.few_shot, topics, examples)
    others = read_lines(settings.shots, settings.fields)
    return Shots(
        settings.few_shot, topics, [(topic_of(each), how.parse(each, settings).example) for each in others], own=False
    )


def _settings_of(how: Kind, settings: Settings, shots: Shots) -> dict[str, Any]:
    """Those that change what a task of this kind asks or counts."""
    of: dict[str, Any] = {}
    if shots.count:
        of["examples"] = digest([Line(Path(), 0, {"text": text}) for _, text in shots.examples])
        of["few_shot"] = shots.count
    if how.kind == "choice":
        of["style"] = settings.style
    if how.kind in ("answer", "code"):
        of |= {"until": list(settings.until), "max_tokens": settings.max_tokens}
    if how.kind == "answer":
        of["extract"] = settings.extract
    if how.kind == "text":
        of["overlap"] = settings.overlap
    return of
