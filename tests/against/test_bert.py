"""A bidirectional encoder against transformers' BERT, with the weights of a small random one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from differential import TOLERANCE, error, imported
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from dskc.runtime.problem import Problem
from dskc.runtime.serve.cache import Cache

SPEC = Path(__file__).with_name("bert.dsk")
CONFIG = BertConfig(
    vocab_size=104,
    hidden_size=128,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    max_position_embeddings=64,
)


@pytest.fixture(scope="module")
def theirs() -> BertForMaskedLM:
    torch.manual_seed(0)
    model = BertForMaskedLM(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            one = 1.0 if "LayerNorm.weight" in name else 0.0
            parameter.copy_(one + torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.2))
    return model


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions, and two kinds: all [2, 30]."""
    tokens_BS = torch.randint(104, (2, 30), generator=torch.Generator().manual_seed(1))
    return tokens_BS, torch.arange(30).expand(2, -1), (torch.arange(30) >= 12).long().expand(2, -1)


@pytest.fixture(scope="module")
def expected(theirs: BertForMaskedLM, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    with torch.no_grad():
        return theirs(inputs[0], token_type_ids=inputs[2]).logits


def test_logits_and_serving(
    theirs: BertForMaskedLM, inputs: tuple[Tensor, Tensor, Tensor], expected: Tensor, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path / "theirs")
    ours = imported(SPEC, tmp_path / "theirs", tmp_path / "run")
    with torch.inference_mode():
        assert error(ours.model(*inputs), expected) < TOLERANCE
        cache = Cache(2, 60)
        last = ours.serve.forward(ours.model, *inputs, cache)
        assert error(last, expected[:, -1]) < TOLERANCE
        with pytest.raises(Problem, match="takes a text at once"):
            ours.serve.forward(ours.model, *inputs, cache)


@pytest.mark.parametrize(
    ("old", "new"),
    [("everything", "causal"), ("+ embed(kind", "- embed(kind"), ("1e-12", "1e-3"), ("norm(gelu(", "norm(gelu_tanh(")],
)
def test_logits_differ(
    old: str, new: str, theirs: BertForMaskedLM, inputs: tuple[Tensor, Tensor, Tensor], expected: Tensor, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path / "theirs")
    spec = tmp_path / "bert.dsk"
    assert old in SPEC.read_text()
    spec.write_text(SPEC.read_text().replace(old, new))
    ours = imported(spec, tmp_path / "theirs", tmp_path / "run")
    with torch.inference_mode():
        assert error(ours.model(*inputs), expected) > TOLERANCE
