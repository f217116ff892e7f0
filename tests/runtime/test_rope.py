"""Rotary embedding and its scalings against transformers."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rope
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from dskc.runtime.reference import LinearScaling, Llama3Scaling, YarnScaling, rope, rope_table
from dskc.runtime.reference.rope_scaling import Scaling

SCALINGS: list[tuple[str, Scaling | None, dict[str, object]]] = [
    ("default", None, {}),
    ("linear", LinearScaling(factor=4.0), {"factor": 4.0}),
    (
        "llama3",
        Llama3Scaling(factor=8.0, low=1.0, high=4.0, original=8192),
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    (
        "yarn",
        YarnScaling(factor=40.0, original=4096),
        {"factor": 40.0, "original_max_position_embeddings": 4096},
    ),
    (
        "yarn",
        YarnScaling(factor=40.0, original=4096, beta_fast=16, beta_slow=2, mscale=0.7, mscale_all=1.1, truncate=False),
        {
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.7,
            "mscale_all_dim": 1.1,
            "truncate": False,
        },
    ),
    (
        "yarn",
        YarnScaling(factor=4.0, original=4096, attention=1.25),
        {"factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 1.25},
    ),
    ("yarn", YarnScaling(factor=4.0, original=64), {"factor": 4.0, "original_max_position_embeddings": 64}),
    ("yarn", YarnScaling(factor=4.0, original=10**6), {"factor": 4.0, "original_max_position_embeddings": 10**6}),
]


def llama(kind: str, options: dict[str, object], theta: float, width: int) -> LlamaConfig:
    parameters = {"rope_type": kind, "rope_theta": theta, **options}
    return LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        head_dim=width,
        max_position_embeddings=131_072,
        rope_parameters=parameters,
    )


@pytest.mark.parametrize(("kind", "scaling", "options"), SCALINGS)
@pytest.mark.parametrize(("theta", "width"), [(10_000.0, 64), (500_000.0, 128), (1e6, 32)])
def test_frequencies_against_transformers(
    kind: str, scaling: Scaling | None, options: dict[str, object], theta: float, width: int
) -> None:
    config = llama(kind, options, theta, width)
    if kind == "default":
        theirs, factor = LlamaRotaryEmbedding(config).inv_freq, 1.0
    else:
        theirs, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    ours = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if scaling is not None:
        ours = scaling.stretch(ours, theta)
        assert scaling.attention_factor() == pytest.approx(factor, rel=1e-12)
    torch.testing.assert_close(ours.float(), theirs, rtol=3e-6, atol=0)


@pytest.mark.parametrize(("kind", "scaling", "options"), SCALINGS)
def test_rotation_and_gradient_against_transformers(
    kind: str, scaling: Scaling | None, options: dict[str, object]
) -> None:
    theta, width, length = 10_000.0, 64, 50
    module = LlamaRotaryEmbedding(llama(kind, options, theta, width))
    q, k = (torch.randn(2, length, heads, width, requires_grad=True) for heads in (4, 2))
    position = torch.arange(7, 7 + length)
    their_cos, their_sin = module(q, position.unsqueeze(0))
    their_q, their_k = apply_rotary_pos_emb(q, k, their_cos, their_sin, unsqueeze_dim=2)
    cos, sin = rope_table(position, width, theta, scaling)
    assert cos.shape == sin.shape == (length, width // 2) and cos.dtype == torch.float32
    for x, theirs in ((q, their_q), (k, their_k)):
        ours = rope(x, cos, sin)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-5)
        direction = torch.randn_like(ours)
        (a,) = torch.autograd.grad(ours, x, direction)
        (b,) = torch.autograd.grad(theirs, x, direction)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-5)


def test_interleaved_pairs_against_gpt_j() -> None:
    x = torch.randn(2, 9, 3, 16, dtype=torch.float64)
    cos, sin = rope_table(torch.arange(9), 16, 10_000.0, dtype=torch.float64)
    theirs = gptj_rope(x, sin.expand(2, 9, 8), cos.expand(2, 9, 8))
    torch.testing.assert_close(rope(x, cos, sin, pairs="interleaved"), theirs, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(rope(x, cos, sin), theirs)


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_partial_width_rotates_the_front_and_passes_the_rest(pairs) -> None:
    x = torch.randn(2, 9, 3, 24)
    cos, sin = rope_table(torch.arange(9), 16, 10_000.0)
    y = rope(x, cos, sin, pairs)
    assert torch.equal(y[..., 16:], x[..., 16:])
    assert torch.equal(y[..., :16], rope(x[..., :16].contiguous(), cos, sin, pairs))


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_scores_depend_on_distance_alone(pairs) -> None:
    q, k = torch.randn(2, 1, 1, 32, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        tables = [rope_table(torch.tensor([p]), 32, 1e4, dtype=torch.float64) for p in (i, j)]
        return (rope(q[None], *tables[0], pairs) * rope(k[None], *tables[1], pairs)).sum().item()

    assert score(5, 3) == pytest.approx(score(105, 103), rel=1e-9)
    assert score(5, 3) != pytest.approx(score(5, 4), rel=1e-3)


def test_without_a_heads_axis() -> None:
    x = torch.randn(2, 9, 1, 16)
    table = rope_table(torch.arange(9), 16, 10_000.0)
    assert torch.equal(rope(x.squeeze(2), *table), rope(x, *table).squeeze(2))


def test_far_positions_keep_their_angle() -> None:
    position = 1_000_003
    cos, sin = rope_table(torch.tensor([position]), 64, 10_000.0)
    exact = [position * 10_000.0 ** (-2 * i / 64) for i in range(32)]
    assert cos[0].tolist() == pytest.approx([math.cos(a) for a in exact], abs=1e-6)
    assert sin[0].tolist() == pytest.approx([math.sin(a) for a in exact], abs=1e-6)


def test_bf16_is_rounded_once() -> None:
    x = torch.randn(1, 40, 2, 32).bfloat16()
    cos, sin = rope_table(torch.arange(40), 32, 10_000.0)
    assert torch.equal(rope(x, cos, sin), rope(x.float(), cos, sin).bfloat16())
