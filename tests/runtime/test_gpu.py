"""What is different on a GPU: torch's grouped products, fused attention with masks, no waiting for the device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dskc.runtime.modules import GroupedLinear, Linear
from dskc.runtime.reference import (
    attention,
    causal,
    combine,
    dispatch,
    documents,
    grouped_linear,
    load_balance,
    normalize,
    silu,
    softmax,
    top_k,
    window,
)
from dskc.runtime.serve.sampling import Sampler
from dskc.runtime.train.checkpoint import read_checkpoint
from dskc.runtime.train.kept import Position
from dskc.runtime.train.profiled import Window
from dskc.runtime.train.saver import Saver

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


class Moe(torch.nn.Module):
    def __init__(self, width: int = 256, inner: int = 384, experts: int = 8) -> None:
        super().__init__()
        self.experts = experts
        self.router = Linear(width, experts, compute=torch.float32)
        self.gate, self.up = GroupedLinear(experts, width, inner), GroupedLinear(experts, width, inner)
        self.down = GroupedLinear(experts, inner, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score = softmax(self.router(x))
        chosen = top_k(score, 2)
        weight = normalize(score.gather(-1, chosen))
        rows = dispatch(x, chosen, self.experts)
        hidden = silu(self.gate(rows.x_RD, rows.offsets_X)) * self.up(rows.x_RD, rows.offsets_X)
        return combine(self.down(hidden, rows.offsets_X), rows, weight), load_balance(score, chosen)


@pytest.mark.parametrize("counts", [(100, 0, 37, 1), (0, 0, 64, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_grouped_linear_against_float64(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    offsets = torch.tensor(counts, device="cuda").cumsum(0).to(torch.int32)
    x = torch.randn(sum(counts), 64, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 48, 64, device="cuda", requires_grad=True)
    y = grouped_linear(x, weight, offsets)
    expert_R = torch.repeat_interleave(torch.arange(4, device="cuda"), torch.tensor(counts, device="cuda"))
    expected = torch.einsum("rd,rfd->rf", x.double(), weight.to(dtype).double()[expert_R])
    direction = torch.randn_like(y)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-3  # tf32 may be on
    pairs = [(y, expected)]
    ours = torch.autograd.grad(y, [x, weight], direction)
    theirs = torch.autograd.grad(expected, [x, weight], direction.double())
    for a, b in [*pairs, *zip(ours, theirs, strict=True)]:
        assert ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).item() < tolerance


def test_experts_never_wait_for_the_device_and_give_the_same_bits() -> None:
    torch.manual_seed(0)
    moe = Moe().cuda()
    x = torch.randn(4, 512, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step() -> list[Tensor]:
        y, balance = moe(x)
        loss = y.float().square().mean() + 0.01 * balance
        return list(torch.autograd.grad(loss, [x, *moe.parameters()]))

    first = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_experts_compile_as_one_graph() -> None:
    torch.manual_seed(0)
    moe = Moe().cuda()
    x = torch.randn(2, 128, 256, device="cuda", dtype=torch.bfloat16)
    expected, _ = moe(x)
    got, _ = torch.compile(moe, fullgraph=True)(x)
    assert ((got.float() - expected.float()).norm() / expected.float().norm()).item() < 1e-2


@pytest.mark.parametrize("name", ["causal", "documents", "window"])
def test_attention_holds_no_scores(name: str) -> None:
    length, heads, groups, width = 4096, 16, 4, 64
    ids = (torch.arange(length, device="cuda") // 1000).expand(1, length)
    mask = {"causal": causal, "documents": causal & documents(ids), "window": causal & window(700)}[name]
    q, k, v = (
        torch.randn(1, length, h, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for h in (heads, groups, groups)
    )
    attention(q, k, v, mask).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention(q, k, v, mask).sum().backward()
    held = torch.cuda.max_memory_allocated() - before
    assert held < heads * length * length / 2  # the scores alone, in bf16, would be four times that


@pytest.mark.parametrize("groups", [4, 1])
def test_attention_against_the_cpu(groups: int) -> None:
    ids = (torch.arange(96) // 40).expand(2, 96)
    q, k, v = (torch.randn(2, 96, h, 32, dtype=torch.float64) for h in (4, groups, groups))
    for mask, on_gpu in (
        (causal, causal),
        (causal & window(17), causal & window(17)),
        (causal & documents(ids), causal & documents(ids.cuda())),
    ):
        expected = attention(q, k, v, mask)
        got = attention(*(x.cuda().bfloat16() for x in (q, k, v)), on_gpu)
        assert ((got.cpu().double() - expected).norm() / expected.norm()).item() < 1e-2


def test_top_k_ties_and_seeds() -> None:
    score = torch.randint(0, 3, (50, 64), device="cuda").float()
    assert torch.equal(top_k(score, 8).cpu(), top_k(score.cpu(), 8))
    logits = torch.randn(3, 1000, device="cuda")
    draws = [Sampler(temperature=1.0, top_k=50, top_p=0.9, seed=1)(logits) for _ in range(2)]
    assert torch.equal(*draws)


def test_a_save_never_waits_for_the_device_and_holds_the_state_as_it_was(tmp_path: Path) -> None:
    weight = torch.zeros(1 << 22, device="cuda")
    own = Saver(tmp_path, keep=5)
    for step in range(1, 4):
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):  # the copy is queued behind this, and what follows behind the copy
            busy = busy @ busy / 64
        weight.fill_(float(step))
        if step > 1:
            torch.cuda.set_sync_debug_mode("error")
        try:
            own.start(Position(step), {"weight": weight}, {}, None, f"step {step}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        weight.fill_(-1.0)
        own.wait()
        found = torch.zeros(1 << 22)
        read_checkpoint(tmp_path / f"step-{step:08d}", {"model": {"weight": found}})
        assert bool((found == step).all())
    assert all(tensor.is_pinned() for tensor in own._host.values())


def test_a_profile_has_the_kernels_of_its_steps(tmp_path: Path) -> None:
    window = Window(2, 3, tmp_path, torch.device("cuda"))
    x = torch.randn(256, 256, device="cuda")
    for step in range(1, 5):
        window.begin(step)
        x = x @ x / 16
        window.end(step)
    kinds = [event.get("cat") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert kinds.count("kernel") >= 4
    assert "aten::mm" in (tmp_path / "operations.txt").read_text()
