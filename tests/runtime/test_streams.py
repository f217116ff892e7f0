"""Streams of a residual and maps in blocks against plain products; the table of hash layers."""

from __future__ import annotations

import torch
from torch import Tensor

from dskc.runtime.modules import BlockLinear, HashExperts
from dskc.runtime.reference import block_linear, mix, outer, sinkhorn


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_streams_are_mixed_and_written() -> None:
    x, weight, y = rand(2, 3, 4, 5), rand(2, 3, 4, 6), rand(2, 3, 5)
    torch.testing.assert_close(mix(x, weight), torch.einsum("bsnd,bsnm->bsmd", x, weight))
    torch.testing.assert_close(mix(x, weight[..., 0]), torch.einsum("bsnd,bsn->bsd", x, weight[..., 0]))
    torch.testing.assert_close(outer(y, weight[..., 1]), torch.einsum("bsd,bsn->bsnd", y, weight[..., 1]))
    assert mix(x.bfloat16(), weight).dtype == outer(y.bfloat16(), weight[..., 0]).dtype == torch.bfloat16


def test_sinkhorn_divides_columns_first_and_nears_sums_of_1() -> None:
    x = rand(2, 3, 4, 4).exp()
    torch.testing.assert_close(sinkhorn(x, 1, eps=0.5), x / (x.sum(-2, keepdim=True) + 0.5))
    y = sinkhorn(x, 1, eps=0.0)
    y = y / y.sum(-1, keepdim=True)
    torch.testing.assert_close(sinkhorn(x, 2, eps=0.0), y / y.sum(-2, keepdim=True))
    far = sinkhorn(x, 40, eps=0.0)
    torch.testing.assert_close(far.sum(-1), torch.ones(2, 3, 4, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(far.sum(-2), torch.ones(2, 3, 4, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_block_linear_is_a_linear_layer_with_zeros_outside_its_blocks() -> None:
    x, weight = rand(2, 3, 8), rand(6, 4)
    whole = torch.block_diag(weight[:3], weight[3:])
    torch.testing.assert_close(block_linear(x, weight, 2), x @ whole.T)
    module = BlockLinear(6, 4, blocks=2).double()
    module.weight.data.copy_(weight)
    torch.testing.assert_close(module(x), x @ whole.T)


def test_a_new_table_gives_every_token_different_experts_and_every_expert_tokens() -> None:
    module = HashExperts(5000, 6, experts=32)
    assert not list(module.parameters()) and "table" in module.state_dict()
    table = module(torch.arange(5000))
    assert table.dtype == torch.int64 and table.min() == 0 and table.max() == 31
    assert all(len(set(row)) == 6 for row in table.tolist())
    load = torch.bincount(table.flatten(), minlength=32) / table.numel() * 32
    assert load.min() > 0.8 and load.max() < 1.25
