"""Answers that the model writes, compared with the right ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from ..problem import Problem
from .decode import Prompt, generate_all
from .encode import encode
from .lines import Line
from .results import Item
from .score import Work
from .settings import Settings
from .shots import Shots
from .statistics import Metric, mean
from .subject import Subject

MAX_TOKENS = 256  # of an answer, where the model takes so many
NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True)
class Question:
    """A prompt and the answers that are right. target: what an example shows, the first answer unless a line says."""

    line: int
    prompt: str
    answers: tuple[str, ...]
    target: str
    until: tuple[str, ...]

    @property
    def example(self) -> str:
        return f"{self.prompt} {self.target}"


@dataclass(frozen=True)
class Answer:
    """Lines with `answer` and a `question` or a `prompt`, without `choices`."""

    kind = "answer"

    def parse(self, line: Line, settings: Settings) -> Question:
        """A question is put into words (as by lm-eval's gsm8k); a prompt stands as it is."""
        value = line.value("answer")
        answers = value if isinstance(value, list) else [value]
        if not answers or not all(isinstance(each, str | int | float) and str(each).strip() for each in answers):
            line.wrong("`answer` must be a text, a number or a list of them")
        texts = tuple(str(each).strip() for each in answers)
        if "prompt" in line and "question" not in line:
            prompt, until = line.text("prompt"), ("\n\n",)
        else:
            prompt, until = f"Question: {line.text('question')}\nAnswer:", ("Question:",)
        target = line.text("target") if "target" in line else texts[0]
        return Question(line.number, prompt, texts, target, settings.until or until)

    def run(
        self, subject: Subject, questions: Sequence[Question], shots: Shots, settings: Settings, work: Work
    ) -> tuple[dict[str, Metric], list[Item]]:
        """exact_match: greedy answers, of which a regular expression may extract what counts."""
        most = settings.max_tokens or min(MAX_TOKENS, subject.length // 2)
        pattern = compiled(settings.extract)
        prompts = [
            Prompt(tuple(encode(subject, shots.before(index) + question.prompt)), most, question.until)
            for index, question in enumerate(questions)
        ]
        items: list[Item] = []
        for question, text in zip(questions, generate_all(subject, prompts, work), strict=True):
            found = extracted(text, pattern, question.answers)
            right = any(same(found, answer) for answer in question.answers)
            answer = question.answers[0]
            items.append({"line": question.line, "answer": answer, "found": found, "right": right, "text": text})
        return {"exact_match": mean([item["right"] for item in items])}, items


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern is not None else None
    except re.error as error:
        raise Problem(f"--extract {pattern}: not a regular expression: {error}") from error


def extracted(text: str, pattern: re.Pattern[str] | None, answers: Sequence[str]) -> str:
    """What counts of a text: the last match of the pattern, of which the first group that took part; without one, the
    last number where an answer is a number, else all of it. Empty where nothing matches."""
    if pattern is None:
        if not any(_number(answer) is not None for answer in answers):
            return text.strip()
        pattern = NUMBER
    matches = list(pattern.finditer(text))
    if not matches:
        return ""
    groups = [group for group in matches[-1].groups() if group is not None]
    return (groups[0] if groups else matches[-1][0]).strip()


def same(found: str, answer: str) -> bool:
    """Equal texts, or equal numbers: `$1,000`, `1000` and `1000.0` are one."""
    if found == answer:
        return True
    number = _number(found)
    return number is not None and number == _number(answer)


def _number(text: str) -> Decimal | None:
    plain = text.strip().replace(",", "").replace("$", "").removesuffix(".").removesuffix("%")
    try:
        number = Decimal(plain) if plain else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() else None
