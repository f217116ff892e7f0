"""DeepSeek-V3's module for the token after the next, against one put together from transformers' parts.

The weights are those of the hub's checkpoint by name: the layer behind the last, its norms and its projection.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from differential import TOLERANCE, Ours, batch, error, import_, imported
from families import AHEAD, FAMILIES, VOCABULARY, ahead_model, build, save
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from dskc.runtime.weights import export_weights

FAMILY = FAMILIES["deepseek_v3"]
BATCH, LENGTH = 2, 64


@dataclass(frozen=True)
class Theirs:
    """The model, the model whose last layer is the module's block, and the tensors of the checkpoint."""

    model: PreTrainedModel
    block: PreTrainedModel
    tensors: dict[str, Tensor]

    def next_logits(self, tokens_BS: Tensor) -> Tensor:
        """Logits [B, S, V] of the token after the next: of the tokens that follow (0 behind the last), and of the last
        hidden states behind the final norm.
        """
        eps = self.model.config.rms_norm_eps

        def norm(x: Tensor, name: str) -> Tensor:
            return F.rms_norm(x, x.shape[-1:], self.tensors[f"{AHEAD}{name}.weight"], eps)

        following_BS = torch.cat([tokens_BS[:, 1:], torch.zeros_like(tokens_BS[:, :1])], dim=1)
        embedded_BSD = F.embedding(following_BS, self.tensors["model.embed_tokens.weight"])
        hidden_BSD = self.model.model(tokens_BS).last_hidden_state
        both = torch.cat([norm(embedded_BSD, "enorm"), norm(hidden_BSD, "hnorm")], dim=-1)
        h_BSD = both @ self.tensors[f"{AHEAD}eh_proj.weight"].T
        length = tokens_BS.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
        turns = self.block.model.rotary_emb(h_BSD, torch.arange(length)[None])
        h_BSD = self.block.model.layers[-1](h_BSD, attention_mask=mask, position_embeddings=turns)
        return norm(h_BSD, "shared_head.norm") @ self.tensors["lm_head.weight"].T


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead") / "theirs"
    save(FAMILY, build(FAMILY.config), folder)
    return folder


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Theirs:
    return Theirs(build(FAMILY.config), ahead_model(FAMILY), load_file(checkpoint / "model.safetensors"))


@pytest.fixture(scope="module")
def ours(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return imported(FAMILY.path, checkpoint, tmp_path_factory.mktemp("runs") / "run", FAMILY.shrunk)


@pytest.fixture(scope="module")
def tokens_BS() -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))


def test_logits_of_the_token_after_the_next(theirs: Theirs, ours: Ours, tokens_BS: Tensor) -> None:
    with torch.inference_mode():
        assert error(ours.model(tokens_BS).next, theirs.next_logits(tokens_BS)) < TOLERANCE


def test_losses_and_their_sum(theirs: Theirs, ours: Ours, tokens_BS: Tensor) -> None:
    found = ours.trainer.objective(ours.model, batch(tokens_BS))
    with torch.no_grad():
        first = theirs.model(tokens_BS, labels=tokens_BS).loss
        second = F.cross_entropy(theirs.next_logits(tokens_BS)[:, :-2].flatten(0, 1), tokens_BS[:, 2:].flatten())
    assert error(found["next_token"], first) < TOLERANCE
    assert error(found["next_token_next"], second) < TOLERANCE
    assert error(found["loss"], first + 0.3 * second + 1e-4 * found["balance"]) < TOLERANCE


def test_gradients_of_its_own_weights(theirs: Theirs, ours: Ours, tokens_BS: Tensor) -> None:
    block = theirs.block.model.layers[-1]
    own = {name: value for name, value in theirs.tensors.items() if name.startswith(AHEAD)}
    leaves = {name: value for name, value in own.items() if "norm.weight" in name or "eh_proj" in name}
    leaves = {name: value for name, value in leaves.items() if "layernorm" not in name}
    for value in leaves.values():
        value.requires_grad_(True)
    block.zero_grad()
    next_BSV = theirs.next_logits(tokens_BS)[:, :-2]
    F.cross_entropy(next_BSV.flatten(0, 1), tokens_BS[:, 2:].flatten()).backward()
    expected = {name: value.grad for name, value in leaves.items()}
    attention = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
    parts = (*(f"self_attn.{name}" for name in attention), "mlp.gate", "mlp.shared_experts.down_proj")
    for part in (*parts, "input_layernorm", "post_attention_layernorm"):
        expected[f"{AHEAD}{part}.weight"] = block.get_parameter(f"{part}.weight").grad
    down_XDF = block.get_parameter("mlp.experts.down_proj").grad
    expected |= {f"{AHEAD}mlp.experts.{i}.down_proj.weight": down_DF for i, down_DF in enumerate(down_XDF)}
    assert len(leaves) == 4

    model = ours.model.requires_grad_(True)
    model.zero_grad()
    ours.trainer.objective(model, batch(tokens_BS))["next_token_next"].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if name.startswith("mtp.")}
    model.requires_grad_(False)
    found = export_weights(ours.rules, grads)
    errors = {name: error(found[name], value) for name, value in expected.items() if value.norm() > 0}
    assert {name: value for name, value in errors.items() if value >= TOLERANCE} == {}
    assert len(errors) > 0.8 * len(expected)


HUB_NAMES = [
    *(f"{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "embed_tokens")),
    *(f"shared_head.{name}.weight" for name in ("norm", "head")),
    *(f"{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")),
    *(f"self_attn.{name}.weight" for name in ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa")),
    *(f"self_attn.{name}.weight" for name in ("kv_a_layernorm", "kv_b_proj", "o_proj")),
    "mlp.gate.weight", "mlp.gate.e_score_correction_bias",
    *(f"mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")),
    *(f"mlp.experts.{i}.{name}_proj.weight" for i in range(32) for name in ("gate", "up", "down")),
]  # fmt: skip


def test_its_tensors_are_those_of_the_hub(theirs: Theirs, ours: Ours) -> None:
    names = {name.removeprefix(AHEAD) for name in theirs.tensors if name.startswith(AHEAD)}
    assert names == set(HUB_NAMES)
    exported = export_weights(ours.rules, ours.model.state_dict())
    copies = {f"{AHEAD}embed_tokens.weight", f"{AHEAD}shared_head.head.weight"}
    assert exported.keys() == theirs.tensors.keys() - copies
    for name, value in exported.items():
        assert torch.equal(value, theirs.tensors[name]), name
        assert value.dtype == torch.float32


@pytest.mark.parametrize("name", ["embed_tokens", "shared_head.head"])
def test_a_copy_that_is_none_is_refused(name: str, checkpoint: Path, theirs: Theirs, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "theirs")
    tensors = {key: value.detach() for key, value in theirs.tensors.items()}
    tensors[f"{AHEAD}{name}.weight"] = tensors[f"{AHEAD}{name}.weight"] + 1
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    result = import_(FAMILY.path, tmp_path / "theirs", tmp_path / "run", FAMILY.shrunk)
    assert result.exit_code == 1 and f"{AHEAD}{name}.weight is not equal to" in result.output


def test_the_bias_of_choices_stays_in_float32(checkpoint: Path, theirs: Theirs, tmp_path: Path) -> None:
    tensors = {
        name: value.detach().bfloat16() if "bias" not in name else value for name, value in theirs.tensors.items()
    }
    shutil.copytree(checkpoint, tmp_path / "theirs")
    save_file(tensors, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    state = imported(FAMILY.path, tmp_path / "theirs", tmp_path / "run", FAMILY.shrunk).model.state_dict()
    assert state["mtp.moe.router.weight"].dtype == torch.bfloat16
    expected = theirs.tensors["model.layers.4.mlp.gate.e_score_correction_bias"]
    assert torch.equal(state["layers.4.moe.balance_bias.bias"], expected)
