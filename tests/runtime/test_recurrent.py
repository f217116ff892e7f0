"""The convolution and the gated delta rule against the formulas they stand for, torch and transformers."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_next import modeling_qwen3_next as theirs

import dskc.runtime.reference.flops  # noqa: F401  (tells torch's counter what triangular systems cost)
from dskc.runtime import reference as ref
from dskc.runtime.modules import Conv
from dskc.runtime.serve import Cache

B, G, H, E, V = 2, 2, 6, 4, 5
few = settings(max_examples=15, deadline=None)
LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def drawn(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k, v, gate and beta: keys of length 1, memories that last, and some that are gone at once."""
    generator = torch.Generator().manual_seed(length)
    q, k, v, gate, beta = (
        torch.randn(B, length, *rest, generator=generator, dtype=torch.float64)
        for rest in ((G, E), (G, E), (H, V), (H,), (H,))
    )
    gate = -torch.exp(3 * gate)  # 0.0001 to 1000 and more
    made = (ref.l2_norm(q), ref.l2_norm(k), v, gate, beta.sigmoid())
    return tuple(x.to(dtype).requires_grad_() for x in made)


def rule(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, beta: Tensor, scale: float = E**-0.5) -> Tensor:
    """The formula, position by position and head by head."""
    rows = []
    for b, h in itertools.product(range(q.shape[0]), range(v.shape[2])):
        g, memory = h // (v.shape[2] // k.shape[2]), torch.zeros(q.shape[-1], v.shape[-1], dtype=q.dtype)
        row = []
        for s in range(q.shape[1]):
            memory = gate[b, s, h].exp() * memory
            memory = memory + torch.outer(k[b, s, g], beta[b, s, h] * (v[b, s, h] - k[b, s, g] @ memory))
            row.append(scale * q[b, s, g] @ memory)
        rows.append(torch.stack(row))
    return torch.stack(rows).view(q.shape[0], v.shape[2], q.shape[1], -1).transpose(1, 2)


@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (8, 4), (11, 4), (11, 1), (11, 64)])
def test_gated_delta_and_its_gradients(length: int, chunk: int) -> None:
    leaves = drawn(length)
    found, expected = ref.gated_delta(*leaves, chunk=chunk), rule(*leaves)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = (torch.autograd.grad(y, leaves, direction) for y in (found, expected))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gated_delta_scales_queries() -> None:
    leaves = drawn(6)
    torch.testing.assert_close(ref.gated_delta(*leaves, scale=0.3, chunk=4), rule(*leaves, scale=0.3))


def test_only_the_gradients_asked_for() -> None:
    q, k, v, gate, beta = drawn(5)
    ref.gated_delta(q.detach(), k, v.detach(), gate.detach(), beta, chunk=4).sum().backward()
    assert q.grad is None and v.grad is None and k.grad is not None and beta.grad is not None


@pytest.mark.parametrize("function", ["torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"])
def test_gated_delta_against_transformers(function: str) -> None:
    q, k, v, gate, beta = drawn(70, torch.float32)
    leaves = (q, k, v, gate.clamp(min=-3), beta)  # theirs in chunks is 1e-3 off once a gate has been closed
    expected, _ = getattr(theirs, function)(*leaves)
    torch.testing.assert_close(ref.gated_delta(*leaves), expected, rtol=1e-4, atol=1e-5)


def test_gated_delta_of_other_dtypes_works_in_float32() -> None:
    exact = drawn(20)
    for dtype in (torch.float32, torch.bfloat16):
        rounded = tuple(x.detach().to(dtype) for x in exact)
        found = ref.gated_delta(*rounded, chunk=8)
        assert found.dtype == dtype
        expected = ref.gated_delta(*(x.double() for x in rounded), chunk=8)
        torch.testing.assert_close(found, expected.to(dtype), rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_l2_norm() -> None:
    x = torch.randn(3, 7, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(ref.l2_norm(x, 0.0), F.normalize(x, dim=-1))
    torch.testing.assert_close(ref.l2_norm(x, 0.5), theirs.l2norm(x, eps=0.5))
    assert ref.l2_norm(x.bfloat16()).dtype == torch.bfloat16


# --- the convolution


def conv_by_hand(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = torch.zeros_like(x)
    for s, w in itertools.product(range(x.shape[1]), range(weight.shape[2])):
        at = s - weight.shape[2] + 1 + w
        if at >= 0:
            y[:, s] = y[:, s] + weight[:, 0, w] * x[:, at]
    return y if bias is None else y + bias


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_conv(width: int, length: int) -> None:
    x, weight, bias = (
        torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in ((B, length, 3), (3, 1, width), (3,))
    )
    torch.testing.assert_close(ref.conv(x, weight), conv_by_hand(x, weight))
    found, expected = ref.conv(x, weight, bias), conv_by_hand(x, weight, bias)
    torch.testing.assert_close(found, expected)
    both = (torch.autograd.grad(y.square().sum(), (x, weight, bias)) for y in (found, expected))
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)
    rounded = ref.conv(x.bfloat16(), weight)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, conv_by_hand(x.bfloat16().double(), weight.float().double()).bfloat16())


# --- documents


@few
@given(LENGTHS)
def test_documents_are_as_if_each_were_alone(lengths: list[int]) -> None:
    length = sum(lengths)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).expand(B, -1)
    leaves = drawn(length)
    x, weight = torch.randn(B, length, 3, dtype=torch.float64), torch.randn(3, 1, 4, dtype=torch.float64)
    alone = [rule(*parts) for parts in zip(*(leaf.split(lengths, dim=1) for leaf in leaves), strict=True)]
    torch.testing.assert_close(ref.gated_delta(*leaves, documents, chunk=4), torch.cat(alone, dim=1))
    alone = [conv_by_hand(part, weight) for part in x.split(lengths, dim=1)]
    torch.testing.assert_close(ref.conv(x, weight, None, documents), torch.cat(alone, dim=1))
    if len(lengths) > 1:
        assert not torch.allclose(ref.conv(x, weight), torch.cat(alone, dim=1))


# --- decoding


@few
@given(LENGTHS)
def test_passes_go_on_from_one_another(lengths: list[int]) -> None:
    """Of any sizes, each run twice as if it had failed the first time; and again from the beginning after `clear`."""
    length = sum(lengths)
    leaves = tuple(leaf.detach() for leaf in drawn(length))
    x, module = torch.randn(B, length, 3, dtype=torch.float64), Conv(3, 4, bias=True).double().requires_grad_(False)
    whole = ref.gated_delta(*leaves, chunk=4), module(x)
    cache = Cache(B, length)
    for _ in range(2):
        parts = []
        for *operands, own in zip(*(leaf.split(lengths, dim=1) for leaf in (*leaves, x)), strict=True):
            for _attempt in range(2):
                y = ref.gated_delta(*operands, chunk=4, state=cache.state("memory"))
                z = module(own, state=cache.at("layers", 0).state("conv"))
            cache.advance(own.shape[1])
            parts.append((y, z))
        for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
            torch.testing.assert_close(torch.cat(found, dim=1), expected)
        cache.clear()


def test_states_of_places_are_apart_and_of_the_batch() -> None:
    cache = Cache(2, 10)
    one, other, again = cache.at("a").state("conv"), cache.at("b").state("conv"), cache.at("a").state("conv", 2)
    one.write(torch.ones(2, 3))
    assert one.read() is None, "what is written counts once the pass is over"
    cache.advance(1)
    assert torch.equal(one.read(), torch.ones(2, 3)) and other.read() is None and again.read() is None
    other.write(torch.zeros(2, 1))
    cache.advance(1)
    assert one.read() is not None and other.read() is not None
    with pytest.raises(AssertionError, match="batch of 3"):
        one.write(torch.ones(3, 3))
    one.write(torch.zeros(2, 3))
    cache.clear()
    cache.advance(1)
    assert one.read() is None, "a pass that was never counted leaves nothing behind"


# --- cost


def test_flops_of_a_triangular_system() -> None:
    with FlopCounterMode(display=False) as counter:
        torch.linalg.solve_triangular(torch.eye(4).expand(3, 4, 4), torch.ones(3, 4, 5), upper=False)
    assert counter.get_total_flops() == 3 * 4 * 4 * 5
