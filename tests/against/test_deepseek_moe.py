"""DeepSeekMoE 16B, which has no class of its own in transformers: the text model of DeepSeek-OCR-2 is built like it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from differential import TOLERANCE, Ours, decoded, error, import_, imported, logits
from families import SPECS, VOCABULARY
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import DeepseekOcr2TextConfig
from transformers.models.deepseek_ocr2.modeling_deepseek_ocr2 import DeepseekOcr2TextModel

SPEC = SPECS / "deepseek_moe_16b.dsk"
EXPERTS, INNER = 10, 24
SETTINGS = (f"dims.V={VOCABULARY}", "dims.D=32", "dims.F=48", "dims.H=4", f"dims.X={EXPERTS}", f"dims.Fx={INNER}",
            "layers=3")  # fmt: skip


def theirs() -> tuple[DeepseekOcr2TextModel, Tensor]:
    """Their model without a head, every weight random, and a head [V, D]."""
    config = DeepseekOcr2TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, moe_intermediate_size=INNER, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=EXPERTS, n_shared_experts=2,
        num_experts_per_tok=6, mlp_layer_types=["dense", "sparse", "sparse"], attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = DeepseekOcr2TextModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        scale = 1.0 if "embed" in name else parameter.shape[-1] ** -0.5
        parameter.copy_(
            1 + 0.3 * torch.randn_like(parameter) if "norm" in name else scale * torch.randn_like(parameter)
        )
    return model, torch.randn(VOCABULARY, 32) / 6


def hub_tensors(model: DeepseekOcr2TextModel, head: Tensor) -> dict[str, Tensor]:
    """Their weights by the names of the hub's checkpoint, where every expert's three maps are tensors of their own."""
    found = {"lm_head.weight": head}
    for name, value in model.named_parameters():
        path = f"model.{name}"
        if path.endswith("experts.gate_up_proj"):
            for i, both in enumerate(value):
                for part, half in zip(("gate", "up"), both.split(INNER), strict=True):
                    found[path.replace("gate_up_proj", f"{i}.{part}_proj.weight")] = half.clone()
        elif path.endswith("experts.down_proj"):
            found |= {path.replace("down_proj", f"{i}.down_proj.weight"): one.clone() for i, one in enumerate(value)}
        else:
            found[path] = value
    return found


class Pair:
    """Their logits [B, S, V] of some tokens, and their checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model, head = theirs()
        save_file(hub_tensors(model, head), folder / "model.safetensors", {"format": "pt"})
        self.tokens_BS = torch.randint(VOCABULARY, (2, 40))
        self.logits_BSV = model(self.tokens_BS).last_hidden_state @ head.T


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def ours(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return imported(SPEC, pair.folder, tmp_path_factory.mktemp("runs") / "run", SETTINGS)


def test_logits_and_decoding(pair: Pair, ours: Ours) -> None:
    with torch.inference_mode():
        assert error(logits(ours.model, pair.tokens_BS), pair.logits_BSV) < TOLERANCE
    steps = (13, 1, 1, 7, 18)
    ends = torch.tensor(steps).cumsum(0) - 1
    assert error(decoded(ours, pair.tokens_BS, steps), pair.logits_BSV[:, ends]) < TOLERANCE


@pytest.mark.parametrize(
    "setting", ["layers.moe.renormalize=true", "layers.moe.top=5", "layers.attention.rope=rope(theta: 9_000)"]
)
def test_logits_differ(pair: Pair, setting: str, tmp_path: Path) -> None:
    other = imported(SPEC, pair.folder, tmp_path / "run", (*SETTINGS, setting))
    with torch.inference_mode():
        assert error(logits(other.model, pair.tokens_BS), pair.logits_BSV) > TOLERANCE


def test_import_fails_with_another_number_of_shared_experts(pair: Pair, tmp_path: Path) -> None:
    result = import_(SPEC, pair.folder, tmp_path / "run", (*SETTINGS, "layers.moe.shared=1"))
    assert result.exit_code == 1 and "shared_expert.gate.weight is [24, 32]" in result.output, result.output
