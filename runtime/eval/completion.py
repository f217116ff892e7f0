"""How likely texts are: completions of a context, whole texts, and files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..data import Document, find_documents
from ..data.table import Row, read_texts
from ..problem import Problem
from .encode import encode, pair
from .lines import Line
from .results import Item
from .score import Scored, Work, loglikelihoods
from .settings import Settings
from .shots import Shots
from .statistics import Metric, mean, ratio
from .subject import Subject
from .windows import windows


@dataclass(frozen=True)
class Question:
    line: int
    context: str
    completion: str

    @property
    def example(self) -> str:
        return self.context + self.completion


@dataclass(frozen=True)
class Completion:
    """Lines with `completion`, and mostly `context`: the completion's likelihood behind it."""

    kind = "completion"

    def parse(self, line: Line, settings: Settings) -> Question:
        """As they stand: a blank between the two must be in one of them."""
        context = line.text("context") if "context" in line else ""
        completion = line.text("completion")
        if not completion:
            line.wrong("`completion` is empty")
        return Question(line.number, context, completion)

    def run(
        self, subject: Subject, questions: Sequence[Question], shots: Shots, settings: Settings, work: Work
    ) -> tuple[dict[str, Metric], list[Item]]:
        """loss and perplexity a token, bits a byte, and acc: how many completions greedy decoding would give."""
        requests = [pair(subject, shots.before(i) + each.context, each.completion) for i, each in enumerate(questions)]
        items: list[Item] = []
        for question, request, scored in zip(questions, requests, loglikelihoods(subject, requests, work), strict=True):
            size = len(question.completion.encode())
            items.append(_item(question.line, scored, len(request.continuation), size) | {"right": scored.greedy})
        return likelihood(items) | {"acc": mean([item["right"] for item in items])}, items


@dataclass(frozen=True)
class Text:
    """Lines with `text` alone: its likelihood from its first token on, in windows where it is long."""

    kind = "text"

    def parse(self, line: Line, settings: Settings) -> Question:
        text = line.text("text")
        if not text:
            line.wrong("`text` is empty")
        return Question(line.number, "", text)

    def run(
        self, subject: Subject, questions: Sequence[Question], shots: Shots, settings: Settings, work: Work
    ) -> tuple[dict[str, Metric], list[Item]]:
        """loss and perplexity a token, and bits a byte."""
        if shots.count:
            raise Problem(f"--few-shot {shots.count}: texts are no questions, and have no examples before them")
        items = rolling(subject, [(each.line, each.completion) for each in questions], settings, work)
        return likelihood(items), items


def rolling(subject: Subject, texts: Sequence[tuple[int, str]], settings: Settings, work: Work) -> list[Item]:
    """Of each numbered text, its likelihood, every token predicted once."""
    if settings.overlap > subject.length:
        raise Problem(f"--overlap {settings.overlap} is more than the {subject.length} tokens of a window")
    items: list[Item] = []
    for number, text in texts:
        tokens = encode(subject, text)
        requests = list(windows(tokens, subject.prefix, subject.length, settings.overlap))
        parts = loglikelihoods(subject, requests, Work(work.batch_tokens, pace=work.pace))
        whole = Scored(math.fsum(part.loglikelihood for part in parts), all(part.greedy for part in parts))
        of = [{"loss": -p.loglikelihood, "tokens": len(r.continuation)} for p, r in zip(parts, requests, strict=True)]
        items.append(_item(number, whole, len(tokens), len(text.encode())) | {"windows": of})
        work.advance(1)
    return items


def perplexity(subject: Subject, settings: Settings, work: Work) -> tuple[dict[str, Metric], list[Item]]:
    """loss, perplexity and bits a byte over all texts of `settings.data`; standard errors are those over windows."""
    texts = [(number, "".join(pieces)) for number, (_, pieces) in enumerate(read_texts(documents(settings)), 1)]
    items = rolling(subject, texts, settings, work)
    return likelihood(items), items


def documents(settings: Settings) -> Sequence[Document | Row]:
    """The texts of `settings.data`, the first `limit` of them."""
    if not settings.data:
        raise Problem("perplexity of what?", "name files or folders of text with --data")
    return find_documents(list(settings.data)).documents[: settings.limit]


def likelihood(items: Sequence[Item]) -> dict[str, Metric]:
    """loss: nats a token. perplexity: its exponential. bits_per_byte: which does not depend on the tokenizer."""
    parts = [part for item in items for part in item.get("windows", [item])]
    loss = ratio([part["loss"] for part in parts], [part["tokens"] for part in parts])
    size = sum(item["bytes"] for item in items)
    scale = sum(item["tokens"] for item in items) / size / math.log(2)
    found = math.exp(min(loss.value, 700.0))
    return {
        "loss": loss,
        "perplexity": Metric(found, None if loss.stderr is None else loss.stderr * found, higher_is_better=False),
        "bits_per_byte": Metric(loss.value * scale, None if loss.stderr is None else loss.stderr * scale, False),
    }


def _item(line: int, scored: Scored, tokens: int, size: int) -> dict[str, object]:
    return {"line": line, "loss": -scored.loglikelihood, "tokens": tokens, "bytes": size}
