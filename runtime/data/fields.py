"""What a model takes and what its results are compared with: the tensors that a file of records may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Input:
    """An input of the model as a recipe feeds it. shape: the axes after B. optional: a batch may come without it.
    ids: it holds numbers of tokens, as text is made of.
    """

    shape: tuple[int, ...]
    optional: bool = False
    ids: bool = False


@dataclass(frozen=True)
class Task:
    """A result that a `classify` or `regress` term compares with labels. loss: which of the two. shape: of the result,
    the axes after B; the last of `classify` is its classes.
    """

    loss: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.loss in ("classify", "regress"), f"a task of loss {self.loss!r}"


@dataclass(frozen=True)
class Fields:
    """All that may be in a record. vocabulary: ids of tokens stay under it. next_token: tokens are predicted."""

    inputs: Mapping[str, Input]
    tasks: Mapping[str, Task] = field(default_factory=dict)
    vocabulary: int = 0
    next_token: bool = True

    def refuses_text(self, entry: str) -> str | None:
        """Why a corpus of text cannot be trained on as this input alone, or None when it can."""
        needed = [name for name, one in self.inputs.items() if name != entry and not one.optional]
        if entry not in self.inputs:
            return f"the model takes no `{entry}`"
        if not self.next_token:
            return "the objective predicts no tokens"
        return f"the model does not do without `{needed[0]}`" if needed else None

    def describe(self) -> str:
        """`inputs image [N, 16, 4], audio [N, 50, 20]; labels digit [N] of 10 classes`."""
        inputs = ", ".join(f"{name} {axes(one.shape)}" for name, one in self.inputs.items())
        labels = [
            f"{name} [N] of {one.shape[-1]} classes" if one.loss == "classify" else f"{name} {axes(one.shape)}"
            for name, one in self.tasks.items()
        ]
        if "tokens" in self.inputs and self.next_token:
            labels.append(f"targets {axes(self.inputs['tokens'].shape)}")
        return f"inputs {inputs}; labels {', '.join(labels)}"


def axes(shape: tuple[int, ...]) -> str:
    """`[N, 16, 4]` of (16, 4)."""
    return f"[{', '.join(['N', *map(str, shape)])}]"
