"""Published architectures at a small size: transformers' configuration, and the settings that shrink our spec to it."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV32Config,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

SPECS = Path(__file__).parents[2] / "specs"
VOCABULARY, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 104, 128, 96, 2, 8, 4
AHEAD = "model.layers.61."  # where DeepSeek-V3's checkpoint has its module for the token after the next
SELECTED = 12  # positions that a query attends to, fewer than there are
WINDOW = 17  # positions, fewer than there are tokens
# Of weights by name: attention that picks, and a residual stream so small that the eps of every norm counts.
SCALES = {"q_proj": 2.0, "k_proj": 2.0, "o_proj": 0.05, "out_proj": 0.05, "down_proj": 0.05}
NORMALISED = {"q_proj": 0.03, "k_proj": 0.03}  # where a norm follows, whose eps counts too
# Norms behind attention and feed-forward make their results wide again, and embeddings are multiplied by sqrt(D).
GEMMA = {"post_attention_layernorm": 0.02, "post_feedforward_layernorm": 0.02, "embed": 0.03}
GPT_OSS = {"embed": 4.0, "v_proj.bias": 0.3, "gate_up_proj_bias": 0.5}  # biases are the same at every position


@dataclass(frozen=True)
class Family:
    """config: of transformers, all but its sizes. settings: those of the spec besides dims and layers. ahead: whether
    it has a module for the token after the next, which transformers leaves out."""

    spec: str
    config: PretrainedConfig
    settings: tuple[str, ...] = ()
    ahead: bool = False
    folder: Path = SPECS

    @property
    def path(self) -> Path:
        return self.folder / f"{self.spec}.dsk"

    @property
    def shrunk(self) -> tuple[str, ...]:
        """The `--set` that bring the shipped spec to the size of the configuration."""
        config = self.config
        inner = ("dims.F", config.intermediate_size)
        sizes = [
            ("dims.V", VOCABULARY),
            ("dims.D", HIDDEN),
            ("dims.H", HEADS),
            inner,
            ("layers", config.num_hidden_layers),
        ]
        return (*(f"{path}={size}" for path, size in sizes), *self.settings)


def rope(theta: float, **scaling: float | str) -> dict[str, float | str]:
    """transformers' `rope_parameters`."""
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def sizes(kv_heads: int = KV_HEADS) -> dict[str, int | None]:
    """What all configurations have in common."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 131_072,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


GROUPED = (f"dims.G={KV_HEADS}",)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
LATENT = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "rms_norm_eps": 1e-6}
LATENT_DIMS = ("dims.Rc=24", "dims.En=16", "dims.Er=8", "dims.Ev=12")


def yarn(theta: float, factor: float, mscale: float = 1.0, beta_fast: float = 32.0) -> dict[str, float | str]:
    """transformers' `rope_parameters` of DeepSeek-V2 and what came of it."""
    more = {"mscale": mscale, "mscale_all_dim": mscale, "beta_fast": beta_fast, "beta_slow": 1.0}
    return rope(theta, **more, factor=factor, original_max_position_embeddings=4096) | {"rope_type": "yarn"}


def latent(
    experts: int, top: int, shared: int, dense: int, layers: int, q_rank: int | None = 40, **more: object
) -> dict[str, object]:
    """What configurations of DeepSeek-V2 and V3 have in common: latent attention, and experts behind dense layers."""
    return {
        **sizes(HEADS), **LATENT, "num_hidden_layers": layers, "q_lora_rank": q_rank, "n_routed_experts": experts,
        "num_experts_per_tok": top, "n_shared_experts": shared, "first_k_dense_replace": dense,
        "moe_intermediate_size": 24, **more,
    }  # fmt: skip


def latent_dims(experts: int) -> tuple[str, ...]:
    return (*LATENT_DIMS, f"dims.X={experts}", "dims.Fx=24")


def indexer(top: int = SELECTED, heads: int = 16, width: int = 20, pairs: str = "half") -> str:
    """That of DeepSeek-V3.2, small; of so many heads that no two keys score 0, of which transformers takes either."""
    scaling = "yarn(factor: 40, from: 4096, mscale: 1, mscale_all: 1)"
    turn = f"rope(theta: 10_000, width: Er, pairs: {pairs}, scaling: {scaling})"
    return f"lightning_indexer(heads: {heads}, width: {width}, top: {top}, rope: {turn})"


FAMILIES = {
    "llama": Family("llama2_7b", LlamaConfig(**sizes(HEADS), rms_norm_eps=1e-5, rope_parameters=rope(10_000.0))),
    "deepseek": Family("deepseek_7b", LlamaConfig(**sizes(HEADS), rms_norm_eps=1e-6, rope_parameters=rope(10_000.0))),
    "llama31": Family(
        "llama31_8b", LlamaConfig(**sizes(), rms_norm_eps=1e-5, rope_parameters=rope(500_000.0, **LLAMA3)), GROUPED
    ),
    "mistral": Family(
        "mistral_7b",
        MistralConfig(**sizes(), rms_norm_eps=1e-5, rope_parameters=rope(10_000.0), sliding_window=WINDOW),
        (*GROUPED, f"layers.attention.mask=causal & window({WINDOW})"),
    ),
    "qwen2": Family("qwen25_7b", Qwen2Config(**sizes(), rms_norm_eps=1e-6, rope_parameters=rope(1e6)), GROUPED),
    "qwen3": Family(
        "qwen3_8b",
        Qwen3Config(**sizes(), rms_norm_eps=1e-6, rope_parameters=rope(1e6), head_dim=24),
        (*GROUPED, "dims.E=24"),
    ),
    "mixtral": Family(
        "mixtral_8x7b",
        MixtralConfig(
            **sizes(), rms_norm_eps=1e-5, rope_parameters=rope(1e6), num_local_experts=5, num_experts_per_tok=2
        ),
        (*GROUPED, "dims.X=5"),
    ),
    "qwen3_moe": Family(
        "qwen3_30b_a3b",
        Qwen3MoeConfig(
            **sizes(),
            rms_norm_eps=1e-6,
            rope_parameters=rope(1e6),
            head_dim=24,
            num_experts=12,
            num_experts_per_tok=8,
            moe_intermediate_size=INNER,
            norm_topk_prob=True,
            decoder_sparse_step=1,
        ),
        (*GROUPED, "dims.E=24", "dims.X=12"),
    ),
    "deepseek_v2_lite": Family(
        "deepseek_v2_lite",
        DeepseekV2Config(
            **latent(10, 6, 2, 1, 3, q_rank=None),
            rope_parameters=yarn(10_000.0, 40.0, 0.707),
            topk_method="greedy",
            routed_scaling_factor=1.0,
            n_group=1,
            topk_group=1,
        ),
        latent_dims(10),
    ),
    "deepseek_v2": Family(
        "deepseek_v2",
        DeepseekV2Config(
            **latent(24, 6, 2, 1, 3),
            rope_parameters=yarn(10_000.0, 40.0),
            topk_method="group_limited_greedy",
            routed_scaling_factor=16.0,
            n_group=8,
            topk_group=3,
        ),
        (*latent_dims(24), "dims.Rq=40"),
    ),
    "deepseek_v3": Family(
        "deepseek_v3",
        DeepseekV3Config(
            **latent(32, 8, 1, 3, 5),
            rope_parameters=yarn(10_000.0, 40.0),
            routed_scaling_factor=2.5,
            n_group=8,
            topk_group=4,
            norm_topk_prob=True,
        ),
        (*latent_dims(32), "dims.Rq=40"),
        ahead=True,
    ),
    "deepseek_v32": Family(
        "deepseek_v32",
        DeepseekV32Config(
            **latent(24, 8, 1, 3, 5),
            rope_parameters=yarn(10_000.0, 40.0),
            routed_scaling_factor=2.5,
            n_group=8,
            topk_group=4,
            norm_topk_prob=True,
            index_n_heads=16,
            index_head_dim=20,
            index_topk=SELECTED,
        ),
        (*latent_dims(24), "dims.Rq=40", *(f"{path}.mla.index={indexer()}" for path in ("layers", "mtp"))),
        ahead=True,
    ),
    "kimi_k2": Family(
        "kimi_k2",
        DeepseekV3Config(
            **latent(12, 8, 1, 1, 3),
            rope_parameters=yarn(50_000.0, 32.0, beta_fast=1.0),
            routed_scaling_factor=2.827,
            n_group=1,
            topk_group=1,
            norm_topk_prob=True,
        ),
        (*latent_dims(12), "dims.Rq=40"),
    ),
    "qwen3_next": Family(
        "qwen3_next",
        Qwen3NextConfig(
            **sizes() | {"num_hidden_layers": 4},
            rms_norm_eps=1e-6,
            rope_parameters=rope(1e7, partial_rotary_factor=0.25),
            head_dim=24,
            linear_num_key_heads=2,
            linear_num_value_heads=6,
            linear_key_head_dim=16,
            linear_value_head_dim=20,
            num_experts=0,
        ),
        folder=Path(__file__).parent,
    ),
    "smollm2": Family(
        "smollm2_135m",
        LlamaConfig(**sizes(), rms_norm_eps=1e-5, rope_parameters=rope(100_000.0), tie_word_embeddings=True),
        GROUPED,
    ),
    "gemma2": Family(
        "gemma2_2b",
        Gemma2Config(
            **sizes(),
            rms_norm_eps=1e-6,
            rope_parameters=rope(10_000.0),
            head_dim=24,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=0.01,
        ),
        (
            *GROUPED,
            "dims.E=24",
            "layers.attention.scale=1 / sqrt(20)",
            f"layers.attention.mask=if i % 2 == 0 then causal & window({WINDOW}) else causal",
            "layers.attention.softcap=5",
            "logits.cap=0.01",
        ),
    ),
    "gemma3": Family(
        "gemma3_270m",
        Gemma3TextConfig(
            **sizes(1) | {"num_hidden_layers": 7},
            rms_norm_eps=1e-6,
            head_dim=24,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
        ),
        (
            "dims.G=1",
            "dims.E=24",
            "layers.attention.scale=1 / sqrt(20)",
            f"layers.attention.mask=if i % 6 == 5 then causal else causal & window({WINDOW})",
        ),
    ),
    "gpt_oss": Family(
        "gpt_oss_20b",
        GptOssConfig(
            **sizes(),
            rms_norm_eps=1e-5,
            rope_parameters=rope(150_000.0, **YARN),
            head_dim=24,
            sliding_window=WINDOW,
            num_local_experts=5,
            num_experts_per_tok=2,
            swiglu_limit=0.8,
            swiglu_alpha=1.5,
        ),
        (
            *GROUPED,
            "dims.E=24",
            "dims.X=5",
            f"layers.attention.mask=if i % 2 == 0 then causal & window({WINDOW}) else causal",
            "layers.moe.top=2",
            "layers.moe.limit=0.8",
            "layers.moe.alpha=1.5",
        ),
    ),
}


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model of transformers in float32 whose every parameter is random, also those that begin as ones and zeros."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    biases = {name: value for name, value in model.named_buffers() if name.endswith("e_score_correction_bias")}
    scales = SCALES | (NORMALISED if any("q_norm" in name for name in parameters) else {})
    gemma = config.model_type.startswith("gemma")
    scales |= GEMMA if gemma else GPT_OSS if config.model_type == "gpt_oss" else {}
    with torch.no_grad():
        for name, parameter in {**parameters, **biases}.items():
            value = _drawn(name, parameter, scales, generator)
            parameter.copy_(value - 1 if gemma and "norm" in name else value)  # Gemma keeps norms less 1
    return model


def save(family: Family, model: PreTrainedModel, folder: Path) -> None:
    """The checkpoint of a family's model, as transformers saves it; with the module for the token after the next as
    the hub's checkpoint has it: as the layer behind the last, 61 there, with copies of the embedding and of the head.
    """
    model.save_pretrained(folder)
    if not family.ahead:
        return
    tensors = load_file(folder / "model.safetensors")
    with tempfile.TemporaryDirectory() as other:
        ahead_model(family).save_pretrained(other)
        further = load_file(Path(other) / "model.safetensors")
    last = f"model.layers.{family.config.num_hidden_layers}."
    block = {name.replace(last, AHEAD): value for name, value in further.items() if name.startswith(last)}
    save_file({**tensors, **block, **ahead_tensors(tensors)}, folder / "model.safetensors", {"format": "pt"})


def ahead_model(family: Family) -> PreTrainedModel:
    """A model with a layer more, whose last is the block of the module for the token after the next."""
    config = copy.deepcopy(family.config)
    config.num_hidden_layers += 1
    for kinds in ("mlp_layer_types", "layer_types"):  # of each layer, where a configuration has them
        if getattr(config, kinds, None):
            setattr(config, kinds, [*getattr(config, kinds), getattr(config, kinds)[-1]])
    return build(config, seed=1)


def ahead_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rest of that module."""
    generator = torch.Generator().manual_seed(2)
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    width = embedding.shape[-1]
    norms = {name: torch.zeros(width) for name in ("enorm", "hnorm", "shared_head.norm")}
    found = {**norms, "eh_proj": torch.zeros(width, 2 * width)}
    drawn = {f"{AHEAD}{name}.weight": _drawn(name, like, SCALES, generator) for name, like in found.items()}
    copies = {"embed_tokens": embedding, "shared_head.head": head}
    return drawn | {f"{AHEAD}{name}.weight": value.clone() for name, value in copies.items()}


def _drawn(name: str, like: Tensor, scales: Mapping[str, float], generator: torch.Generator) -> Tensor:
    value = torch.randn(like.shape, generator=generator)
    scale = next((scale for part, scale in scales.items() if part in name), 1.0)
    if "norm" in name:
        return scale * (1 + 0.3 * value)
    if name.endswith("e_score_correction_bias"):
        return 0.1 * value  # beside scores of sigmoids: it decides many choices, and every expert still has some
    if name.endswith(("bias", "sinks")):
        return min(scale, 1.0) ** 2 * value
    if "embed" in name:
        return 0.01 * scale * value
    return scale * value / math.sqrt(like.shape[-1])
