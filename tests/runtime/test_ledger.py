"""The memory ledger: its arithmetic by hand, what torch really keeps, and the choices made from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from dskc.runtime import optim
from dskc.runtime.modules import Linear
from dskc.runtime.problem import Problem
from dskc.runtime.reference import next_token
from dskc.runtime.train import Ledger, Plan, Precision, Recipe, Repeat, Saved
from dskc.runtime.train.fit import candidates, choose, refusal, smallest
from dskc.runtime.train.ledger import LIBRARIES, LOSS_BYTES, rows, size, total

FP32 = Precision("fp32", "fp32", "fp32", "fp32")
MIXED = Precision("fp32", "bf16", "fp32", "fp32")
BF16 = Precision("bf16", "bf16", "fp32", "bf16")

LEDGER = Ledger(
    params=1000,
    repeats=(
        Repeat("first", count=2, saved=Saved(compute=10, fp32=3, bytes=5), input=4, params=100),
        Repeat("second", count=3, saved=Saved(compute=20), input=6, params=200),
    ),
    rest=Saved(compute=7, fp32=1),
    logits=50,
    optimizer_moments=2,
    buffers=12,
)


def recipe(sequences: int = 16, length: int = 64, precision: Precision = FP32) -> Recipe:
    return Recipe("r", "m", "s.dsk", "0", 100, 1000, sequences, length, precision)


def bytes_of(precision: Precision, microbatch: int, recompute: int, accumulated: bool = True) -> dict[str, int]:
    return {row.name: row.bytes for row in rows(LEDGER, precision, microbatch, recompute, accumulated)}


def test_rows_by_hand() -> None:
    found = bytes_of(MIXED, 3, 0)
    assert found["parameters"] == 4000 == found["gradients"]
    assert found["optimizer states"] == 8000
    assert found["buffers"] == 12
    assert found["weights in bf16"] == 2000
    first, second, rest = 10 * 2 + 3 * 4 + 5, 20 * 2, 7 * 2 + 4
    assert found["activations"] == 3 * (2 * first + 3 * second + rest)
    assert found["logits and loss"] == 3 * 50 * LOSS_BYTES
    others = sum(bytes for name, bytes in found.items() if name != "allocator and libraries")
    assert found["allocator and libraries"] == round(0.05 * others) + LIBRARIES
    assert "weights in bf16" not in bytes_of(BF16, 1, 0)
    assert bytes_of(BF16, 1, 0)["optimizer states"] == 4000


@pytest.mark.parametrize("optimizer", [optim.AdamW, optim.Lion])
def test_stochastic_rounding_keeps_nothing_beside_bf16(optimizer: type[optim.AdamW] | type[optim.Lion]) -> None:
    precision = replace(BF16, rounding="stochastic")
    assert "stochastic" in str(precision) and "rounding" not in str(BF16)
    model = nn.Linear(40, 25, bias=False).bfloat16()
    held = optimizer(model, lr=0.1, state_dtype=torch.bfloat16, rounding=precision.rounding)
    model.weight.grad = torch.ones_like(model.weight)
    held.step(0.1)
    states = [t for state in held.state_dict().values() for t in state.values() if t.ndim]
    ledger = replace(LEDGER, params=1000, optimizer_moments=len(states))
    found = {row.name: row.bytes for row in rows(ledger, precision, 1, 0, True)}
    assert found["optimizer states"] == sum(t.nbytes for t in states)
    assert found["parameters"] == found["gradients"] == model.weight.nbytes == 2000
    with pytest.raises(Problem, match="rounding is 'up'"):
        replace(BF16, rounding="up")


def test_recomputed_layers_keep_their_input() -> None:
    second, rest = 20 * 2, 7 * 2 + 4
    found = bytes_of(MIXED, 1, 3)  # both of the first repeat, one of the second
    assert found["activations"] == 2 * 4 * 2 + 6 * 2 + 2 * second + rest
    assert found["weights in bf16"] == 2 * (1000 - 2 * 100 - 200)


def test_gradients_of_a_single_pass_come_as_activations_go() -> None:
    saved = 3 * (2 * 37 + 3 * 40) + 2000 + 3 * 50 * LOSS_BYTES  # what has gone by the end of backward
    assert bytes_of(MIXED, 3, 0, accumulated=False)["gradients"] == max(0, 4000 - saved) == 0
    saved = 2 * 37 + 3 * 40 + 2000 + 50 * LOSS_BYTES
    assert bytes_of(MIXED, 1, 0, accumulated=False)["gradients"] == 4000 - saved


@settings(deadline=None)
@given(microbatch=st.integers(1, 50), recompute=st.integers(0, 5), precision=st.sampled_from([FP32, MIXED, BF16]))
def test_accumulating_never_takes_less(microbatch: int, recompute: int, precision: Precision) -> None:
    single, several = (total(rows(LEDGER, precision, microbatch, recompute, each)) for each in (False, True))
    assert single <= several
    assert several < total(rows(LEDGER, precision, microbatch + 1, recompute, True))


class Stack(nn.Module):
    """Layers of which all that backward needs is known: each its input, what goes into the gelu, and what comes out."""

    def __init__(self, width: int, inner: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False))
            for _ in range(count)
        )

    def forward(self, x: torch.Tensor, recompute: int) -> torch.Tensor:
        for n, layer in enumerate(self.layers):
            x = checkpoint(layer, x, use_reentrant=False) if n < recompute else layer(x)
        return x.square().mean()


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("recompute", [0, 3, 6])
@pytest.mark.parametrize("tokens", [64, 256, 1024])
def test_peak_against_allocations_that_torch_reports(tokens: int, recompute: int, accumulated: bool) -> None:
    width, inner, count = 128, 512, 6
    model, x = Stack(width, inner, count), torch.randn(tokens, width)
    params = 2 * width * inner
    layer = Repeat("layers", count, Saved(compute=tokens * (width + 2 * inner)), tokens * width, params)
    ledger = Ledger(count * params, (layer,), Saved(compute=2 * tokens * width), optimizer_moments=0)
    lines = rows(ledger, FP32, 1, recompute, accumulated)
    expected = sum(row.bytes for row in lines if row.name not in ("parameters", "allocator and libraries"))

    if accumulated:
        model(x, recompute).backward()
    with torch.profiler.profile(profile_memory=True) as profile:
        model(x, recompute).backward()
    before = 4 * count * params if accumulated else 0
    measured = before + peak_of(profile)
    # Beside it there is what one operation of backward needs: the gradient it is given, and that of one weight.
    assert 0.8 * expected < measured < expected + 4 * (tokens * inner + params // 2) + 10_000


def peak_of(profile: torch.profiler.profile) -> int:
    """The most bytes allocated at once, from when the profile began."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_a_cast_weight_is_kept_for_backward_as_the_ledger_says() -> None:
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    layer, x = Linear(64, 128), torch.randn(2, 64, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum()
    own = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    cast = sum(size for pointer, size in kept.items() if pointer not in own and size >= 128 * 64 * 2)
    assert cast == 128 * 64 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_takes_no_more_than_the_ledger_says(dtype: torch.dtype) -> None:
    """Counted from allocations of torch's profiler: the logits are there before, all else comes with the loss."""
    head, x = nn.Linear(8, 1000, bias=False).to(dtype), torch.randn(4, 64, 8, dtype=dtype)
    targets = torch.randint(0, 1000, (4, 64))
    with torch.profiler.profile(profile_memory=True) as profile:
        logits = head(x)
        next_token(logits, targets).backward()
    elements = logits.numel()
    assert 0.7 * LOSS_BYTES * elements < peak_of(profile) <= 1.02 * LOSS_BYTES * elements + 200_000


# Choosing


@settings(deadline=None, max_examples=200)
@given(
    megabytes=st.integers(256, 2000),
    saved=st.integers(1, 2_000_000),
    sequences=st.sampled_from([1, 6, 16, 96]),
    length=st.sampled_from([16, 128, 4096]),
    layers=st.integers(0, 5),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_what_is_chosen_fits_and_refused_is_only_what_cannot(
    megabytes: int, saved: int, sequences: int, length: int, layers: int, device: str
) -> None:
    available = megabytes << 20
    repeats = (Repeat("layers", layers, Saved(compute=saved), input=saved // 10, params=1000),) if layers else ()
    ledger = Ledger(params=1_000_000, repeats=repeats, logits=length * 100)
    given = recipe(sequences, length)
    found = choose(ledger, given, FP32, Plan(), available, device)
    least = smallest(ledger, given, FP32, Plan(), device)
    if found is None:
        assert total(least.rows) > available
    else:
        assert total(found.rows) <= available
        assert sequences % found.microbatch == 0
        assert 0 <= found.recompute <= layers


def test_first_smaller_microbatches_then_recomputing_then_smaller_still() -> None:
    ledger = Ledger(params=1, repeats=(Repeat("layers", 4, Saved(compute=1_000_000), input=1000),))

    def chosen(megabytes: int) -> tuple[int, int]:
        found = choose(ledger, recipe(64, 256), FP32, Plan(), (megabytes << 20) + LIBRARIES, "cpu")
        assert found is not None
        return found.microbatch, found.recompute

    assert chosen(1000) == (16, 0)  # 4096 tokens at once are enough on a CPU
    assert chosen(150) == (8, 0)
    assert chosen(60) == (4, 1)  # 1024 tokens keep it busy; fewer do not
    assert chosen(30) == (4, 3)
    assert chosen(6) == (1, 3)


def test_plan_decides_what_it_sets() -> None:
    found = choose(LEDGER, recipe(), FP32, Plan(microbatch=4, recompute=2), 1 << 40, "cuda")
    assert found is not None
    assert (found.microbatch, found.recompute) == (4, 2)
    with pytest.raises(Problem, match="a microbatch of 5 does not divide the batch of 16 sequences"):
        candidates(recipe(), Plan(microbatch=5), "cpu")


def test_refusal_shows_the_ledger_and_the_plan_that_fits() -> None:
    least = smallest(LEDGER, recipe(), FP32, Plan(), "cpu")
    problem = refusal(least, 1000, "available on cpu", ["one"])
    assert "optimizer states" in problem.message and "microbatch of 1" in problem.message
    assert problem.message.splitlines()[-1].startswith("  total")
    assert problem.help is not None and problem.help.startswith("--plan one fits here")


def test_sizes_for_people() -> None:
    assert size(812 << 20) == "812.0 MiB"
    assert size(3 << 29) == "1.5 GiB"
