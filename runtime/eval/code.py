"""Programs that the model writes, and whether they do what was asked."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from dataclasses import dataclass

from ..problem import Problem
from .decode import Prompt, generate_all
from .encode import encode
from .lines import Line
from .results import Item
from .sandbox import run_programs
from .score import Work
from .settings import Settings
from .shots import Shots
from .statistics import Metric, mean
from .subject import Subject

MAX_TOKENS = 512  # of a function, where the model takes so many
UNTIL = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # what begins after a function: arXiv:2107.03374, section 2.1


@dataclass(frozen=True)
class Question:
    """The beginning of a function, and code that calls `check(entry_point)` after it."""

    line: int
    prompt: str
    test: str
    entry_point: str
    target: str

    @property
    def example(self) -> str:
        return self.prompt + self.target


@dataclass(frozen=True)
class Code:
    """Lines with `prompt`, `test` and `entry_point`, as HumanEval has them (arXiv:2107.03374)."""

    kind = "code"

    def parse(self, line: Line, settings: Settings) -> Question:
        require_consent(settings)
        name = line.text("entry_point")
        if not name.isidentifier() or keyword.iskeyword(name):
            line.wrong(f"`entry_point` must be the name of a function, and is {name!r}")
        target = line.text("canonical_solution") if "canonical_solution" in line else ""
        return Question(line.number, line.text("prompt"), line.text("test"), name, target)

    def run(
        self, subject: Subject, questions: Sequence[Question], shots: Shots, settings: Settings, work: Work
    ) -> tuple[dict[str, Metric], list[Item]]:
        """pass@1 of greedy completions."""
        require_consent(settings)
        most = settings.max_tokens or min(MAX_TOKENS, subject.length // 2)
        prompts = [
            Prompt(tuple(encode(subject, shots.before(i) + each.prompt)), most, settings.until or UNTIL)
            for i, each in enumerate(questions)
        ]
        texts = generate_all(subject, prompts, work)
        programs = [program(each, text) for each, text in zip(questions, texts, strict=True)]
        items: list[Item] = []
        for each, text, found in zip(questions, texts, run_programs(programs, settings.code_seconds), strict=True):
            items.append({"line": each.line, "right": found.passed, "reason": found.reason, "text": text})
        return {"pass@1": mean([item["right"] for item in items])}, items


def program(question: Question, completion: str) -> tuple[str, str]:
    """The function, and what tests it."""
    return question.prompt + completion, f"{question.test}\ncheck({question.entry_point})\n"


def require_consent(settings: Settings) -> None:
    """Problem unless programs may run: before the model is loaded, so that nobody waits for it."""
    if not settings.allow_code:
        raise Problem(
            "this task runs programs that the model writes, which could do anything that you can",
            "add --allow-code-execution if you agree; docs/evaluation.md tells what keeps them in",
        )
