"""Optimizers whose steps are kernels against torch's own and against the same without kernels; what they round to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dskc.runtime import optim
from dskc.runtime.kernels import use_kernels
from dskc.runtime.kernels.loss.linear_loss import next_token_linear
from dskc.runtime.kernels.optimizer import tensor_table
from dskc.runtime.modules import Embed, GroupedLinear, Linear, RMSNorm
from dskc.runtime.optim import rounding
from dskc.runtime.optim.fused import Fused
from dskc.runtime.problem import Problem
from dskc.runtime.train import write_checkpoint
from dskc.runtime.train.checkpoint import State, read_checkpoint
from dskc.runtime.train.kept import checkpoint_path

from . import drawn_masks  # noqa: F401 (attention is interpreted too from here on)
from .test_models import NANO, ROOT, compiled

device = "cuda" if torch.cuda.is_available() else "cpu"
Make = Callable[..., optim.AdamW | optim.Lion]
both = pytest.mark.parametrize("make", [optim.AdamW, optim.Lion])


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with use_kernels("triton"):
        yield


class Small(nn.Module):
    """One of each kind of parameter, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Embed(7, 8)
        self.linear = Linear(8, 6, bias=True)
        self.norm = RMSNorm(6, eps=1e-6)
        self.experts = GroupedLinear(3, 6, 4, bias=True)
        self.frozen = Linear(3, 3)
        self.frozen.requires_grad_(False)


def model(dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(0)
    return Small().to(device, dtype)


def gradients(model: nn.Module, seed: int, size: float = 1.0, without: str = "") -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        grad = size * torch.randn(parameter.shape, generator=generator)
        if parameter.requires_grad and name != without:
            parameter.grad = grad.to(parameter.device, parameter.dtype)


def without_kernels(make: Make, model: nn.Module, **options: object) -> optim.AdamW | optim.Lion:
    with use_kernels("reference"):
        made = make(model, **options)
    assert not isinstance(made.inner, Fused)
    return made


def with_kernels(make: Make, model: nn.Module, **options: object) -> optim.AdamW | optim.Lion:
    made = make(model, **options)
    assert isinstance(made.inner, Fused)
    return made


def close(a: nn.Module, b: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, ours), theirs in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance), name


@both
@pytest.mark.parametrize("most", [0.5, 1e6, None])
def test_as_without_kernels(make: Make, most: float | None) -> None:
    ours, theirs = model(), model()
    pair = (with_kernels(make, ours, lr=1.0, decay=0.3), without_kernels(make, theirs, lr=1.0, decay=0.3))
    for step in range(4):
        norms = []
        for each, run in zip((ours, theirs), pair, strict=True):
            # A parameter without a gradient takes no step, and its bias correction is behind the others' from then on.
            gradients(each, step, without="linear.weight" if step == 1 else "")
            norms.append(run.clip(most))
            run.step(1e-3 * (step + 1))
        torch.testing.assert_close(*norms)
        close(ours, theirs)
    assert all(p.grad is None for p in ours.parameters())
    for name, states in pair[1].state_dict().items():
        for key, state in states.items():
            assert torch.allclose(pair[0].state_dict()[name][key].to(state.device), state, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("way", [{"fused": True}, {"foreach": True}])
def test_adamw_against_torch(way: dict[str, bool]) -> None:
    ours, theirs = model(), model()
    own = with_kernels(optim.AdamW, ours, lr=0.01, betas=(0.8, 0.9), eps=1e-3, decay=0.3)
    matrices = [p for n, p in theirs.named_parameters() if p.requires_grad and p.ndim > 1 and not n.endswith("bias")]
    others = [p for p in theirs.parameters() if p.requires_grad and not any(p is m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-3, **way)
    for step in range(4):
        gradients(ours, step)
        gradients(theirs, step)
        own.clip(0.5)
        own.step(0.01)
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
    close(ours, theirs)


@both
@pytest.mark.parametrize("params", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16, None])
def test_states_have_their_own_dtype(make: Make, params: torch.dtype, states: torch.dtype | None) -> None:
    exact, mixed = model(), model(params)
    runs = (without_kernels(make, exact, lr=0.01), with_kernels(make, mixed, lr=0.01, state_dtype=states))
    assert all(state["exp_avg"].dtype == (states or params) for state in runs[1].state_dict().values())
    for step in range(3):
        for each, run in zip((exact, mixed), runs, strict=True):
            gradients(each, step)
            run.step(0.01)
    for a, b in zip(exact.parameters(), mixed.parameters(), strict=True):
        # Half a step of bf16 at 1 is 0.004, and the interpreter cuts where a GPU rounds.
        assert (a - b.float()).abs().mean() < 0.012


@both
def test_float64_and_what_kernels_do_not_take_goes_to_torch(make: Make) -> None:
    assert not isinstance(make(model(torch.float64), lr=0.1).inner, Fused)
    turned = model()
    turned.linear.weight.data = turned.linear.weight.data.T.contiguous().T
    assert not isinstance(make(turned, lr=0.1).inner, Fused)
    assert not isinstance(make(nn.Linear(3, 3, device="meta"), lr=0.1).inner, Fused)
    assert not isinstance(make(model(), lr=0.1, state_dtype=torch.float64).inner, Fused)


@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing(make: Make, value: float) -> None:
    given = model()
    own = with_kernels(make, given, lr=0.1)
    gradients(given, 0)
    own.step(0.1)
    before = [p.detach().clone() for p in given.parameters()]
    states = copy.deepcopy(own.state_dict())
    gradients(given, 1)
    assert given.norm.weight.grad is not None
    given.norm.weight.grad[2] = value
    own.clip(None)
    assert not own.step(0.1)
    assert own.skipped is not None and "norm.weight has 1 of 6 values not finite" in own.skipped.what
    assert all(map(torch.equal, given.parameters(), before))
    for name, tensors in own.state_dict().items():
        assert all(torch.equal(tensor, states[name][key]) for key, tensor in tensors.items()), name
    gradients(given, 2)  # and it goes on, unclipped
    own.step(0.1)
    assert not torch.equal(given.norm.weight, before[3])


@both
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.0])
def test_a_guard_that_is_not_finite_changes_nothing_either(make: Make, value: float) -> None:
    given, other = model(), model()
    own, reference = with_kernels(make, given, lr=0.1), without_kernels(make, other, lr=0.1)
    for each, run in ((given, own), (other, reference)):
        before = copy.deepcopy(each.state_dict())
        gradients(each, 0)
        run.guard = torch.tensor(value)
        assert run.clip(1.0).isfinite() == math.isfinite(value)
        assert run.step(0.1) == math.isfinite(value)
        assert (run.skipped is None) == math.isfinite(value)
        assert run.skipped is None or run.skipped.name == "loss"
        assert all(p.grad is None for p in each.parameters())
        same = [torch.equal(p, before[name]) for name, p in each.named_parameters()]
        assert not all(same) if math.isfinite(value) else all(same)
        gradients(each, 1)  # the guard is of one step
        run.clip(1.0)
        assert run.step(0.1)
    close(given, other)


@both
def test_clipping_leaves_gradients_and_the_next_step_alone(make: Make) -> None:
    given, other = model(), model()
    own, reference = with_kernels(make, given, lr=0.1), without_kernels(make, other, lr=0.1)
    for run, each in ((own, given), (reference, other)):
        gradients(each, 0, size=100.0)
        kept = each.linear.weight.grad.clone()  # type: ignore[union-attr]
        run.clip(0.1)
        assert torch.equal(each.linear.weight.grad, kept) == (run is own)  # type: ignore[arg-type]
        run.step(0.1)
        gradients(each, 1)
        run.step(0.1)
    close(given, other)
    for wrong in (0.0, -1.0, math.nan):
        gradients(given, 2)
        with pytest.raises(Problem, match="must be more than 0"):
            own.clip(wrong)


@both
def test_whether_kernels_step_is_settled_with_the_states(make: Make) -> None:
    given, other = model(), model()
    own, reference = with_kernels(make, given, lr=0.1), without_kernels(make, other, lr=0.1)
    for run, each in ((own, given), (reference, other)):
        gradients(each, 0)
        with use_kernels("reference" if run is own else "triton"):
            run.clip(0.1)
            run.step(0.1)
    close(given, other)


@both
def test_rates_may_be_tensors(make: Make) -> None:
    given, other = model(), model()
    for each, rate in ((given, torch.tensor(0.1)), (other, float(torch.tensor(0.1)))):
        gradients(each, 0)
        with_kernels(make, each, lr=1.0).step(rate)  # type: ignore[arg-type]
    close(given, other, 0.0)


@both
def test_sparse_gradients_are_refused(make: Make) -> None:
    given = model()
    own = with_kernels(make, given, lr=0.1)
    gradients(given, 0)
    given.embed.weight.grad = given.embed.weight.grad.to_sparse()  # type: ignore[union-attr]
    with pytest.raises(Problem, match=r"the gradient of embed\.weight is sparse"):
        own.clip(1.0)
    with pytest.raises(Problem, match=r"the gradient of embed\.weight is sparse"):
        own.step(0.1)


def test_autograd_sees_that_parameters_changed() -> None:
    given = model()
    own = with_kernels(optim.AdamW, given, lr=0.1)
    x = torch.ones(2, 8, device=device, requires_grad=True)
    loss = given.linear(x).square().sum()
    loss.backward(retain_graph=True)
    own.step(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- checkpoints


@both
@pytest.mark.parametrize("first", [True, False])
def test_a_checkpoint_of_one_goes_on_with_the_other(make: Make, first: bool, tmp_path: Path) -> None:
    here, there = model(), model()
    ways = (with_kernels, without_kernels) if first else (without_kernels, with_kernels)
    own, other = ways[0](make, here, lr=0.01), ways[1](make, there, lr=0.5)
    for step in range(2):
        gradients(here, step, without="norm.weight" if step == 0 else "")
        own.step(0.01)
    path = write_checkpoint(tmp_path, 2, here.state_dict(), own.state_dict())
    read_checkpoint(path, {"model": there.state_dict(), "optimizer": other.state_dict()})
    close(here, there, 0.0)
    for each, run in ((here, own), (there, other)):
        gradients(each, 3)
        run.step(0.01)
    close(here, there)


def trained(module: ModuleType, path: Path, mode: str, make: Make, steps: range) -> nn.Module:
    """A nano model after some steps, which go on from the checkpoint of the step before, and are saved."""
    torch.manual_seed(0)
    given = module.Model().to(device)
    given.layers = given.layers[:1]
    tokens = torch.randint(0, 96, (2, 6), device=device)
    with use_kernels(mode):
        options = {"eps": 1e-3} if make is optim.AdamW else {}
        own = make(given, lr=1e-3, decay=0.1, **options)
        assert isinstance(own.inner, Fused) == (mode == "triton")
        optim.normal(0.1)(given, 0)
        state: dict[str, State] = {"model": given.state_dict(), "optimizer": own.state_dict()}
        if steps.start:
            read_checkpoint(checkpoint_path(path, steps.start), state)
        for _ in steps:
            next_token_linear(given.hidden(tokens), given.logits.weight, tokens.roll(-1, 1)).backward()
            own.clip(0.2)
            own.step(1e-3)
        write_checkpoint(path, steps.stop, given.state_dict(), own.state_dict())
    return given


@pytest.mark.slow
def test_a_nano_model_trains_as_without_kernels(tmp_path: Path) -> None:
    settings = tuple(f"dims.{setting}" for setting in NANO["deepseek_nano"])
    module = compiled(ROOT / "specs" / "deepseek_nano.dsk", tmp_path, settings)["deepseek_nano"]
    kernels, reference = tmp_path / "triton", tmp_path / "reference"
    exact = trained(module, reference, "reference", optim.AdamW, range(4))
    halfway = [trained(module, path, path.name, optim.AdamW, range(2)) for path in (kernels, reference)]
    close(*halfway)
    close(trained(module, kernels, "reference", optim.AdamW, range(2, 4)), exact)
    close(trained(module, reference, "triton", optim.AdamW, range(2, 4)), exact)


# --- stochastic rounding


@both
def test_kernels_and_torch_draw_the_same(make: Make) -> None:
    """Where both compute the same fp32, which those of Lion's numbers here are."""
    ours, theirs = model(torch.bfloat16), model(torch.bfloat16)
    options = {"lr": 1.0, "rounding": "stochastic", "decay": 0.0, "betas": (0.5, 0.5)}
    pair = (with_kernels(make, ours, **options), without_kernels(make, theirs, **options))
    for step in range(3):
        for each, run in zip((ours, theirs), pair, strict=True):
            gradients(each, step)
            torch.manual_seed(step)
            run.step(2.0**-9)
    for kind in pair[1].state_dict()["norm.weight"].keys() - {"step"}:
        moments = ([state[kind].flatten() for state in run.state_dict().values()] for run in pair)
        assert agreement(*map(torch.cat, moments)) > (0.97 if make is optim.AdamW else 0.9999), kind
    values = (torch.cat([p.flatten() for p in each.parameters()]) for each in (ours, theirs))
    assert agreement(*values) > (0.97 if make is optim.AdamW else 0.9999)


def agreement(a: Tensor, b: Tensor) -> float:
    return float((a == b).float().mean())


@both
@pytest.mark.parametrize("with_them", [True, False])
def test_small_updates_arrive_on_average(make: Make, with_them: bool) -> None:
    count, steps, rate = 20_000, 4, 2.0**-12  # a step is a 32nd of what bf16 can add to 1
    given = nn.ParameterList([nn.Parameter(torch.ones(count, dtype=torch.bfloat16, device=device))])
    way = with_kernels if with_them else without_kernels
    own = way(make, given, lr=1.0, decay=0.0, rounding="stochastic", state_dtype=torch.float32)
    torch.manual_seed(5)
    for _ in range(steps):
        given[0].grad = -torch.ones_like(given[0])
        own.step(rate)
    moved = float(given[0].detach().double().mean()) - 1.0
    deviation = math.sqrt(steps * rate * 2.0**-7 / count)
    assert abs(moved - steps * rate) < 5 * deviation + 1e-6
    nearest = nn.ParameterList([nn.Parameter(torch.ones(count, dtype=torch.bfloat16, device=device))])
    nearest[0].grad = torch.ones_like(nearest[0])
    without_kernels(make, nearest, lr=1.0, decay=0.0).step(rate)
    assert bool((nearest[0] == 1.0).all())


def drawn(parameters: list[str], seed: int, with_them: bool, without: str = "") -> dict[str, Tensor]:
    """Parameters of these names after a step by half of what bf16 can add."""
    given = nn.ParameterDict({n: nn.Parameter(torch.ones(999, dtype=torch.bfloat16)) for n in parameters}).to(device)
    way = with_kernels if with_them else without_kernels
    own = way(optim.Lion, given, lr=1.0, decay=0.0, rounding="stochastic")
    for name, parameter in given.items():
        parameter.grad = None if name == without else -torch.ones_like(parameter)
    torch.manual_seed(seed)
    own.step(2.0**-8)
    return {name: parameter.detach().float() for name, parameter in given.items()}


@pytest.mark.parametrize("with_them", [True, False])
def test_draws_are_the_names_and_the_seeds_and_no_others(with_them: bool) -> None:
    found = drawn(["a", "b", "c"], 1, with_them)
    for name in "abc":
        assert set(found[name].unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    assert all(torch.equal(found[n], v) for n, v in drawn(["c", "a"], 1, with_them).items())
    others = drawn(["a", "b", "c"], 1, with_them, without="a")
    assert torch.equal(others["b"], found["b"]) and bool((others["a"] == 1.0).all())
    for apart in (found["b"], drawn(["a"], 2, with_them)["a"]):
        assert 0.4 < float((found["a"] == apart).float().mean()) < 0.6
    assert all(torch.equal(found[n], v) for n, v in drawn(["a", "b", "c"], 1, not with_them).items())


def test_draws_of_long_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several of the kernels' pieces, and of what torch rounds at a time."""
    monkeypatch.setattr(rounding, "CHUNK", tensor_table.PIECE)
    count = 2 * tensor_table.PIECE + 77
    found = []
    for way in (with_kernels, without_kernels):
        given = nn.ParameterList([nn.Parameter(torch.ones(count, dtype=torch.bfloat16, device=device))])
        own = way(optim.Lion, given, lr=1.0, decay=0.0, rounding="stochastic")
        given[0].grad = -torch.ones_like(given[0])
        torch.manual_seed(3)
        own.step(2.0**-8)
        found.append(given[0].detach().clone())
    assert torch.equal(*found)


def test_rounding_that_is_none() -> None:
    with pytest.raises(Problem, match="rounding is 'up'"):
        optim.AdamW(model(), lr=0.1, rounding="up")


@pytest.mark.parametrize("make", [optim.AdamW, optim.Lion, optim.Muon])
@pytest.mark.parametrize("most", [None, 0.5])
def test_a_scale_of_the_loss_is_taken_out(make: Make, most: float | None) -> None:
    plain, scaled = model(), model()
    one, two = make(plain, lr=0.01), make(scaled, lr=0.01)
    for step in range(3):
        gradients(plain, step)
        gradients(scaled, step, size=2.0**12)
        two.scale = 2.0**12
        if step < 2:  # clipped, and not
            torch.testing.assert_close(two.clip(most), one.clip(most))
        assert one.step(0.01) and two.step(0.01)
    close(plain, scaled)


@pytest.mark.parametrize("make", [optim.AdamW, optim.Lion, optim.Muon])
def test_masters_are_those_without_kernels(make: Make) -> None:
    plain, kernels = model(torch.bfloat16), model(torch.bfloat16)
    told = {"lr": 1e-3, "state_dtype": torch.float32, "master": True}
    with use_kernels("reference"):
        one = make(plain, **told)
    two = make(kernels, **told)
    for step in range(4):
        gradients(plain, step)
        gradients(kernels, step)
        one.step(1e-3)
        two.step(1e-3)
    states = two.state_dict()
    for name, state in one.state_dict().items():
        torch.testing.assert_close(states[name]["master"], state["master"], rtol=1e-5, atol=1e-6)
        rounded = states[name]["master"].to(torch.bfloat16)
        ulp = 0.0 if device == "cuda" else 2.0**-7  # the interpreter cuts off where a GPU rounds
        torch.testing.assert_close(kernels.get_parameter(name).detach(), rounded, rtol=ulp, atol=0)
