"""Routing, dispatch and the experts' products, against transformers' Mixtral, papers' formulas and brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

import dskc.runtime.reference.flops  # noqa: F401
from dskc.runtime.reference import (
    combine,
    dispatch,
    grouped_linear,
    load_balance,
    normalize,
    sequence_balance,
    silu,
    softmax,
    top_k,
)


def offsets(*counts: int) -> Tensor:
    return torch.tensor(counts).cumsum(0).to(torch.int32)


def test_top_k_gives_ties_to_the_lower_index() -> None:
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert top_k(score, 4).tolist() == [[1, 2, 4, 3], [0, 1, 2, 3]]
    assert top_k(score.bfloat16(), 2).dtype == torch.int64


def test_top_k_against_torch() -> None:
    score = torch.randn(3, 7, 16)
    assert torch.equal(top_k(score, 5), score.topk(5).indices)
    with pytest.raises(AssertionError, match="17 of 16"):
        top_k(score, 17)


def test_normalize() -> None:
    x = torch.rand(3, 4, dtype=torch.float64)
    torch.testing.assert_close(normalize(x), x / x.sum(-1, keepdim=True))
    assert not normalize(torch.zeros(3)).any()


def test_load_balance_against_transformers() -> None:
    logits = torch.randn(2, 10, 8, requires_grad=True)
    score = softmax(logits)
    ours = load_balance(score, top_k(score, 3))
    theirs = load_balancing_loss_func((logits.flatten(0, 1),), num_experts=8, top_k=3) / 3
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    (a,), (b,) = torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_even_use_costs_one_and_a_favourite_costs_more() -> None:
    score = torch.full((1, 8, 4), 0.25)
    chosen = torch.arange(16).view(1, 8, 2) % 4
    assert load_balance(score, chosen).item() == pytest.approx(1.0)
    assert sequence_balance(score, chosen).item() == pytest.approx(1.0)
    favourite = torch.tensor([0.7, 0.1, 0.1, 0.1]).expand(1, 8, 4)
    assert load_balance(favourite, top_k(favourite, 1)).item() == pytest.approx(4 * 0.7)


def test_sequence_balance_by_the_formula() -> None:
    score = torch.rand(3, 5, 6, dtype=torch.float64)
    chosen = top_k(score, 2)
    total = 0.0
    for b in range(3):
        for i in range(6):  # arXiv:2412.19437, equations 17 to 20
            f = 6 / (2 * 5) * sum(i in chosen[b, t].tolist() for t in range(5))
            p = sum(score[b, t, i].item() / score[b, t].sum().item() for t in range(5)) / 5
            total += f * p / 3
    assert sequence_balance(score, chosen).item() == pytest.approx(total, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_dispatch_and_combine_by_brute_force(data) -> None:
    experts = data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, experts))
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    x = torch.randn(batch, length, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(batch, length, k, dtype=torch.float64, requires_grad=True)
    chosen = torch.stack([torch.randperm(experts)[:k] for _ in range(batch * length)]).view(batch, length, k)
    rows = dispatch(x, chosen, experts)
    assert rows.offsets_X.dtype == torch.int32
    assert rows.offsets_X.tolist() == [(chosen <= e).sum().item() for e in range(experts)]
    expert_R = chosen.flatten().sort(stable=True).values
    y = combine(rows.x_RD * (expert_R + 1.0).unsqueeze(-1), rows, weight)
    expected = (x.unsqueeze(-2) * (chosen + 1.0).unsqueeze(-1) * weight.unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, [x, weight], direction),
        torch.autograd.grad(expected, [x, weight], direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_combine_sums_in_float32() -> None:
    x = torch.randn(2, 50, 16).bfloat16()
    weight = torch.rand(2, 50, 6)
    rows = dispatch(x, torch.arange(6).expand(2, 50, 6), 6)
    y = combine(rows.x_RD, rows, weight)
    assert torch.equal(y, (x.float().unsqueeze(-2) * weight.unsqueeze(-1)).sum(-2).bfloat16())


@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 0, 8, 0), (0, 0, 0, 0), (8, 0, 0, 0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_grouped_linear_with_empty_experts(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(sum(counts), 6, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(4, 5, 6, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    y = grouped_linear(x, weight, offsets(*counts), bias)
    expert_R = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    expected = torch.einsum("rd,rfd->rf", x.double(), weight.to(dtype).double()[expert_R])
    expected = expected + bias.to(dtype).double()[expert_R]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    leaves = [x, weight, bias]
    for a, b in zip(
        torch.autograd.grad(y.double().square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=4 * tolerance, atol=10 * tolerance)


def test_grouped_linear_gradients_twice() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x, weight, offsets(2, 0, 3), bias)
    assert torch.autograd.gradcheck(grouped_linear, inputs)
    assert torch.autograd.gradgradcheck(grouped_linear, inputs)


def test_grouped_linear_counts_its_flops_and_has_shapes_without_data() -> None:
    with FlopCounterMode(display=False) as counter:
        x, weight = torch.randn(7, 6, requires_grad=True), torch.randn(3, 5, 6, requires_grad=True)
        grouped_linear(x, weight, offsets(2, 0, 5)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 7 * 6 * 5
    y = grouped_linear(x.to("meta"), weight.to("meta"), offsets(2, 0, 5).to("meta"))
    assert y.shape == (7, 5) and y.device.type == "meta"


def test_moe_against_mixtral() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=6, num_experts_per_tok=2)
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 16, requires_grad=True)

    def ours() -> Tensor:
        score = softmax(x @ block.gate.weight.T)
        chosen = top_k(score, 2)
        weight = normalize(score.gather(-1, chosen))
        rows = dispatch(x, chosen, 6)
        gate_up = block.experts.gate_up_proj
        gate = grouped_linear(rows.x_RD, gate_up[:, :24], rows.offsets_X)
        up = grouped_linear(rows.x_RD, gate_up[:, 24:], rows.offsets_X)
        return combine(grouped_linear(silu(gate) * up, block.experts.down_proj, rows.offsets_X), rows, weight)

    mine, theirs = ours(), block(x)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    leaves = [x, *block.parameters()]
    direction = torch.randn_like(mine)
    for a, b in zip(
        torch.autograd.grad(mine, leaves, direction), torch.autograd.grad(theirs, leaves, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
