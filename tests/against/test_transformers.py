"""Every family against transformers: the shipped spec, shrunk by `--set`, with the weights of a small random model.

Logits, loss, the gradient of every parameter, decoding with a cache and greedy generation must agree; and must not, or
the import must fail, once a feature is taken out of the spec.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
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
from families import FAMILIES, SELECTED, VOCABULARY, WINDOW, Family, build, indexer, save
from torch import Tensor
from transformers import PreTrainedModel

from dskc.runtime.serve.generate import generate
from dskc.runtime.serve.sampling import greedy

BATCH, LENGTH, PROMPT, NEW = 2, 96, 40, 32


@dataclass(frozen=True)
class Theirs:
    """A family's model of transformers, and its checkpoint. logits_BSV: of `tokens_BS`."""

    family: Family
    model: PreTrainedModel
    checkpoint: Path
    tokens_BS: Tensor
    logits_BSV: Tensor


class Models:
    """transformers' models, each built once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[str, Theirs] = {}

    def __getitem__(self, name: str) -> Theirs:
        if name not in self.built:
            family = FAMILIES[name]
            model = build(family.config)
            save(family, model, self.folder / name)
            tokens_BS = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
            with torch.inference_mode():
                logits_BSV = model(tokens_BS).logits
            self.built[name] = Theirs(family, model, self.folder / name, tokens_BS, logits_BSV)
        return self.built[name]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module", params=FAMILIES)
def theirs(request: pytest.FixtureRequest, models: Models) -> Theirs:
    return models[request.param]


@pytest.fixture(scope="module")
def ours(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    family = theirs.family
    yield imported(family.path, theirs.checkpoint, tmp_path_factory.mktemp("runs") / "run", family.shrunk, config=True)


def test_logits_and_loss(theirs: Theirs, ours: Ours) -> None:
    with torch.inference_mode():
        assert error(logits(ours.model, theirs.tokens_BS), theirs.logits_BSV) < TOLERANCE
        expected = theirs.model(theirs.tokens_BS, labels=theirs.tokens_BS).loss
        assert error(losses(ours, theirs.tokens_BS)["next_token"], expected) < TOLERANCE


def test_gradient_of_every_parameter(theirs: Theirs, ours: Ours, tmp_path: Path) -> None:
    expected = their_gradients(theirs.model, theirs.tokens_BS, tmp_path)
    found = our_gradients(ours, theirs.tokens_BS)
    assert found.keys() == expected.keys()
    unreached = {name for name, value in expected.items() if not value.any()}
    assert unreached == {name for name in expected if ".indexer." in name}, "the choice of keys has no gradient"
    assert not any(found.pop(name).any() for name in unreached)
    errors = {name: error(value, expected[name]) for name, value in found.items()}
    assert {name: value for name, value in errors.items() if value >= TOLERANCE} == {}


@pytest.mark.parametrize(
    "steps",
    [(PROMPT, *[1] * (LENGTH - PROMPT)), (5, 1, WINDOW + 2, 1, 1, LENGTH - WINDOW - 10)],
    ids=["prefill and decode", "in chunks"],
)
def test_decoding_with_a_cache(theirs: Theirs, ours: Ours, steps: tuple[int, ...]) -> None:
    ends = torch.tensor(steps).cumsum(0) - 1
    found = decoded(ours, theirs.tokens_BS, steps)
    with torch.inference_mode():
        assert error(found, logits(ours.model, theirs.tokens_BS)[:, ends]) < TOLERANCE
    assert error(found, theirs.logits_BSV[:, ends]) < TOLERANCE


def test_greedy_generation(theirs: Theirs, ours: Ours) -> None:
    for prompt_S in theirs.tokens_BS[:, :PROMPT]:
        expected = theirs.model.generate(prompt_S[None], max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
        found = list(generate(ours.model, ours.serve.forward, prompt_S.tolist(), NEW, greedy))
        assert found == expected and len(found) == NEW
        assert len(set(found)) > 8, "a text of a few tokens would not show much"


def test_balance_is_the_auxiliary_loss_of_mixtral(tmp_path: Path) -> None:
    """transformers adds what the routers of all layers saw before it multiplies; of one layer it is the same loss."""
    family = FAMILIES["mixtral"]
    config = copy.deepcopy(family.config)
    config.num_hidden_layers = 1
    model = build(config)
    model.save_pretrained(tmp_path / "theirs")
    ours = imported(family.path, tmp_path / "theirs", tmp_path / "ours", (*family.shrunk, "layers=1"))
    tokens_BS = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 3  # few, so that few experts are chosen
    expected = model(tokens_BS, labels=tokens_BS, output_router_logits=True).aux_loss / config.num_experts_per_tok
    assert expected > 1.1, "an even choice would not show much"
    with torch.inference_mode():
        assert error(losses(ours, tokens_BS)["balance"], expected) < TOLERANCE


# --- each feature, taken out of the spec or changed


def rotary(theta: str, more: str = "") -> str:
    return f"layers.attention.rope=rope(theta: {theta}{more})"


def llama3(factor: int = 8, low: int = 1, high: int = 4, start: int = 8192) -> str:
    return rotary("500_000", f", scaling: llama3(factor: {factor}, low: {low}, high: {high}, from: {start})")


OTHER_INDEXERS = (
    indexer(top=SELECTED - 1),
    indexer(top=SELECTED + 1),
    indexer(top=LENGTH),
    indexer(pairs="interleaved"),
    indexer().replace("width: Er, ", ""),
    indexer().replace("lightning_indexer(", "lightning_indexer(eps: 0.1, "),
)
GEMMA_NORMS = ("attention_norm", "attention_post_norm", "geglu_norm", "geglu_post_norm")
OTHER_NUMBERS = [
    ("llama", rotary("10_500")),
    ("llama", rotary("10_000", ", pairs: interleaved")),
    ("llama", rotary("10_000", ", width: 8")),
    ("llama", "layers.attention_norm.eps=1e-6"),
    ("llama", "layers.swiglu_norm.eps=1e-6"),
    ("llama", "norm.eps=1e-6"),
    ("llama", "layers.attention.scale=0.3"),
    ("llama", "layers.attention.mask=causal & window(95)"),
    ("deepseek", "layers.attention_norm.eps=1e-5"),
    ("deepseek", "norm.eps=1e-5"),
    ("llama31", rotary("500_000")),
    ("llama31", llama3(factor=7)),
    ("llama31", llama3(low=2)),
    ("llama31", llama3(high=5)),
    ("llama31", llama3(start=4096)),
    ("mistral", "layers.attention.mask=causal"),
    ("mistral", f"layers.attention.mask=causal & window({WINDOW - 1})"),
    ("mistral", f"layers.attention.mask=causal & window({WINDOW + 1})"),
    ("qwen2", rotary("10_000")),
    ("qwen2", "layers.attention_norm.eps=1e-5"),
    ("qwen3", rotary("500_000")),
    ("qwen3", "layers.attention.eps=1e-5"),
    ("qwen3", "layers.swiglu_norm.eps=1e-5"),
    ("qwen3_next", "layers.gated_delta_net.eps=1e-5"),
    ("qwen3_next", "layers.gated_delta_net_norm.eps=1e-5"),
    ("qwen3_next", "layers.gated_delta_net_norm.offset=0"),
    ("qwen3_next", "layers.attention_norm.eps=1e-3"),
    ("qwen3_next", "layers.attention.rope=rope(theta: 10_000, width: R)"),
    ("qwen3_next", "layers.attention.rope=rope(theta: 10_000_000)"),
    ("mixtral", "layers.moe.renormalize=false"),
    ("mixtral", "layers.moe.top=1"),
    ("mixtral", "layers.moe_norm.eps=1e-6"),
    ("qwen3_moe", "layers.moe.renormalize=false"),
    ("qwen3_moe", "layers.moe.top=7"),
    ("deepseek_v2_lite", "layers.moe.top=5"),
    ("deepseek_v2_lite", "layers.moe.scale=2"),
    ("deepseek_v2", "layers.moe.scale=1"),
    ("deepseek_v2", "layers.moe.keep_groups=4"),
    ("deepseek_v2", "layers.moe.keep_groups=8"),
    ("deepseek_v2", "layers.moe.groups=4"),
    ("deepseek_v2", "layers.mla.magnitude=1"),
    ("deepseek_v3", "layers.moe.scale=1"),
    ("deepseek_v3", "layers.moe.keep_groups=3"),
    ("deepseek_v3", "layers.moe.keep_groups=8"),
    ("deepseek_v3", "layers.moe.groups=16"),
    ("kimi_k2", "layers.moe.scale=2.5"),
    ("kimi_k2", "layers.moe.top=7"),
    ("smollm2", rotary("10_000")),
    *(("deepseek_v32", f"layers.mla.index={other}") for other in OTHER_INDEXERS),
    ("deepseek_v32", "layers.mla.magnitude=1"),
    ("gemma2", "layers.attention.softcap=50"),
    ("gemma2", "layers.attention.scale=1 / sqrt(24)"),
    ("gemma2", "layers.attention.mask=causal"),
    ("gemma2", f"layers.attention.mask=causal & window({WINDOW})"),
    ("gemma2", f"layers.attention.mask=if i % 2 == 1 then causal & window({WINDOW}) else causal"),
    ("gemma2", rotary("12_000")),
    ("gemma2", "logits.cap=30"),
    *(("gemma2", f"layers.{norm}.eps=1e-5") for norm in GEMMA_NORMS),
    *(("gemma2", f"layers.{norm}.offset=0") for norm in GEMMA_NORMS),
    ("gemma2", "norm.offset=0"),
    ("gemma3", "layers.attention.offset=0"),
    ("gemma3", "layers.attention.eps=1e-5"),
    ("gemma3", "layers.attention.scale=1 / sqrt(24)"),
    ("gemma3", "layers.attention.mask=causal"),
    ("gemma3", f"layers.attention.mask=if i % 6 == 0 then causal else causal & window({WINDOW})"),
    ("gemma3", rotary("10_000")),
    ("gemma3", rotary("1_000_000")),
    ("gpt_oss", "layers.attention.mask=causal"),
    ("gpt_oss", f"layers.attention.mask=if i % 2 == 1 then causal & window({WINDOW}) else causal"),
    ("gpt_oss", rotary("150_000")),
    ("gpt_oss", rotary("150_000", ", scaling: yarn(factor: 32, from: 4096)")),
    ("gpt_oss", rotary("150_000", ", scaling: yarn(factor: 32, from: 4096, truncate: false, attention: 1)")),
    ("gpt_oss", "layers.moe.limit=7"),
    ("gpt_oss", "layers.moe.alpha=1.702"),
    ("gpt_oss", "layers.moe.top=3"),
    ("gpt_oss", "layers.moe_norm.eps=1e-6"),
    ("gpt_oss", "norm.eps=1e-6"),
]


@pytest.mark.parametrize(("name", "setting"), OTHER_NUMBERS)
def test_logits_differ(name: str, setting: str, models: Models, tmp_path: Path) -> None:
    theirs = models[name]
    ours = imported(theirs.family.path, theirs.checkpoint, tmp_path / "run", (*theirs.family.shrunk, setting))
    with torch.inference_mode():
        assert error(logits(ours.model, theirs.tokens_BS), theirs.logits_BSV) > TOLERANCE


LIBRARY = Path(__file__).parents[2] / "dsl" / "std"
# What no setting reaches: a piece of the spec or of a file of the library, and what stands there instead.
OTHER_TEXT = [
    ("gemma2", "gemma2_2b.dsk", "embed(tokens) * sqrt(D)", "embed(tokens)"),
    ("gemma2", "feed_forward.dsk", "gelu_tanh(gate)", "gelu(gate)"),
    ("gpt_oss", "clamped_experts.dsk", "(up + 1)", "(up + 0)"),
    ("gpt_oss", "clamped_experts.dsk", "min: -limit, ", ""),
    ("gpt_oss", "clamped_experts.dsk", "softmax(gather(score, chosen))", "gather(softmax(score), chosen)"),
]


@pytest.mark.parametrize(("name", "file", "old", "new"), OTHER_TEXT)
def test_logits_differ_by_what_is_written(
    name: str, file: str, old: str, new: str, models: Models, tmp_path: Path
) -> None:
    theirs = models[name]
    own = theirs.family.path
    text = own.read_text()
    if file != own.name:  # the spec imports from a changed copy of the library's file what that one has
        library = (LIBRARY / file).read_text()
        assert old in library
        (tmp_path / file).write_text(library.replace(old, new))
        (words,) = re.findall(r"^use std \{ (.*) \}$", text, re.MULTILINE)
        here = [word for word in words.split(", ") if re.search(rf"^\w+ {word}\b", library, re.MULTILINE)]
        rest = ", ".join(word for word in words.split(", ") if word not in here)
        old, new = f"use std {{ {words} }}", f'use std {{ {rest} }}\nuse "{file}" {{ {", ".join(here)} }}'
    assert old in text
    spec = tmp_path / own.name
    spec.write_text(text.replace(old, new))
    ours = imported(spec, theirs.checkpoint, tmp_path / "run", theirs.family.shrunk)
    with torch.inference_mode():
        assert error(logits(ours.model, theirs.tokens_BS), theirs.logits_BSV) > TOLERANCE


OTHER_WEIGHTS = [
    ("qwen2", "layers.attention.bias=false", "model.layers.*.self_attn.q_proj.bias (0 to 1)"),
    ("llama", "layers.attention.bias=true", "layers.*.attention.q.bias (0 to 1)"),
    ("qwen3", "layers.attention.qk_norm=false", "model.layers.*.self_attn.k_norm.weight (0 to 1)"),
    ("llama", "layers.attention.qk_norm=true", "layers.*.attention.q_norm.weight (0 to 1)"),
    ("qwen3", "dims.E=D / H", "layers.0.attention.q.weight is [128, 128] in the model, and [192, 128]"),
    ("mistral", "dims.G=8", "layers.1.attention.k.weight is [128, 128] in the model, and [64, 128]"),
    ("mixtral", "dims.X=4", "model.layers.*.block_sparse_moe.experts.4.w*.weight (6: "),
    ("mixtral", "dims.X=6", "model.layers.*.block_sparse_moe.experts.5.w*.weight (6: "),
    ("mixtral", "layers.moe.shared=1", "layers.*.moe.shared_expert.down.weight (0 to 1)"),
    ("deepseek_v32", f"layers.mla.index={indexer(heads=8)}", "layers.0.mla.index.q.weight is [160, 40] in the model"),
    ("deepseek_v32", f"layers.mla.index={indexer(width=16)}", "layers.0.mla.index.k.weight is [16, 128] in the model"),
    ("qwen3_moe", "dims.X=11", "model.layers.*.mlp.experts.11.down_proj.weight (0 to 1)"),
    ("deepseek_v2", "layers.moe.shared=1", "layers.1.moe.shared_expert.gate.weight is [24, 128] in the model, and [48"),
    ("gemma3", "layers.attention.qk_norm=false", "model.layers.*.self_attn.k_norm.weight (0 to 6)"),
    ("gpt_oss", "layers.attention.sinks=false", "model.layers.*.self_attn.sinks (0 to 1)"),
    ("gpt_oss", "layers.attention.bias=false", "model.layers.*.self_attn.q_proj.bias (0 to 1)"),
    ("gpt_oss", "layers.attention.out_bias=false", "model.layers.*.self_attn.o_proj.bias (0 to 1)"),
    ("gpt_oss", "layers.moe.bias=false", "model.layers.*.mlp.router.bias (0 to 1)"),
    ("qwen3_next", "layers.gated_delta_net.conv=3", "conv.weight is [184, 1, 3] in the model, and [184, 1, 4]"),
    ("llama", "layers=1", "model.layers.1.mlp.down_proj.weight"),
    ("llama", "layers=3", "model.layers.2.mlp.down_proj.weight"),
]


@pytest.mark.parametrize(("name", "setting", "named"), OTHER_WEIGHTS)
def test_import_fails(name: str, setting: str, named: str, models: Models, tmp_path: Path) -> None:
    theirs = models[name]
    result = import_(theirs.family.path, theirs.checkpoint, tmp_path / "run", (*theirs.family.shrunk, setting))
    assert result.exit_code == 1
    assert named in result.output and "help: " in result.output
    assert list(tmp_path.iterdir()) == []


def test_import_fails_where_heads_are_tied_otherwise(models: Models, tmp_path: Path) -> None:
    untied, tied = models["llama"], models["smollm2"]
    own = ("dims.G=8", rotary("10_000"))
    result = import_(tied.family.path, untied.checkpoint, tmp_path / "a", (*tied.family.shrunk, *own))
    assert result.exit_code == 1
    assert "lm_head.weight is not equal to" in result.output and "head of its own" in result.output
    result = import_(untied.family.path, tied.checkpoint, tmp_path / "b", (*untied.family.shrunk, "dims.G=4"))
    assert result.exit_code == 1
    assert "missing in the checkpoint:\n    lm_head.weight" in result.output
    assert list(tmp_path.iterdir()) == []
