"""Rows of unequal lengths, against torch's padding and against each row by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from dskc.runtime.data import IGNORED, Example, answer, collate
from dskc.runtime.problem import Problem
from dskc.runtime.reference import next_token

END = 9
IDS = st.lists(st.integers(0, 8), min_size=1, max_size=20)


@settings(deadline=None)
@given(rows=st.lists(IDS, min_size=1, max_size=6), multiple=st.sampled_from([1, 2, 8]), shift=st.integers(0, 5))
def test_rows_are_padded_like_torch_pads_them(rows: list[list[int]], multiple: int, shift: int) -> None:
    targets = [[(each + shift) % 9 for each in row] for row in rows]
    batch = collate([Example(*pair) for pair in zip(rows, targets, strict=True)], END, multiple)
    longest = max(map(len, rows))
    assert batch.tokens is not None and batch.targets is not None and batch.documents is not None
    length = batch.tokens.shape[1]
    assert length % multiple == 0 and longest <= length < longest + multiple
    for found, given_rows, filler in ((batch.tokens, rows, END), (batch.targets, targets, IGNORED)):
        expected = pad_sequence([torch.tensor(row) for row in given_rows], batch_first=True, padding_value=filler)
        assert torch.equal(found[:, :longest], expected)
        assert (found[:, longest:] == filler).all() and found.dtype == torch.int64
    for row, own in enumerate(rows):
        assert batch.documents[row].tolist() == [0] * len(own) + [1] * (length - len(own))
    assert batch.documents.dtype == torch.int32
    assert batch.padding == len(rows) * length - sum(map(len, rows))
    assert batch.positions == sum(map(len, rows)) == batch.predicted


@settings(deadline=None)
@given(rows=st.lists(st.tuples(IDS, st.lists(st.integers(0, 8), max_size=9)), min_size=1, max_size=4))
def test_the_loss_of_answers_is_that_of_each_alone(rows: list[tuple[list[int], list[int]]]) -> None:
    """Of a model that looks back, computed for each pair by a plain sum over the ids of the answer and the end."""
    torch.manual_seed(0)
    embed, logits = nn.Embedding(10, 6).double(), nn.Linear(6, 10).double()

    def model(tokens_BT: torch.Tensor) -> torch.Tensor:
        return logits(embed(tokens_BT).cumsum(1))

    total, count = 0.0, 0
    for prompt, ids in rows:
        whole = [*prompt, *ids, END]
        scores = model(torch.tensor([whole[:-1]]))[0].log_softmax(-1).detach()
        for at in range(len(prompt), len(whole)):
            total, count = total - float(scores[at - 1, whole[at]]), count + 1
    batch = collate([answer(prompt, ids, END) for prompt, ids in rows], END)
    assert batch.tokens is not None and batch.predicted == count
    assert next_token(model(batch.tokens), batch.targets).item() == pytest.approx(total / count)


def test_labels_are_stacked_and_an_input_is_named() -> None:
    examples = [Example([1, 2], labels={"kind": n, "reward": torch.tensor([n / 2])}) for n in (3, 1)]
    batch = collate(examples, END, input="code")
    assert batch.tokens is None and batch.targets is None
    assert batch.inputs["code"].shape == (2, 8) and batch.positions == 4
    assert batch.labels["kind"].tolist() == [3, 1] and batch.labels["kind"].dtype == torch.int64
    assert batch.labels["reward"].tolist() == [[1.5], [0.5]]


def test_a_row_holds_no_more_than_it_may() -> None:
    batch = collate([Example([1] * 9)], END, most=10)
    assert batch.tokens is not None and batch.tokens.shape == (1, 10)
    with pytest.raises(Problem, match="example 2 has 11 tokens, and a row holds 10"):
        collate([Example([1]), Example([1] * 11)], END, most=10)
