"""Examples before a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..problem import Problem
from .lines import Line


@dataclass(frozen=True)
class Shots:
    """Of each question, the first `count` examples of its topic, or of all where lines have none; from a file of their
    own, or the same file without the question itself.

    topics: of the questions. examples: their topic and text. own: whether the examples are those of the questions, in
    their order.
    """

    count: int = 0
    topics: Sequence[object] = ()
    examples: Sequence[tuple[object, str]] = ()
    own: bool = True
    _by_topic: dict[object, list[int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for index, (topic, _) in enumerate(self.examples):
            self._by_topic.setdefault(topic, []).append(index)

    def before(self, index: int) -> str:
        """What stands before a question; Problem where there are too few examples."""
        if not self.count:
            return ""
        topic = self.topics[index]
        usable = [i for i in self._by_topic.get(topic, [])[: self.count + 1] if not (self.own and i == index)]
        if len(usable) < self.count:
            of = f" of topic {topic!r}" if topic is not None else ""
            raise Problem(
                f"--few-shot {self.count}: there are {len(usable)} examples{of}", "name a file of them with --shots"
            )
        return "".join(f"{self.examples[i][1]}\n\n" for i in usable[: self.count])


def topic_of(line: Line) -> object:
    topic = line.values.get("topic")
    return topic if isinstance(topic, str | int) else None
