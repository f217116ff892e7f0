"""Muon step by step against torch's own, for matrices; its orthogonalisation; parameter groups; masters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dskc.runtime import optim
from dskc.runtime.modules import Embed, GroupedLinear, Linear, RMSNorm
from dskc.runtime.optim.orthogonalise import orthogonalise
from dskc.runtime.problem import Problem

OTHERS = ("embed", "head")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed(7, 8)
        self.layers = nn.ModuleList([Linear(8, 24, bias=True), Linear(24, 8)])
        self.norm = RMSNorm(8, eps=1e-6)
        self.head = Linear(8, 7)


def model(dtype: torch.dtype = torch.float32, kind: type[nn.Module] = Small) -> nn.Module:
    torch.manual_seed(0)
    made = kind().to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.3)
    return made


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


@pytest.mark.parametrize(("scale", "theirs"), [("rms", "match_rms_adamw"), ("original", "original")])
def test_muon_against_torch(scale: Any, theirs: str) -> None:
    ours, reference = model(), model()
    own = optim.Muon(
        ours, lr=0.02, momentum=0.9, decay=0.3, scale=scale, adamw_for=OTHERS, adamw_lr=0.004, eps=0.03, adamw_decay=0.2
    )
    hidden = [p for n, p in reference.named_parameters() if n.startswith("layers") and p.ndim == 2]
    rest = [p for n, p in reference.named_parameters() if not (n.startswith("layers") and p.ndim == 2)]
    muon = torch.optim.Muon(hidden, lr=0.02, momentum=0.9, weight_decay=0.3, adjust_lr_fn=theirs)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim == 2], "weight_decay": 0.2},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        eps=0.03,
    )
    for step in range(6):
        gradients(ours, step)
        gradients(reference, step)
        for group in muon.param_groups:
            group["lr"] = 0.02 / (step + 1)
        for group in adamw.param_groups:
            group["lr"] = 0.004 / (step + 1)
        own.step(0.02 / (step + 1))
        muon.step()
        adamw.step()
        for (name, mine), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
            # Theirs multiplies in bf16: a step is some 0.02, of which that holds 2 digits.
            torch.testing.assert_close(mine, other, rtol=0, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert own.state_dict().keys() == dict(ours.named_parameters()).keys()
    assert own.state_dict()["layers.0.weight"].keys() == {"momentum_buffer"}
    assert own.state_dict()["layers.0.bias"].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_stacked_experts_are_as_many_matrices() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = GroupedLinear(3, 6, 4)

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = Linear(6, 4), Linear(6, 4), Linear(6, 4)

    stacked, apart = model(kind=Experts), model(kind=Apart)
    with torch.no_grad():
        for one, expert in zip(apart.parameters(), stacked.experts.weight, strict=True):
            one.copy_(expert)
    for one in (stacked, apart):
        gradients(one, 5)
    for one, expert in zip(apart.parameters(), stacked.experts.weight.grad, strict=True):
        one.grad = expert.clone()
    for one in (stacked, apart):
        optim.Muon(one, lr=0.02).step(0.02)
    assert torch.equal(stacked.experts.weight, torch.stack(list(apart.parameters())))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(-5, 12), st.integers(0, 999))
def test_singular_values_come_near_one(rows: int, columns: int, exponent: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s.clamp(min=0.05 * s.max())  # below, the iteration has no time to bring them up
    found = orthogonalise(((u * s) @ v * 10.0**exponent).float()).double()
    got = torch.linalg.svdvals(found)
    assert got.min() > 0.4 and got.max() < 1.4
    # The vectors stay: what is left in their frame is the diagonal.
    frame = u.T @ found @ v.T
    assert (frame - frame.diagonal().diag()).abs().max() < 0.12


def test_nothing_is_orthogonal_to_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    assert not orthogonalise(torch.full((3, 3), float("nan"))).isfinite().any()


def test_a_resumed_muon_goes_on_as_the_unbroken_one() -> None:
    whole = model()
    first = optim.Muon(whole, lr=0.02, adamw_for=OTHERS)
    for step in range(3):
        gradients(whole, step)
        first.step(0.02)
    parted = copy.deepcopy(whole)
    second = optim.Muon(parted, lr=0.02, adamw_for=OTHERS)
    second.load_state_dict(first.state_dict())
    for step in range(3, 5):
        for one, optimizer in ((whole, first), (parted, second)):
            gradients(one, step)
            optimizer.step(0.01)
    for mine, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_is_not_finite_changes_nothing() -> None:
    one = model()
    before = copy.deepcopy(one.state_dict())
    optimizer = optim.Muon(one, lr=0.02, adamw_for=OTHERS)
    gradients(one, 0)
    one.layers[1].weight.grad[2, 3] = float("inf")
    states = copy.deepcopy(optimizer.state_dict())
    assert not optimizer.clip(1.0).isfinite()
    assert not optimizer.step(0.02)
    assert optimizer.skipped is not None and optimizer.skipped.name == "layers.1.weight"
    assert "layers.1.weight has 1 of 192 values not finite" in optimizer.skipped.what
    for name, tensors in optimizer.state_dict().items():
        assert all(torch.equal(tensor, states[name][key]) for key, tensor in tensors.items())
    assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Lion, optim.Muon])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_masters_make_bf16_as_good_as_fp32(kind: Any, rounding: str) -> None:
    """A step of a ten-thousandth of a weight is lost in bf16; a master adds up a thousand of them."""
    exact, kept, lost = model(torch.bfloat16).float(), model(torch.bfloat16), model(torch.bfloat16)
    told = {"lr": 1e-5, "decay": 0.0}
    fp32 = torch.float32
    optimizers = [
        (exact, kind(exact, **told)),
        (kept, kind(kept, **told, state_dtype=fp32, rounding=rounding, master=True)),
        (lost, kind(lost, **told, state_dtype=fp32)),
    ]
    for step in range(60):
        for one, optimizer in optimizers:
            gradients(one, step % 4)
            for parameter in one.parameters():
                parameter.grad = parameter.grad.to(torch.bfloat16).to(parameter.dtype).abs_()
            optimizer.step(1e-5)
    masters = optimizers[1][1].state_dict()
    for (name, wanted), parameter in zip(exact.named_parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(masters[name]["master"], wanted.detach(), rtol=1e-5, atol=2e-5)
        assert torch.equal(masters[name]["master"].to(torch.bfloat16), parameter)
    assert sum(int((a != b).sum()) for a, b in zip(kept.parameters(), lost.parameters(), strict=True)) > 50


def test_groups_have_their_own_rate_and_decay() -> None:
    chosen = (optim.Group("layers.*", rate=0.5, decay=0.0), optim.Group("layers.0.bias", rate=2.0, decay=0.7))
    ours, reference = model(), model()
    own = optim.AdamW(ours, lr=0.01, decay=0.3, groups=chosen)
    named = dict(reference.named_parameters())

    def group(names: list[str], decay: float, lr: float) -> dict[str, Any]:
        return {"params": [named[name] for name in names], "weight_decay": decay, "lr": lr}

    theirs = torch.optim.AdamW(
        [
            group(["embed.weight", "head.weight"], 0.3, 0.01),
            group(["norm.weight"], 0.0, 0.01),
            group(["layers.0.weight", "layers.1.weight"], 0.0, 0.005),
            group(["layers.0.bias"], 0.7, 0.02),
        ],
        betas=(0.9, 0.95),
    )
    for step in range(4):
        gradients(ours, step)
        gradients(reference, step)
        own.step(0.01)
        theirs.step()
    for (name, mine), other in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Lion, optim.Muon])
def test_wrong_groups_are_problems(kind: Any) -> None:
    with pytest.raises(Problem, match=r"no parameter under layers.*.gate"):
        kind(model(), lr=0.1, groups=[optim.Group("layers.*.gate")])
    with pytest.raises(Problem, match="the rate of embed is -1"):
        optim.Group("embed", rate=-1.0)
    with pytest.raises(Problem, match="weight decay of embed is -1"):
        optim.Group("embed", decay=-1.0)


def test_muon_needs_something_to_do() -> None:
    with pytest.raises(Problem, match="no hidden matrix"):
        optim.Muon(model(), lr=0.1, adamw_for=["embed", "head", "layers"])
    with pytest.raises(Problem, match="the learning rate of Muon is 0"):
        optim.Muon(model(), lr=0.0)
    with pytest.raises(Problem, match="it is `rms` or `original`"):
        optim.Muon(model(), lr=0.1, scale="square")  # type: ignore[arg-type]
