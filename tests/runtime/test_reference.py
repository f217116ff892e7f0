"""Norms, activations, linear, arrangement and losses against torch and transformers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dskc.runtime import reference as ref

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def agree(ours: Tensor, theirs: Tensor, leaves: list[Tensor], tolerance: float = 1e-10) -> None:
    """Values and the gradients of a random projection of both agree."""
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(ours.dtype)
    for a, b in zip(
        torch.autograd.grad(ours, leaves, direction), torch.autograd.grad(theirs, leaves, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_rms_norm_against_torch() -> None:
    x, w = rand(2, 3, 16), rand(16)
    agree(ref.rms_norm(x, w, 1e-5), F.rms_norm(x, (16,), w, 1e-5), [x, w])
    agree(ref.rms_norm(x, None, 1e-5), F.rms_norm(x, (16,), None, 1e-5), [x])
    assert not torch.allclose(ref.rms_norm(x, w, 1e-5), ref.rms_norm(x, w, 1e-1))


@pytest.mark.parametrize(("theirs", "offset"), [(LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)])
def test_rms_norm_against_transformers(theirs: type[torch.nn.Module], offset: float) -> None:
    module = theirs(16, eps=1e-5)
    x = rand(2, 3, 16, dtype=torch.float32)
    module.weight.data = rand(16, dtype=torch.float32).detach()
    agree(ref.rms_norm(x, module.weight, 1e-5, offset=offset), module(x), [x, module.weight], 1e-6)


@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm_against_torch(with_bias: bool) -> None:
    x, w = rand(2, 3, 16), rand(16)
    leaves = [x, w, b := rand(16, seed=3)] if with_bias else [x, w]
    b = leaves[2] if with_bias else None
    agree(ref.layer_norm(x, w, b, 1e-5), F.layer_norm(x, (16,), w, b, 1e-5), leaves)


@pytest.mark.parametrize("dtype", FLOATS)
def test_reductions_are_exact_to_the_dtype_of_the_result(dtype: torch.dtype) -> None:
    x = rand(4, 64, dtype=dtype).detach() * 3
    w = rand(64, dtype=dtype).detach()
    for function in (
        lambda x, w: ref.rms_norm(x, w, 1e-6),
        lambda x, w: ref.layer_norm(x, w, w, 1e-6),
        lambda x, w: ref.softmax(x),
        lambda x, w: ref.softcap(x, 2.0),
        lambda x, w: ref.normalize(x.abs()),
    ):
        result = function(x, w)
        assert result.dtype == dtype
        # One rounding at the end, not one for each step: half a unit in the last place, and float32's own error.
        exact = function(x.double(), w.double())
        error = ((result.double() - exact).abs() / exact.abs().clamp(min=0.1)).max().item()
        assert error <= 0.51 * torch.finfo(dtype).eps + (4e-6 if dtype != torch.float64 else 1e-12)


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (ref.silu, "silu"),
        (ref.gelu, "gelu"),
        (ref.gelu_tanh, "gelu_pytorch_tanh"),
        (ref.sigmoid, "sigmoid"),
        (ref.tanh, "tanh"),
        (ref.relu, "relu"),
    ],
)
def test_activations_against_transformers(ours, name: str) -> None:
    x = rand(3, 50)
    agree(ours(x), ACT2FN[name](x), [x])


def test_gelus_differ() -> None:
    x = rand(100)
    assert not torch.equal(ref.gelu(x), ref.gelu_tanh(x))


def test_softmax_along_any_axis() -> None:
    x = rand(3, 4, 5)
    agree(ref.softmax(x, axis=1), x.softmax(1), [x])


def test_softcap() -> None:
    x = rand(50)
    agree(ref.softcap(x, 1.5), 1.5 * torch.tanh(x / 1.5), [x])
    assert ref.softcap(x * 100, 1.5).abs().max() <= 1.5


def test_softplus_is_that_of_torch_and_overflows_nowhere() -> None:
    x = torch.tensor([-1000.0, -20.0, -1.0, 0.0, 1.0, 19.0, 1000.0], dtype=torch.float64)
    assert torch.allclose(ref.softplus(x), torch.nn.functional.softplus(x, threshold=700), rtol=1e-14)


def test_noise_is_standard_normal_while_training_only() -> None:
    x = torch.full((400, 500), 7.0, dtype=torch.bfloat16)
    assert torch.equal(ref.noise(x, training=False), torch.zeros_like(x))
    torch.manual_seed(0)
    y = ref.noise(x, training=True)
    assert y.dtype == x.dtype and abs(float(y.float().mean())) < 0.01 and abs(float(y.float().std()) - 1) < 0.01


def test_dropout() -> None:
    x = torch.ones(100_000)
    assert ref.dropout(x, 0.25, training=False) is x or torch.equal(ref.dropout(x, 0.25, training=False), x)
    torch.manual_seed(0)
    y = ref.dropout(x, 0.25, training=True)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((y == 0).float().mean().item() - 0.25) < 0.01


def test_linear_casts_the_weight_or_all() -> None:
    x, w, b = rand(2, 8, dtype=torch.bfloat16), rand(4, 8, dtype=torch.float32), rand(4, dtype=torch.float32)
    agree(ref.linear(x, w, b), F.linear(x, w.bfloat16(), b.bfloat16()), [x, w, b], 1e-6)
    agree(ref.linear(x, w, b, compute=torch.float32), F.linear(x.float(), w, b), [x, w, b], 1e-6)
    agree(ref.linear(x, w, compute=torch.float64), x.double() @ w.double().T, [x, w])


def test_embed_and_unembed_share_a_weight() -> None:
    w, tokens = rand(10, 4), torch.tensor([[1, 9, 1]])
    agree(ref.embed(tokens, w), w[tokens], [w])
    x = rand(2, 3, 4)
    agree(ref.unembed(x, w), x @ w.T, [x, w])


def test_arrange() -> None:
    x = torch.arange(12.0).view(1, 2, 6)
    a, b = ref.split(x, [2, 4])
    assert a.shape == (1, 2, 2) and b.shape == (1, 2, 4)
    assert torch.equal(ref.concat(a, b), x)
    assert ref.gather(x, torch.tensor([[[5, 0], [1, 1]]])).tolist() == [[[5.0, 0.0], [7.0, 7.0]]]


@given(st.integers(1, 6), st.integers(-8, 8))
def test_shift_looks_ahead(size: int, n: int) -> None:
    x = torch.arange(1, 2 * size + 1).view(2, size)
    expected = [[row[s + n] if 0 <= s + n < size else -7 for s in range(size)] for row in x.tolist()]
    assert ref.shift(x, n, fill=-7).tolist() == expected
    assert ref.shift(x[..., None].expand(2, size, 3), n, fill=-7)[..., 2].tolist() == expected


def test_next_token_against_cross_entropy() -> None:
    logits, targets = rand(2, 5, 11), torch.randint(0, 11, (2, 5))
    targets[0, 1] = targets[1, 4] = -100
    flat, flat_targets = logits.flatten(0, 1), targets.flatten()
    agree(ref.next_token(logits, targets), F.cross_entropy(flat, flat_targets), [logits])
    smooth = F.cross_entropy(flat, flat_targets, label_smoothing=0.1)
    agree(ref.next_token(logits, targets, rows=partial(ref.token_losses, smoothing=0.1)), smooth, [logits])
    z = 1e-2 * flat[flat_targets != -100].logsumexp(-1).square().mean()
    agree(
        ref.next_token(logits, targets, rows=partial(ref.token_losses, z=1e-2)),
        F.cross_entropy(flat, flat_targets) + z,
        [logits],
    )


def test_next_token_in_bf16_sums_in_float32() -> None:
    logits, targets = rand(2, 50, 100, dtype=torch.bfloat16), torch.randint(0, 100, (2, 50))
    loss = ref.next_token(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), ref.next_token(logits.double(), targets), rtol=1e-6, atol=0)


def test_next_token_with_nothing_to_predict_is_zero() -> None:
    logits = rand(2, 5, 11)
    loss = ref.next_token(logits, torch.full((2, 5), -100), rows=partial(ref.token_losses, z=1e-2, smoothing=0.1))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


def test_next_token_further_ahead_stays_within_the_document() -> None:
    logits = rand(1, 5, 11)
    targets = torch.tensor([[3, 4, -100, 6, 7]])
    # Position 0 predicts the 4; 1 and 2 would cross the boundary; 3 predicts the 7; 4 has nothing after it.
    expected = F.cross_entropy(logits[0, [0, 3]], torch.tensor([4, 7]))
    agree(ref.next_token(logits, targets, ahead=2), expected, [logits])
    assert ref.next_token(logits, targets, ahead=3).item() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 5))
def test_next_token_ahead_of_shifted_tokens(ahead: int, length: int, seed: int) -> None:
    logits, targets = rand(2, length, 5, seed=seed), torch.randint(0, 5, (2, length))
    terms = [
        F.cross_entropy(logits[b, s], targets[b, s + ahead - 1]) for b in range(2) for s in range(length - ahead + 1)
    ]
    expected = torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(ref.next_token(logits, targets, ahead=ahead), expected)
