"""Optimizers step by step against torch and lion_pytorch; clipping, schedules and initialisers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lion_pytorch import Lion as TheirLion
from torch import nn

from dskc.runtime import optim
from dskc.runtime.modules import Embed, GroupedLinear, Linear, RMSNorm
from dskc.runtime.optim.adamw import _MixedAdamW
from dskc.runtime.problem import Problem
from dskc.runtime.train.recipe import Precision, Ramp, Recipe


class Small(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed(7, 8)
        self.linear = Linear(8, 6, bias=True)
        self.norm = RMSNorm(6, eps=1e-6)
        self.gemma = RMSNorm(6, eps=1e-6, offset=1.0)
        self.experts = GroupedLinear(3, 6, 4, bias=True)
        self.register_buffer("bias_of_balance", torch.ones(3))


def model(dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(0)
    return Small().to(dtype)


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def torch_groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and not n.endswith("bias")]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("bias")]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def assert_same(a: nn.Module, b: nn.Module, tolerance: float = 0.0) -> None:
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_against_torch(dtype: torch.dtype) -> None:
    ours, theirs = model(dtype), model(dtype)
    own = optim.AdamW(ours, lr=1.0, betas=(0.8, 0.9), eps=0.03, decay=0.3)
    reference = torch.optim.AdamW(
        torch_groups(theirs, 0.3), betas=(0.8, 0.9), eps=0.03, fused=True if dtype == torch.float32 else None
    )
    for step in range(5):
        gradients(ours, step)
        gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        own.step(0.01 * (step + 1))
        reference.step()
        assert_same(ours, theirs)
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert all(state["exp_avg"].dtype == dtype for state in own.state_dict().values())


def test_update_in_mixed_precision_is_torchs_formula() -> None:
    ours, theirs = model(), model()
    defaults = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 0.03, "weight_decay": 0.0}
    own = _MixedAdamW(torch_groups(ours, 0.3), defaults)
    for parameter in ours.parameters():
        own.state[parameter] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    reference = torch.optim.AdamW(torch_groups(theirs, 0.3), lr=0.02, betas=(0.8, 0.9), eps=0.03, fused=False)
    for step in range(5):
        gradients(ours, step)
        gradients(theirs, step)
        own.step()
        reference.step()
    assert_same(ours, theirs, 2e-6)


@pytest.mark.parametrize("optimizer", [optim.AdamW, optim.Lion])
@pytest.mark.parametrize("params", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
def test_states_have_their_own_dtype_and_follow_the_exact_run(
    optimizer: type[optim.AdamW] | type[optim.Lion], params: torch.dtype, states: torch.dtype
) -> None:
    exact, mixed = model(), model(params)
    runs = (optimizer(exact, lr=0.01), optimizer(mixed, lr=0.01, state_dtype=states))
    assert all(state["exp_avg"].dtype == states for state in runs[1].state_dict().values())
    for step in range(3):
        for each, run in zip((exact, mixed), runs, strict=True):
            gradients(each, step)
            run.step(0.01)
    for a, b in zip(exact.parameters(), mixed.parameters(), strict=True):
        error = (a - b.float()).abs().mean()
        assert error < 0.006, f"{error} on the way of {3 * 0.01}"  # half a step of bf16 at 1 is 0.004


def test_lion_against_lion_pytorch() -> None:
    ours, theirs = model(), model()
    own = optim.Lion(ours, lr=1.0, betas=(0.85, 0.95), decay=0.3)
    reference = TheirLion(torch_groups(theirs, 0.3), lr=1.0, betas=(0.85, 0.95))
    for step in range(6):
        gradients(ours, step)
        gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1)
        own.step(0.01 * (step + 1))
        reference.step()
        assert_same(ours, theirs)


@pytest.mark.parametrize("optimizer", [optim.AdamW, optim.Lion])
def test_only_matrices_decay(optimizer: type[optim.AdamW] | type[optim.Lion]) -> None:
    given = model()
    own = optimizer(given, lr=0.1, decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in given.named_parameters()}
    for parameter in given.parameters():
        parameter.grad = torch.zeros_like(parameter)
    own.step(0.1)
    for name, parameter in given.named_parameters():
        factor = 0.95 if name in ("embed.weight", "linear.weight", "experts.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


@pytest.mark.parametrize("optimizer", [optim.AdamW, optim.Lion])
def test_states_continue_elsewhere_as_they_would_have_here(optimizer: type[optim.AdamW] | type[optim.Lion]) -> None:
    here = model()
    own = optimizer(here, lr=0.01)
    gradients(here, 0)
    own.step(0.01)
    there = copy.deepcopy(here)
    other = optimizer(there, lr=0.5)
    other.load_state_dict(copy.deepcopy(own.state_dict()))
    for each, run in ((here, own), (there, other)):
        gradients(each, 1)
        run.step(0.01)
    assert_same(here, there)


def test_states_of_others_are_refused() -> None:
    given = model()
    states = optim.AdamW(given, lr=0.1).state_dict()
    with pytest.raises(Problem, match=r"of another optimizer: missing .*exp_avg_sq"):
        optim.AdamW(given, lr=0.1).load_state_dict(optim.Lion(given, lr=0.1).state_dict())
    with pytest.raises(Problem, match=r"of other parameters: missing norm\.weight"):
        optim.AdamW(given, lr=0.1).load_state_dict({k: v for k, v in states.items() if k != "norm.weight"})


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1e-3])
def test_rates_that_are_none_are_refused(rate: float) -> None:
    for make in (
        lambda: optim.AdamW(model(), lr=rate),
        lambda: optim.Lion(model(), lr=rate),
        lambda: optim.AdamW(model(), lr=0.1).step(rate),
        lambda: optim.cosine(rate, 1, 10),
        lambda: optim.steps(rate, 1, 10),
        lambda: optim.constant(rate, 1, 10),
        lambda: optim.normal(rate),
    ):
        with pytest.raises(Problem, match=r"is (nan|inf|-0.001): it must be a number, zero or more"):
            make()


def test_coefficients_and_decay_are_checked() -> None:
    for arguments in ({"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"decay": -1.0}, {"decay": math.nan}):
        with pytest.raises(Problem):
            optim.AdamW(model(), lr=0.1, **arguments)


# Clipping


@pytest.mark.parametrize("most", [0.5, 1e6, None])
def test_clip_against_torch(most: float | None) -> None:
    ours, theirs = model(), model()
    gradients(ours, 0)
    gradients(theirs, 0)
    norm = optim.clip(ours, most)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), most or math.inf)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_clip_names_the_parameter_whose_gradient_is_not_finite() -> None:
    given = model()
    gradients(given, 0)
    given.norm.weight.grad[2] = math.nan
    given.experts.weight.grad[1] = math.inf
    before = given.linear.weight.grad.clone()
    with pytest.raises(Problem, match=r"norm\.weight has 1 of 6 values not finite"):
        optim.clip(given, 1.0)
    assert torch.equal(given.linear.weight.grad, before)


def test_what_is_not_finite_is_named_from_the_first_to_the_last() -> None:
    given = model()
    gradients(given, 0)
    names = list(dict(given.named_parameters()))
    for name in names[1:3]:
        given.get_parameter(name).grad.fill_(math.nan)
    optimizer = optim.AdamW(given, lr=0.1)
    optimizer.clip(1.0)
    assert not optimizer.step(0.1)
    assert optimizer.skipped is not None and optimizer.skipped.name == names[1]
    assert optimizer.skipped.what.endswith(f"those of 1 more have some, and backward came to {names[2]} first")
    gradients(given, 0)
    for parameter in given.parameters():
        parameter.grad.fill_(1e38)
    optimizer.clip(1.0)
    assert not optimizer.step(0.1)
    assert optimizer.skipped.name == "norm"


def test_clip_measures_small_dtypes_in_float32() -> None:
    given = nn.Linear(1000, 100, bias=False).to(torch.bfloat16)
    given.weight.grad = torch.full_like(given.weight, 1.0)
    assert optim.clip(given, None).item() == pytest.approx(math.sqrt(100_000), rel=1e-6)


# Schedules


def test_cosine_against_torch() -> None:
    warmup, steps, peak, floor = 5, 40, 0.3, 0.2
    rate = optim.cosine(peak, warmup, steps, floor)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup, eta_min=peak * floor)
    for step in range(warmup - 1, steps):  # the last step of warmup is the first of theirs
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert [rate(step) for step in range(5)] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])


def test_steps_fall_at_shares_of_all_steps() -> None:
    rate = optim.steps(peak=1.0, warmup=10, steps=300, at=(0.8, 0.9), factor=(0.316, 0.1))
    assert [rate(step) for step in (0, 9, 10, 239, 240, 269, 270, 299)] == [0.1, 1, 1, 1, 0.316, 0.316, 0.1, 0.1]


def test_constant_with_decay_falls_towards_zero_at_the_end() -> None:
    rate = optim.constant(peak=1.0, warmup=2, steps=20, decay=0.25)
    found = [rate(step) for step in range(20)]
    assert found == pytest.approx([0.5] + [1.0] * 14 + [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert optim.constant(peak=1.0, warmup=0, steps=20)(19) == 1.0


def test_constant_falls_by_a_root_to_its_floor() -> None:
    rate = optim.constant(peak=2.0, warmup=0, steps=12, decay=0.25, shape="root", floor=0.1)
    falling = [2 * (0.1 + 0.9 * (1 - math.sqrt(passed / 4))) for passed in (1, 2, 3)]
    assert [rate(step) for step in range(12)] == pytest.approx([2.0] * 9 + falling)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), st.floats(0.01, 0.99), st.integers(1, 3000))
def test_a_ramp_rises_in_equal_parts_and_takes_the_tokens(
    start: int, by: int, stages: int, over: float, batches: int
) -> None:
    most, length = start + by * stages, 16
    recipe = Recipe(
        "r", "m", "m.dsk", "", 9, batches * most * length, most, length, Precision(), ramp=Ramp(start, by, over)
    )
    steps = recipe.steps
    found = [recipe.sequences_at(step, steps) for step in range(steps)]
    assert found == sorted(found) and found[0] == start and set(found) <= set(range(start, most + 1, by))
    counts = [found.count(size) for size in range(start, most, by)]
    assert max(counts) - min(counts) <= 1 or found[-1] < most  # or it is over before the ramp is
    assert all(size % recipe.divisor == 0 for size in found)
    assert abs(sum(found) * length - recipe.tokens) <= (stages + 2) * most * length


@settings(deadline=None)
@given(peak=st.floats(1e-6, 1), warmup=st.integers(0, 30), steps=st.integers(1, 50), which=st.sampled_from([0, 1, 2]))
def test_rates_are_positive_and_at_most_the_peak(peak: float, warmup: int, steps: int, which: int) -> None:
    rate = (
        optim.cosine(peak, warmup, steps),
        optim.steps(peak, warmup, steps),
        optim.constant(peak, warmup, steps, decay=0.3),
    )[which]
    found = [rate(step) for step in range(steps)]
    assert all(0 < each <= peak * (1 + 1e-12) for each in found)
    risen = min(warmup, steps)
    assert found[:risen] == sorted(found[:risen])
    assert found[risen:] == sorted(found[risen:], reverse=True)


def test_schedules_refuse_what_makes_no_sense() -> None:
    for make in (
        lambda: optim.cosine(1.0, -1, 10),
        lambda: optim.cosine(1.0, 1, 10, floor=1.5),
        lambda: optim.steps(1.0, 1, 10, at=(0.9, 0.8)),
        lambda: optim.steps(1.0, 1, 10, at=(0.9,)),
        lambda: optim.constant(1.0, 1, 10, decay=2.0),
        lambda: optim.constant(1.0, 1, 10, floor=2.0),
        lambda: optim.constant(1.0, 1, 10, shape="square"),
    ):
        with pytest.raises(Problem):
            make()


# Beginning


def test_a_width_keeps_what_maps_give_as_large() -> None:
    """A map of 8 inputs, told for 2: half the deviation; what looks up or stands alone is not scaled."""
    wide, plain = model(), model()
    optim.normal(std=0.5, width=2)(wide, 3)
    optim.normal(std=0.5)(plain, 3)
    assert torch.equal(wide.linear.weight, plain.linear.weight * 0.5)
    torch.testing.assert_close(wide.experts.weight, plain.experts.weight * (2 / 6) ** 0.5)
    assert torch.equal(wide.embed.weight, plain.embed.weight)


def test_groups_begin_as_they_say() -> None:
    one = model()
    optim.normal(std=0.5, groups={"linear": optim.Zeros(), "norm": optim.Zeros(), "linear.weight": optim.Normal(0.1)})(
        one, 3
    )
    assert not one.linear.bias.any() and not one.norm.weight.any()
    assert 0.05 < float(one.linear.weight.detach().std()) < 0.2
    assert 0.3 < float(one.experts.weight.detach().std()) < 0.7
    with pytest.raises(Problem, match="no parameter under gate"):
        optim.normal(std=0.5, groups={"gate": optim.Zeros()})(one, 3)


def test_normal_sets_every_value_of_a_model_built_on_meta() -> None:
    with torch.device("meta"):
        given = Small()
    given = given.to_empty(device="cpu")
    for tensor in (*given.parameters(), *given.buffers()):
        tensor.data.fill_(math.nan)
    optim.normal(std=0.5)(given, 3)
    assert torch.equal(given.norm.weight, torch.ones(6))
    assert torch.equal(given.gemma.weight, torch.zeros(6))
    for bias in (given.linear.bias, given.experts.bias, given.bias_of_balance):
        assert torch.equal(bias, torch.zeros_like(bias))
    drawn = torch.cat([p.flatten() for p in (given.embed.weight, given.linear.weight, given.experts.weight)])
    assert drawn.std().item() == pytest.approx(0.5, rel=0.15)
    assert drawn.unique().numel() == drawn.numel()


def test_normal_depends_on_seed_and_name_alone() -> None:
    class Larger(Small):
        def __init__(self) -> None:
            self_before = Linear(3, 3)
            super().__init__()
            self.first = self_before

    first, again, other, larger = Small(), Small(), Small(), Larger()
    torch.manual_seed(77)
    for each, seed in ((first, 1), (again, 1), (other, 2), (larger, 1)):
        optim.normal(std=0.1)(each, seed)
    assert_same(first, again)
    assert not torch.equal(first.linear.weight, other.linear.weight)
    assert torch.equal(first.experts.weight, larger.experts.weight)
