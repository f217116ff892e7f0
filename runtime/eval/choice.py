"""Multiple choice by log-likelihood: the choice that the model would sooner write is its answer."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .encode import pair
from .lines import Line
from .results import Item
from .score import Work, loglikelihoods
from .settings import Settings
from .shots import Shots
from .statistics import Metric, mean
from .subject import Subject

LETTERS = string.ascii_uppercase
STYLES = ("letters", "text")


@dataclass(frozen=True)
class Question:
    """A prompt, the texts that may follow a blank behind it, and which of them is right."""

    line: int
    prompt: str
    choices: tuple[str, ...]
    gold: int

    @property
    def example(self) -> str:
        """How it looks when it has been answered."""
        return f"{self.prompt} {self.choices[self.gold]}"


@dataclass(frozen=True)
class Choice:
    """Lines with `choices`, `answer` and a `question` or a `context`."""

    kind = "choice"

    def parse(self, line: Line, settings: Settings) -> Question:
        """A question is asked with its choices under letters, which are what is scored (as lm-eval's mmlu), or with
        the style `text` alone, and each choice is scored (as its arc); a context is continued by each choice (as its
        hellaswag).
        """
        choices = tuple(line.texts("choices"))
        gold = _gold(line, choices)
        if "question" not in line and "context" in line:
            return Question(line.number, line.text("context"), choices, gold)
        question = line.text("question").strip()
        if settings.style == "text":
            return Question(line.number, f"Question: {question}\nAnswer:", choices, gold)
        if len(choices) > len(LETTERS):
            line.wrong(f"{len(choices)} choices are more than there are letters")
        options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, choices, strict=False))
        return Question(line.number, f"{question}\n{options}Answer:", tuple(LETTERS[: len(choices)]), gold)

    def run(
        self, subject: Subject, questions: Sequence[Question], shots: Shots, settings: Settings, work: Work
    ) -> tuple[dict[str, Metric], list[Item]]:
        """acc, and acc_norm, which divides log-likelihoods by the characters of the choice: as lm-eval 0.4's
        `ConfigurableTask.process_results` has both. Of equal ones the first counts.
        """
        asked = [
            pair(subject, shots.before(index) + question.prompt, f" {choice}")
            for index, question in enumerate(questions)
            for choice in question.choices
        ]
        scored = iter(loglikelihoods(subject, asked, work))
        items: list[Item] = []
        for question in questions:
            found = np.array([next(scored).loglikelihood for _ in question.choices])
            best = int(found.argmax())
            longest = int((found / np.array([float(len(choice)) for choice in question.choices])).argmax())
            items.append({
                "line": question.line, "answer": question.gold, "chosen": best, "chosen_norm": longest,
                "right": best == question.gold, "right_norm": longest == question.gold,
                "loglikelihoods": [float(value) for value in found],
            })  # fmt: skip
        metrics = {"acc": mean([item["right"] for item in items]), "acc_norm": mean([i["right_norm"] for i in items])}
        return metrics, items


def _gold(line: Line, choices: Sequence[str]) -> int:
    """`answer` may be the index of a choice, its text, or its letter."""
    value = line.value("answer")
    if isinstance(value, str):
        if value in choices:
            return choices.index(value)
        letter = value.strip().upper()
        if len(letter) == 1 and letter in LETTERS[: len(choices)]:
            return LETTERS.index(letter)
        value = int(value) if value.strip().isdecimal() else value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    return line.wrong(
        f"`answer` must be an index from 0, a letter or the text of one of {len(choices)} choices: {value!r}"
    )
