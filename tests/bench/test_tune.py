"""Tuning where memory is short: with less of it, and else a word on the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dskc.runtime.bench import tune as tuner
from dskc.runtime.kernels import use_kernels
from dskc.runtime.problem import Problem

NANO = Path(__file__).resolve().parents[2] / "generated" / "deepseek_nano"
without = pytest.mark.skipif(torch.cuda.is_available(), reason="on a CPU, with references")


def short(*_: object) -> None:
    raise torch.OutOfMemoryError("no more")


@pytest.fixture(autouse=True)
def by_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "kernels_in_use", lambda device: True)


@without
def test_a_step_of_training_and_passes_of_decoding() -> None:
    with use_kernels("reference"):
        assert tuner.tune(NANO, "lion", 2, 16, print) == (2, 16)


@without
def test_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[torch.Size] = []
    kept = tuner._let_go

    def told(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        let_go.append(parameter.shape)
        kept(parameter)
        assert parameter.grad is None

    monkeypatch.setattr(tuner, "_train", short)
    monkeypatch.setattr(tuner, "_let_go", told)
    with use_kernels("reference"):
        assert tuner.tune(NANO, "adamw", 1, 16, print) == (1, 16)
    assert len(let_go) == 14  # each weight of the one layer, of both ends and of the last norm


@without
def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_train", short)
    monkeypatch.setattr(tuner, "_train_lean", short)
    with pytest.raises(Problem, match="with 1 sequences of 16 does not fit") as raised:
        tuner.tune(NANO, "adamw", 1, 16, print)
    assert raised.value.help == "give a smaller --batch or --length"


def test_a_sequence_that_predicts_nothing() -> None:
    with pytest.raises(Problem, match="a sequence of 1 tokens predicts nothing"):
        tuner.tune(NANO, "adamw", 1, 1, print)
