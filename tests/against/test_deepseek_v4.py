"""DeepSeek-V4 against transformers: the shipped spec, shrunk to five layers that have all kinds of layers among them.

Its checkpoint has the names of DeepSeek's own, which transformers reads as well; what it saves is nearly those.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import Result
from differential import TOLERANCE, Ours, decoded, error, import_, imported, logits, losses
from families import SPECS, VOCABULARY, WINDOW, build
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, DeepseekV4Config, PreTrainedModel

from dskc.runtime.serve.generate import generate
from dskc.runtime.serve.sampling import greedy
from dskc.runtime.weights import export_weights

BATCH, LENGTH, PROMPT, NEW = 2, 75, 35, 24
SPEC = SPECS / "deepseek_v4_flash.dsk"
YARN = {"rope_type": "yarn", "factor": 16, "original_max_position_embeddings": 65_536, "rope_theta": 10_000.0}
CONFIG = DeepseekV4Config(
    vocab_size=VOCABULARY,
    hidden_size=48,
    moe_intermediate_size=40,
    num_hidden_layers=5,
    num_attention_heads=4,
    head_dim=16,
    qk_rope_head_dim=8,
    q_lora_rank=24,
    o_groups=2,
    o_lora_rank=12,
    sliding_window=WINDOW,
    compress_ratios=[0, 0, 4, 128, 4],
    compress_rate_hca=8,
    index_n_heads=8,
    index_head_dim=12,
    index_topk=3,
    num_hash_layers=3,
    n_routed_experts=7,
    num_experts_per_tok=3,
    swiglu_limit=0.5,
    hc_mult=3,
    hc_sinkhorn_iters=3,
    hc_eps=0.01,
    rms_norm_eps=0.03,
    rope_parameters=YARN,
    max_position_embeddings=16 * 65_536,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
EPS = (
    "layers.attention_streams.norm_eps",
    "layers.attention_norm.eps",
    "layers.attention.eps",
    "layers.moe_streams.norm_eps",
    "layers.moe_norm.eps",
    "streams.norm_eps",
    "norm.eps",
)  # so large that each of them counts
DIMS = {
    "V": VOCABULARY, "D": 48, "N": 3, "H": 4, "E": 16, "Er": 8, "Rq": 24, "G": 2, "Ro": 12, "Hi": 8, "Ei": 12,
    "Mi": 4, "Ki": 3, "Mh": 8, "X": 7, "F": 40,
}  # fmt: skip
SHRUNK = (
    *(f"dims.{name}={size}" for name, size in DIMS.items()),
    "layers=5",
    f"layers.attention.mask=causal & window({WINDOW})",
    "layers.moe.top=3",
    "layers.moe.limit=0.5",
    *(f"{path}=0.03" for path in EPS),
    *(
        f"layers.{path}.{name}"
        for path in ("attention_streams", "moe_streams")
        for name in ("iterations=3", "eps=0.01")
    ),
    "streams.eps=0.01",
)
# transformers' names on saving are those of DeepSeek but for these, as it does not know them from within its model.
HUB = {"^model\\.": "", "^embed_tokens": "embed", "^hc_head\\.hc_": "hc_head_"}
INDEXER = re.compile(r"layers\.\d+\.attn\.indexer\.")  # which no gradient reaches: it only chooses


def hub(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that transformers saved, by DeepSeek's names."""
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in HUB.items():
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def save(model: PreTrainedModel, folder: Path) -> Path:
    """The checkpoint of a model under DeepSeek's names."""
    model.save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file(hub(load_file(file)), file, metadata={"format": "pt"})
    return folder


@dataclass(frozen=True)
class Theirs:
    """logits_BSV: of `tokens_BS`."""

    model: PreTrainedModel
    checkpoint: Path
    tokens_BS: Tensor
    logits_BSV: Tensor


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    model = build(CONFIG)
    generator = torch.Generator().manual_seed(3)
    for layer in model.model.layers:
        gate = layer.mlp.gate
        if layer.mlp.is_hash:
            drawn = torch.rand(VOCABULARY, CONFIG.n_routed_experts, generator=generator)
            gate.tid2eid.copy_(drawn.argsort(-1)[:, : CONFIG.num_experts_per_tok])
        else:
            gate.e_score_correction_bias.copy_(0.1 * torch.randn(CONFIG.n_routed_experts, generator=generator))
    with torch.no_grad():  # the outputs of layers large beside the embedding, so that all of them count
        for name, parameter in model.named_parameters():
            if "down_proj" in name:
                parameter.mul_(20.0)
            if "embed" in name:
                parameter.mul_(30.0)
    checkpoint = save(model, tmp_path_factory.mktemp("transformers") / "v4")
    tokens_BS = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return Theirs(model, checkpoint, tokens_BS, model(tokens_BS).logits)


@pytest.fixture(scope="module")
def ours(theirs: Theirs, tmp_path_factory: pytest.TempPathFactory) -> Ours:
    return imported(SPEC, theirs.checkpoint, tmp_path_factory.mktemp("runs") / "run", SHRUNK)


def test_the_checkpoint_has_names_that_transformers_reads(theirs: Theirs) -> None:
    model = AutoModelForCausalLM.from_pretrained(theirs.checkpoint, attn_implementation="eager").eval()
    with torch.inference_mode():
        assert torch.equal(model(theirs.tokens_BS).logits, theirs.logits_BSV)


def test_logits_and_loss(theirs: Theirs, ours: Ours) -> None:
    with torch.inference_mode():
        assert error(logits(ours.model, theirs.tokens_BS), theirs.logits_BSV) < TOLERANCE
        expected = theirs.model(theirs.tokens_BS, labels=theirs.tokens_BS).loss
        assert error(losses(ours, theirs.tokens_BS)["next_token"], expected) < TOLERANCE


def test_gradient_of_every_parameter(theirs: Theirs, ours: Ours, tmp_path: Path) -> None:
    expected = _their_gradients(theirs, tmp_path)
    found = _our_gradients(theirs, ours)
    assert found.keys() == expected.keys()
    untouched = {name for name, value in expected.items() if not value.any()}
    assert untouched == {name for name in expected if INDEXER.match(name)}
    assert not any(found.pop(name).any() for name in untouched)
    errors = {name: error(value, expected[name]) for name, value in found.items()}
    assert {name: value for name, value in errors.items() if value >= TOLERANCE} == {}


def _their_gradients(theirs: Theirs, folder: Path) -> dict[str, Tensor]:
    model = copy.deepcopy(theirs.model)
    model(theirs.tokens_BS, labels=theirs.tokens_BS).loss.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    tensors = load_file(save(model, folder) / "model.safetensors")
    return {name: value for name, value in tensors.items() if not name.endswith(("tid2eid", "ffn.gate.bias"))}


def _our_gradients(theirs: Theirs, ours: Ours) -> dict[str, Tensor]:
    model = ours.model.requires_grad_(True)
    model.zero_grad()
    losses(ours, theirs.tokens_BS)["next_token"].backward()
    named = model.named_parameters()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named}
    model.requires_grad_(False)
    return export_weights(ours.rules, gradients)


@pytest.mark.parametrize(
    "steps",
    [(PROMPT, *[1] * (LENGTH - PROMPT)), (5, 1, WINDOW + 2, 1, 1, LENGTH - WINDOW - 10), (1,) * LENGTH],
    ids=["prefill and decode", "in chunks", "one by one"],
)
def test_decoding_with_a_cache(theirs: Theirs, ours: Ours, steps: tuple[int, ...]) -> None:
    ends = torch.tensor(steps).cumsum(0) - 1
    assert error(decoded(ours, theirs.tokens_BS, steps), theirs.logits_BSV[:, ends]) < TOLERANCE


def test_greedy_generation(theirs: Theirs, ours: Ours) -> None:
    for prompt_S in theirs.tokens_BS[:, :PROMPT]:
        expected = theirs.model.generate(prompt_S[None], max_new_tokens=NEW, do_sample=False)[0, PROMPT:].tolist()
        found = list(generate(ours.model, ours.serve.forward, prompt_S.tolist(), NEW, greedy))
        assert found == expected and len(found) == NEW
        assert len(set(found)) > 4, "a text of a few tokens would not show much"


def test_export_gives_the_checkpoint(theirs: Theirs, ours: Ours) -> None:
    expected = load_file(theirs.checkpoint / "model.safetensors")
    found = export_weights(ours.rules, ours.model.state_dict())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# --- each feature, taken out of the spec or changed


def with_(setting: str) -> tuple[str, ...]:
    """The settings with one more, which takes the place of what they say of the same."""
    return (*(said for said in SHRUNK if said.partition("=")[0] != setting.partition("=")[0]), setting)


ROPE = "rope(theta: 160_000, pairs: interleaved, scaling: yarn(factor: 16, from: 65_536, attention: 1))"
OTHER_NUMBERS = [
    *(f"{path}=1e-6" for path in EPS),
    f"layers.attention.mask=causal & window({WINDOW + 1})",
    "layers.attention.rope=rope(theta: 10_000, pairs: interleaved)",  # in all layers, as the first two have it
    f"layers.attention.rope={ROPE}",
    "dims.Ki=4",
    "layers.attention_streams.iterations=2",
    "layers.moe_streams.eps=1e-6",
    "streams.eps=1e-6",
    "layers.moe.scale=1",
    "layers.moe.limit=10",
]


@pytest.mark.parametrize("setting", OTHER_NUMBERS)
def test_logits_differ(setting: str, theirs: Theirs, tmp_path: Path) -> None:
    ours = imported(SPEC, theirs.checkpoint, tmp_path / "run", with_(setting))
    with torch.inference_mode():
        assert error(logits(ours.model, theirs.tokens_BS), theirs.logits_BSV) > TOLERANCE


OTHER_WEIGHTS = [
    ("layers.attention.every=0", "layers.*.attn.compressor.ape"),
    ("layers.attention.overlap=false", "layers.2.attention.memory.gate.weight is [16, 48] in the model, and [32, 48]"),
    ("layers.attention.top=0", "layers.*.attn.indexer.wq_b.weight (2, 4)"),
    ("dims.Mh=9", "layers.3.attention.memory.position_bias.weight is [9, 16] in the model, and [8, 16]"),
    ("dims.N=4", "layers.0.attention_streams.map.weight is [24, 192] in the model, and [15, 144]"),
    ("layers.moe.shared=0", "layers.*.ffn.shared_experts.w*.weight"),
]


@pytest.mark.parametrize(("setting", "named"), OTHER_WEIGHTS)
def test_import_fails(setting: str, named: str, theirs: Theirs, tmp_path: Path) -> None:
    _fails(import_(SPEC, theirs.checkpoint, tmp_path / "run", with_(setting)), named)


OTHER_LINES = [
    ("if i < 3 {", "if i < 2 {", "layers.2.ffn.gate.tid2eid"),
    ("if i < 3 {", "if i < 4 {", "layers.3.ffn.gate.bias"),
    ("every: if i < 2 then 0 else", "every:", "layers.*.attn.compressor."),
]


@pytest.mark.parametrize(("line", "other", "named"), OTHER_LINES)
def test_import_fails_with_another_line(line: str, other: str, named: str, theirs: Theirs, tmp_path: Path) -> None:
    text = SPEC.read_text()
    assert text.count(line) == 1
    spec = tmp_path / "deepseek_v4_flash.dsk"
    spec.write_text(text.replace(line, other))
    _fails(import_(spec, theirs.checkpoint, tmp_path / "run", SHRUNK), named)


def test_a_table_is_of_integers(theirs: Theirs, tmp_path: Path) -> None:
    tensors = load_file(theirs.checkpoint / "model.safetensors")
    tensors["layers.0.ffn.gate.tid2eid"] = tensors["layers.0.ffn.gate.tid2eid"].float()
    save_file(tensors, tmp_path / "model.safetensors")
    said = "`layers.0.ffn.gate.tid2eid` of"
    _fails(import_(SPEC, tmp_path / "model.safetensors", tmp_path / "run", SHRUNK), said)


def _fails(result: Result, named: str) -> None:
    assert result.exit_code == 1
    assert named in result.output
