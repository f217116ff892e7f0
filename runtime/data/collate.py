"""Rows of unequal lengths in one batch: one example a row, padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import Problem
from .batch import IGNORED, Batch

MULTIPLE = 8  # of lengths: products of matrices are fastest on GPUs where their sizes are such in 16 bits


@dataclass(frozen=True)
class Example:
    """A row of its own. ids: [L], what the model reads. targets: [L], the id to predict after each, IGNORED where none
    is; None where the row has labels only. labels: as in Batch, of this row: a class, or numbers [..].
    """

    ids: Sequence[int]
    targets: Sequence[int] | None = None
    labels: Mapping[str, int | Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert len(self.ids) >= 1, "an example without ids"
        assert self.targets is None or len(self.targets) == len(self.ids), (len(self.ids), self.targets)


def answer(prompt: Sequence[int], ids: Sequence[int], end: int) -> Example:
    """An answer to learn to a prompt: each of its ids and the `end` after it is a target, none of the prompt's is."""
    assert len(prompt) >= 1, "there is nothing to read before the answer"
    targets = [IGNORED] * (len(prompt) - 1) + [*ids, end]
    return Example([*prompt, *ids], targets)


def collate(
    examples: Sequence[Example], end: int, multiple: int = MULTIPLE, most: int | None = None, input: str = "tokens"
) -> Batch:
    """Examples as rows [B, T] of a batch: T is the longest of them, rounded up to a multiple, and `most` at most.

    Rows are filled up with the id `end` on the right, where nothing is predicted, in a document of its own: in a causal
    model what comes later changes nothing, and others keep it out by a mask with `documents`. All examples or none have
    targets, and all have the same labels. Raises Problem for an example of more than `most` ids.
    """
    longest = max(len(example.ids) for example in examples)
    if most is not None and longest > most:
        number = next(n for n, example in enumerate(examples) if len(example.ids) > most)
        raise Problem(
            f"example {number + 1} has {len(examples[number].ids):,} tokens, and a row holds {most:,}",
            "leave long examples out, cut them, or make S larger in the spec",
        )
    length = -(-longest // multiple) * multiple
    length = length if most is None else min(length, most)
    tokens_BT = torch.full((len(examples), length), end, dtype=torch.int64)
    targets_BT = torch.full_like(tokens_BT, IGNORED)
    documents_BT = torch.ones(tokens_BT.shape, dtype=torch.int32)
    for row, example in enumerate(examples):
        filled = len(example.ids)
        tokens_BT[row, :filled] = torch.tensor(example.ids)
        documents_BT[row, :filled] = 0
        if example.targets is not None:
            targets_BT[row, :filled] = torch.tensor(example.targets)
    predicts = {example.targets is not None for example in examples}
    assert len(predicts) == 1, "some examples have targets and some have none"
    return Batch(
        tokens_BT if input == "tokens" else None,
        targets_BT if predicts == {True} else None,
        documents_BT,
        {} if input == "tokens" else {input: tokens_BT},
        _labels(examples),
        padding=tokens_BT.numel() - sum(len(example.ids) for example in examples),
    )


def _labels(examples: Sequence[Example]) -> dict[str, Tensor]:
    names = examples[0].labels.keys()
    assert all(example.labels.keys() == names for example in examples), "examples with different labels"
    return {name: torch.stack([torch.as_tensor(example.labels[name]) for example in examples]) for name in names}
