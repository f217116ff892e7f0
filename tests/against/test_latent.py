"""Latent attention against transformers' DeepSeek-V2, V3 and V3.2, all of whose layers here are dense.

Logits, loss, the gradient of every parameter, decoding with a cache and greedy generation must agree; and must not, or
the import must fail, once a part of it is taken out of the spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from differential import (
    TOLERANCE,
    Ours,
    decoded,
    error,
    import_,
    imported,
    logits,
    losses,
    our_gradients,
    their_gradients,
)
from families import build
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config, DeepseekV32Config, PretrainedConfig, PreTrainedModel

from dskc.runtime.serve.generate import generate
from dskc.runtime.serve.sampling import greedy

VOCABULARY, HIDDEN, INNER, LAYERS, HEADS = 104, 72, 48, 2, 6
BATCH, LENGTH, PROMPT, NEW = 2, 48, 20, 24
YARN = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.9,
    "mscale_all_dim": 0.8, "original_max_position_embeddings": 4096,
}  # fmt: skip

SPEC = """
dsk 1

use std { mla, swiglu, deepseek_v3_hf }

/// Latent attention and dense feed-forward layers.
model latent(tokens: ids[B, S]) -> logits: [B, S, V] {
  dims { V = 104, D = 72, F = 48, H = 6, Rq = 40, Rc = 24, En = 16, Er = 8, Ev = 12 }
  x = embed(tokens, V -> D)
  repeat 2 layers {
    x += mla(
        rms_norm(x), heads: H, q_rank: Rq, kv_rank: Rc, nope: En, rotary: Er, value: Ev,
        magnitude: 0.08 * log(40) + 1,
        rope: rope(theta: 10_000, pairs: interleaved,
                   scaling: yarn(factor: 40, from: 4096, mscale: 0.9, mscale_all: 0.8)),
    )
    x += swiglu(rms_norm(x), inner: F)
  }
  logits = linear(rms_norm(x) as norm, D -> V)
  weights deepseek_v3_hf
}
"""

TOP = 12  # keys that a query attends to, fewer than there are
INDEX = {"index_n_heads": 8, "index_head_dim": 20, "index_topk": TOP}
HALVES = "rope(width: Er, scaling: yarn(factor: 40, from: 4096, mscale: 0.9, mscale_all: 0.8))"
SPARSE = SPEC.replace("deepseek_v3_hf", "deepseek_v32_hf").replace("use std { mla", "use std { lightning_indexer, mla")
SPARSE = SPARSE.replace(
    "mscale_all: 0.8)),\n",
    f"mscale_all: 0.8)),\n        index: lightning_indexer(heads: 8, width: 20, top: {TOP}, rope: {HALVES}),\n",
)


def sizes(q_rank: int | None) -> dict[str, object]:
    """What both configurations have in common. transformers' norms of latents have an eps of 1e-6, whatever is set."""
    return {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "q_lora_rank": q_rank, "kv_lora_rank": 24,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": LAYERS,
        "max_position_embeddings": 163_840, "rms_norm_eps": 1e-6,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A configuration of transformers, and the spec that says the same."""

    config: PretrainedConfig
    spec: str


KINDS = {
    "v3": Kind(DeepseekV3Config(**sizes(40), rope_parameters=YARN), SPEC),
    "v3 with biases": Kind(
        DeepseekV3Config(**sizes(40), attention_bias=True, rope_parameters=YARN),
        SPEC.replace("q_rank: Rq", "bias: true, q_rank: Rq"),
    ),
    "v2": Kind(
        DeepseekV2Config(**sizes(40), rope_parameters=YARN),
        SPEC.replace("deepseek_v3_hf", "deepseek_v2_hf"),
    ),
    "v2 lite": Kind(
        DeepseekV2Config(**sizes(None), rope_parameters=YARN),
        SPEC.replace("deepseek_v3_hf", "deepseek_v2_hf").replace("q_rank: Rq, ", ""),
    ),
    "v32": Kind(DeepseekV32Config(**sizes(40), **INDEX, rope_parameters=YARN), SPARSE),
}


@dataclass(frozen=True)
class Pair:
    """A model of transformers with its checkpoint, and ours made of that."""

    theirs: PreTrainedModel
    checkpoint: Path
    ours: Ours
    tokens_BS: Tensor
    logits_BSV: Tensor


def written(folder: Path, text: str) -> Path:
    spec = folder / "latent.dsk"
    spec.write_text(text, encoding="utf-8")
    return spec


class Pairs:
    """Each kind, built once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[str, Pair] = {}

    def __getitem__(self, name: str) -> Pair:
        if name not in self.built:
            folder = self.folder / name.replace(" ", "_")
            model = build(KINDS[name].config)
            for parameter, value in model.named_parameters():
                if parameter.endswith(("proj.bias", "mqa.bias")):
                    value.data *= 0.001  # no larger than what they are added to, or all tokens would look alike
            model.save_pretrained(folder / "theirs")
            tokens_BS = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                logits_BSV = model(tokens_BS).logits
            ours = imported(written(folder, KINDS[name].spec), folder / "theirs", folder / "run")
            self.built[name] = Pair(model, folder / "theirs", ours, tokens_BS, logits_BSV)
        return self.built[name]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return Pairs(tmp_path_factory.mktemp("latent"))


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, pairs: Pairs) -> Pair:
    return pairs[request.param]


def test_logits_and_loss(pair: Pair) -> None:
    with torch.inference_mode():
        assert error(logits(pair.ours.model, pair.tokens_BS), pair.logits_BSV) < TOLERANCE
        expected = pair.theirs(pair.tokens_BS, labels=pair.tokens_BS).loss
        assert error(losses(pair.ours, pair.tokens_BS)["next_token"], expected) < TOLERANCE


def test_gradient_of_every_parameter(pair: Pair, tmp_path: Path) -> None:
    expected = their_gradients(pair.theirs, pair.tokens_BS, tmp_path)
    found = our_gradients(pair.ours, pair.tokens_BS)
    assert found.keys() == expected.keys()
    unreached = {name for name, value in expected.items() if not value.any()}
    assert unreached == {name for name in expected if ".indexer." in name}, "a choice has no gradient"
    assert not any(found.pop(name).any() for name in unreached)
    errors = {name: error(value, expected[name]) for name, value in found.items()}
    assert {name: value for name, value in errors.items() if value >= TOLERANCE} == {}


@pytest.mark.parametrize("steps", [(PROMPT, *[1] * (LENGTH - PROMPT)), (5, 1, 19, 1, 1, LENGTH - 27)])
def test_decoding_with_a_cache(pair: Pair, steps: tuple[int, ...]) -> None:
    ends = torch.tensor(steps).cumsum(0) - 1
    found = decoded(pair.ours, pair.tokens_BS, steps)
    with torch.inference_mode():
        assert error(found, logits(pair.ours.model, pair.tokens_BS)[:, ends]) < TOLERANCE
    assert error(found, pair.logits_BSV[:, ends]) < TOLERANCE


def test_greedy_generation(pair: Pair) -> None:
    for prompt_S in pair.tokens_BS[:, :PROMPT]:
        expected = pair.theirs.generate(prompt_S[None], max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
        found = list(generate(pair.ours.model, pair.ours.serve.forward, prompt_S.tolist(), NEW, greedy))
        assert found == expected and len(found) == NEW
        assert len(set(found)) > 8, "a text of a few tokens would not show much"


# --- each part, taken out of the spec or changed


def index(heads: int = 8, width: int = 20, top: int = TOP, rope: str = HALVES, more: str = "") -> str:
    return f"layers.mla.index=lightning_indexer(heads: {heads}, width: {width}, top: {top}, rope: {rope}{more})"


OTHER_NUMBERS = [
    ("v3", "layers.mla.magnitude=1"),
    ("v3", "layers.mla.magnitude=0.09 * log(40) + 1"),
    ("v3", "layers.mla.eps=1e-3"),
    ("v3", "layers.mla.mask=causal & window(17)"),
    *(
        ("v3", f"layers.mla.rope=rope(theta: {other})")
        for other in (
            "10_000, scaling: yarn(factor: 40, from: 4096, mscale: 0.9, mscale_all: 0.8)",
            "10_000, pairs: interleaved, scaling: yarn(factor: 40, from: 4096, mscale: 1, mscale_all: 1)",
            "10_000, pairs: interleaved, scaling: yarn(factor: 4, from: 4096, mscale: 0.9, mscale_all: 0.8)",
            "10_000, pairs: interleaved, width: 4, scaling: yarn(factor: 40, from: 4096, attention: 1)",
            "9_000, pairs: interleaved, scaling: yarn(factor: 40, from: 4096, mscale: 0.9, mscale_all: 0.8)",
        )
    ),
    ("v32", index(top=TOP - 1)),
    ("v32", index(top=LENGTH)),
    ("v32", index(more=", eps: 0.1")),
    ("v32", "layers.mla.mask=causal & window(17)"),
    ("v32", index(rope="rope(width: Er, pairs: interleaved)")),
    ("v32", index(rope="rope()")),
]
OTHER_WEIGHTS = [
    ("v3", "layers.mla.bias=true", "q_a_proj.bias"),
    ("v3", "dims.Rc=16", "kv_a_proj_with_mqa"),
    ("v3", "dims.Rq=32", "q_a_proj"),
    ("v3", "dims.Ev=16", "kv_b_proj"),
    ("v3", "dims.H=3", "q_b_proj"),
    ("v32", index(heads=4), "indexer"),
    ("v32", index(width=16), "indexer"),
]


@pytest.mark.parametrize(("name", "setting"), OTHER_NUMBERS)
def test_other_numbers(pairs: Pairs, name: str, setting: str, tmp_path: Path) -> None:
    pair = pairs[name]
    ours = imported(written(tmp_path, KINDS[name].spec), pair.checkpoint, tmp_path / "run", (setting,))
    with torch.inference_mode():
        assert error(logits(ours.model, pair.tokens_BS), pair.logits_BSV) > 10 * TOLERANCE


@pytest.mark.parametrize(("name", "setting", "says"), OTHER_WEIGHTS)
def test_other_weights(pairs: Pairs, name: str, setting: str, says: str, tmp_path: Path) -> None:
    result = import_(written(tmp_path, KINDS[name].spec), pairs[name].checkpoint, tmp_path / "run", (setting,))
    assert result.exit_code == 1 and says in result.output


def test_without_a_rank_of_queries_its_weights_are_not_those_of_the_checkpoint(pairs: Pairs, tmp_path: Path) -> None:
    spec = written(tmp_path, SPEC.replace("q_rank: Rq, ", ""))
    result = import_(spec, pairs["v3"].checkpoint, tmp_path / "run")
    assert result.exit_code == 1 and "q_proj" in result.output


def test_without_its_index_a_checkpoint_has_tensors_over(pairs: Pairs, tmp_path: Path) -> None:
    result = import_(written(tmp_path, SPEC), pairs["v32"].checkpoint, tmp_path / "run")
    assert result.exit_code == 1 and "indexer" in result.output
