"""Experts in kernels: sorting, grouped products and the whole layer against float64, for every way that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dskc.runtime.kernels.experts.layer as layer
from dskc.runtime import reference
from dskc.runtime.kernels import KernelError, tuning, use_kernels
from dskc.runtime.kernels.experts import (
    combine,
    gated,
    grouped,
    grouped_fp8,
    grouped_outer,
    grouped_product,
    sorting,
)
from dskc.runtime.kernels.experts.gated import SILU_GATE, GatedActivation
from dskc.runtime.kernels.experts.grouped_product import MANY_ROWS
from dskc.runtime.kernels.experts.layer import Biases, experts
from dskc.runtime.kernels.language import tl, triton
from dskc.runtime.kernels.tuning import Way

from .conftest import examples, triton_interprets

with triton_interprets():

    @triton.jit
    def bounded_gate(gate, up):  # type: ignore[no-untyped-def]
        gate, up = tl.minimum(gate, 2.0), tl.minimum(tl.maximum(up, -2.0), 2.0)
        return gate * tl.sigmoid(1.702 * gate) * (up + 1)

    @triton.jit
    def bounded_gate_gradient(gate, up, grad):  # type: ignore[no-untyped-def]
        low, mid = tl.minimum(gate, 2.0), tl.minimum(tl.maximum(up, -2.0), 2.0)
        share = tl.sigmoid(1.702 * low)
        grad_gate = grad * (mid + 1) * share * (1 + 1.702 * low * (1 - share))
        return tl.where(gate <= 2.0, grad_gate, 0.0), tl.where(tl.abs(up) <= 2.0, grad * low * share, 0.0)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])  # interpreted, bf16 is wrong
SMALL = [
    grouped_product.blocks(4, 1, shape, tma=tma, flat=flat)
    for shape, tma, flat in [
        ((16, 16, 16), True, False), ((16, 32, 16), True, True), ((32, 16, 16), False, True),
        ((16, 16, 32), False, False),
    ]
]  # fmt: skip
MODULES = (sorting, grouped, grouped_outer, gated, combine, layer, grouped_fp8)
Result = TypeVar("Result")

BOUNDED_GATE = GatedActivation(
    "bounded_gate", bounded_gate, bounded_gate_gradient,
    lambda gate, up: gate.clamp(max=2) * torch.sigmoid(1.702 * gate.clamp(max=2)) * (up.clamp(-2, 2) + 1),
)  # fmt: skip


def poisoned(made: Tensor) -> Tensor:
    """What nobody has written is seen: not a number, or far outside."""
    return made.fill_(torch.nan if made.is_floating_point() and made.itemsize > 1 else 0x7F)


@contextmanager
def way(number: int) -> Iterator[None]:
    """Of each operation the way of this number, in memory that is poisoned; tiny tiles where Triton interprets."""

    def run_best(operation: str, key: object, ways: Sequence[Way], run: Callable[[Way], Result]) -> Result:
        for i in range(len(ways)):
            try:
                return run(ways[(number + i) % len(ways)])
            except Exception as error:
                if not tuning._unfit(error):
                    raise
        raise AssertionError(f"no way of {operation} fits")

    def fitting(tiles: object, copied: Sequence[Tensor], gathered: Sequence[Tensor] = ()) -> list[Way]:
        tma = all(map(grouped_product.aligned, copied))
        return [tile for tile in SMALL if tma or not tile["TMA"]]

    empty, empty_like = torch.empty, torch.empty_like
    with pytest.MonkeyPatch.context() as patch, use_kernels("triton"):
        for module in MODULES:
            if hasattr(module, "run_best"):
                patch.setattr(module, "run_best", run_best)
        if DEVICE == "cpu":
            for module in (grouped_product, gated, grouped_outer, grouped_fp8):
                patch.setattr(module, "fitting", fitting)
            for module in (grouped, grouped_outer, gated, layer):
                patch.setattr(module, "takes_grouped_mm", lambda *tensors: all(map(grouped_product.aligned, tensors)))
            patch.setattr(sorting, "ELEMENTS", 64)
            patch.setattr(sorting, "SCANNED", 16)
            patch.setattr(sorting, "PROGRAMS", 4)
        patch.setattr(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k)))
        patch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
        yield


def assert_close(found: Sequence[Tensor], exact: Sequence[Tensor], tolerance: float, what: object = "") -> None:
    """Each within a tolerance of the norm."""
    assert len(found) == len(exact)
    for i, (y, z) in enumerate(zip(found, exact, strict=True)):
        assert y.shape == z.shape
        error, scale = (y.double() - z).norm().item(), z.norm().item()
        assert error <= tolerance * scale + 1e-30, f"{i}: {error / (scale or 1):.1e} {what}"  # NaN fails too


def random(*shape: int, seed: int, dtype: torch.dtype, strided: bool = False) -> Tensor:
    """A leaf; with `strided`, a part of something wider."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(*shape[:-1], shape[-1] + 3 * strided, generator=generator).to(DEVICE, dtype)
    return wide[..., : shape[-1]].detach().requires_grad_()


def gradients(y: Tensor, leaves: Sequence[Tensor], direction: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, leaves, direction.to(y)))


# --- sorting


@settings(max_examples=examples(12), **QUIET)
@given(
    rows=st.sampled_from([0, 1, 5, 16, 17, 50]),
    experts=st.sampled_from([1, 2, 5, 8, 33]),
    seed=st.integers(0, 99),
    number=st.integers(0, 2),
)
def test_sorting(rows: int, experts: int, seed: int, number: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    most = torch.randint(1, experts + 1, (), generator=generator).item()  # often not all of them are chosen
    chosen = torch.randint(0, int(most), (rows,), generator=generator).to(DEVICE)
    with way(number):
        found = sorting.sort_by_expert(chosen, experts)
    rows_ = reference.dispatch(torch.zeros(1, rows, 1, device=DEVICE), chosen.view(1, rows, 1), experts)
    for ours, theirs in zip(found, (rows_.offsets_X, rows_.order_R, rows_.home_R), strict=True):
        assert ours.dtype == torch.int32
        assert torch.equal(ours.long(), theirs.long())


# --- grouped products

COUNTS = st.lists(st.sampled_from([0, 0, 1, 2, 7, 16, 17, 40]), min_size=1, max_size=4)
WIDTHS = st.sampled_from([1, 3, 8, 16, 19, 24])


def grouped_case(
    counts: Sequence[int], width: int, inner: int, dtype: torch.dtype, number: int, bias: bool, strided: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Result and gradients by kernels, and in float64."""
    rows, experts = sum(counts), len(counts)
    offsets = torch.tensor(counts, device=DEVICE).cumsum(0).to(torch.int32)
    leaves = [random(rows, width, seed=1, dtype=dtype, strided=strided)]
    leaves.append(random(experts, inner, width, seed=2, dtype=dtype, strided=strided))
    leaves += [random(experts, inner, seed=3, dtype=dtype)] if bias else []
    exact = [t.detach().double().requires_grad_() for t in leaves]
    direction = random(rows, inner, seed=4, dtype=dtype, strided=strided).detach()
    with way(number):
        y = grouped.grouped_linear(*leaves[:2], offsets, *leaves[2:])
        found = [y, *gradients(y, leaves, direction)]
    with use_kernels("reference"):
        z = grouped.grouped_linear(*exact[:2], offsets, *exact[2:])
    return found, [z, *gradients(z, exact, direction)]


@settings(max_examples=examples(18), **QUIET)
@given(
    counts=COUNTS, width=WIDTHS, inner=WIDTHS, dtype=st.sampled_from(DTYPES), number=st.integers(0, 12),
    bias=st.booleans(), strided=st.booleans(),
)  # fmt: skip
def test_grouped_linear(
    counts: list[int], width: int, inner: int, dtype: torch.dtype, number: int, bias: bool, strided: bool
) -> None:
    found, exact = grouped_case(counts, width, inner, dtype, number, bias, strided)
    assert_close(found, exact, TOLERANCE[dtype])
    for expert, count in enumerate(counts):
        assert count or not any(g[expert].any() for g in found[2:])


@pytest.mark.parametrize("number", range(len(SMALL) + 1))
def test_grouped_linear_each_way(number: int) -> None:
    """Sizes of whole tiles, so that nothing but the rows' ends is masked."""
    found, exact = grouped_case((5, 0, 17, 3), 32, 32, torch.float16, number, bias=False)
    assert_close(found, exact, TOLERANCE[torch.float16])


def test_gradients_that_are_spread_and_that_are_not_wanted() -> None:
    offsets = torch.tensor([2, 5], dtype=torch.int32, device=DEVICE)
    x, weight = random(5, 8, seed=0, dtype=torch.float32), random(2, 16, 8, seed=1, dtype=torch.float32)
    with way(0):
        grouped.grouped_linear(x, weight.detach(), offsets).sum().backward()  # its gradient has strides of zero
        assert x.grad is not None and weight.grad is None
        grouped.grouped_linear(x.detach(), weight, offsets).sum().backward()
    assert_close(
        [x.grad[:2], x.grad[2:]], [weight.double().sum(1)[i].detach().expand(n, 8) for i, n in ((0, 2), (1, 3))], 1e-5
    )
    assert weight.grad is not None
    assert_close([weight.grad[0]], [x.detach().double()[:2].sum(0).expand(16, 8)], 1e-5)


@pytest.mark.parametrize("number", range(4))
def test_a_row_knows_nothing_of_others(number: int) -> None:
    """Neither of the rows of other experts, which its tile reads, nor of how many there are."""
    offsets = torch.tensor([3, 20, 24], dtype=torch.int32, device=DEVICE)
    x, weight = (random(*shape, seed=0, dtype=torch.float16).detach() for shape in ((24, 16), (3, 24, 16)))
    spoilt, other = x.clone(), weight.clone()
    spoilt[20:], other[2] = torch.nan, torch.inf
    leaves = [spoilt.requires_grad_(), other.requires_grad_()]
    with way(number):
        whole = grouped.grouped_linear(x, weight, offsets)
        y = grouped.grouped_linear(leaves[0], leaves[1], offsets)
        assert torch.equal(y[:20], whole[:20])
        grad_x, grad_weight = torch.autograd.grad(y, leaves, torch.ones_like(y))
        alone = grouped.grouped_linear(x[19:20], weight, torch.tensor([0, 1, 1], dtype=torch.int32, device=DEVICE))
    assert grad_x[:20].isfinite().all() and grad_weight[:2].isfinite().all() and grad_weight[2].isnan().all()
    if DEVICE == "cpu":  # elsewhere one row has other tiles
        assert torch.equal(alone[0], whole[19])


# --- the whole layer


def choices(tokens: int, k: int, count: int, kind: str, seed: int) -> Tensor:
    """int64 [tokens, k]: evenly drawn, all on the last experts, or of each token other ones of a few."""
    generator = torch.Generator().manual_seed(seed)
    few = {"even": count, "one": k, "few": min(count, k + 1)}[kind]
    score = torch.rand(tokens, few, generator=generator)
    return (score.argsort(-1)[:, :k] + (count - few if kind != "even" else 0)).to(DEVICE)


def layer_case(
    tokens: int, k: int, count: int, inner: int, width: int, dtype: torch.dtype, number: int, kind: str = "even",
    bias: bool = False, keep: bool = True, activation: GatedActivation = SILU_GATE, strided: bool = False,
    scale: float = 1.0,
) -> tuple[list[Tensor], list[Tensor], Tensor]:  # fmt: skip
    """Result and gradients by kernels, and in float64; the choices."""
    shapes = [(tokens, width), (tokens, k), (count, inner, width), (count, inner, width), (count, width, inner)]
    shapes += [(count, inner), (count, inner), (count, width)] if bias else []
    leaves = [
        random(*shape, seed=i, dtype=torch.float32 if i == 1 else dtype, strided=strided)
        for i, shape in enumerate(shapes)
    ]
    if scale != 1:
        leaves[4] = (leaves[4].detach() * scale).requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in leaves]
    chosen = choices(tokens, k, count, kind, seed=number)
    direction = random(tokens, width, seed=9, dtype=dtype, strided=strided).detach()

    def run(leaves: Sequence[Tensor], **options: Any) -> Tensor:
        x, weight, *others = leaves
        biases = Biases(*others[3:]) if bias else None
        return experts(x, chosen, weight, *others[:3], activation=activation, biases=biases, **options)

    with way(number):
        y = run(leaves, keep=keep)
        found = [y, *gradients(y, leaves, direction)]
    with use_kernels("reference"):
        z = run(exact)
    return found, [z, *gradients(z, exact, direction)], chosen


@settings(max_examples=examples(10), **QUIET)
@given(
    tokens=st.sampled_from([0, 1, 5, 13]), k=st.integers(1, 3), count=st.sampled_from([3, 5]),
    inner=st.sampled_from([1, 8, 19, 24]), width=st.sampled_from([3, 8, 24]),
    dtype=st.sampled_from(DTYPES), number=st.integers(0, 12),
    kind=st.sampled_from(["even", "one", "few"]), bias=st.booleans(), keep=st.booleans(),
    activation=st.sampled_from([SILU_GATE, BOUNDED_GATE]), strided=st.booleans(),
)  # fmt: skip
def test_experts(
    tokens: int, k: int, count: int, inner: int, width: int, dtype: torch.dtype, number: int, kind: str, bias: bool,
    keep: bool, activation: GatedActivation, strided: bool,
) -> None:  # fmt: skip
    if activation is BOUNDED_GATE:
        dtype = torch.float32  # rounded coarsely, a number is beyond a bound, where the gradient is another
    found, exact, chosen = layer_case(
        tokens, k, count, inner, width, dtype, number, kind, bias, keep, activation, strided
    )
    assert_close(found, exact, 2 * TOLERANCE[dtype])
    idle = torch.bincount(chosen.flatten(), minlength=count) == 0
    assert not any(gradient[idle].any() for gradient in found[3:])


@pytest.mark.parametrize("many", [MANY_ROWS, 0], ids=["gathered by kernels", "copied first"])
@pytest.mark.parametrize("number", range(len(SMALL) + 2))
def test_experts_each_way(number: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of a multiple of 16 bytes, so that the TMA unit is a way, and torch's own products."""
    monkeypatch.setattr(grouped_product, "MANY_ROWS", many)
    found, exact, _ = layer_case(11, 2, 3, 24, 24, torch.float16, number, bias=number % 2 == 1)
    assert_close(found, exact, 2 * TOLERANCE[torch.float16])


def test_keeping_less_gives_the_same_bits_and_so_does_a_second_time() -> None:
    runs = [layer_case(7, 2, 2, 16, 8, torch.float16, 0, keep=keep)[0] for keep in (True, False, True)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_huge_and_tiny(scale: float) -> None:
    found, exact, _ = layer_case(5, 2, 3, 16, 8, torch.float32, 0, scale=scale)
    assert_close(found, exact, 1e-4)


def test_a_layer_for_axes_before_the_last_and_weights_of_other_dtypes() -> None:
    x, weight = random(2, 3, 8, seed=0, dtype=torch.float16), random(2, 3, 2, seed=1, dtype=torch.float16)
    weights = [random(*shape, seed=2, dtype=torch.float32) for shape in ((3, 16, 8), (3, 16, 8), (3, 8, 16))]
    chosen = choices(6, 2, 3, "even", 0).view(2, 3, 2)
    with way(0):
        y = experts(x, chosen, weight, *weights)
        y.sum().backward()
    assert y.shape == x.shape and y.dtype == torch.float16
    for leaf in (x, weight, *weights):
        assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype and leaf.grad.isfinite().all()


@pytest.mark.parametrize("activation", [SILU_GATE, BOUNDED_GATE], ids=lambda a: a.name)
def test_an_activations_gradient_is_that_of_its_value(activation: GatedActivation) -> None:
    gate, up, grad = (3 * random(1, 64, seed=i, dtype=torch.float32).detach() for i in range(3))
    leaves = [gate.double().requires_grad_(), up.double().requires_grad_()]
    exact = [activation.reference(*leaves)]
    exact += torch.autograd.grad(exact[0], leaves, grad.double())
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    found = [torch.empty_like(gate) for _ in range(3)]
    gated.activate_gradient_kernel[(1,)](
        grad, gate, up, one, found[1], found[2], found[0], None, zero, 64, activation.value, activation.gradient, 32
    )
    assert_close(found, exact, 1e-6)


def test_what_the_layer_cannot_take() -> None:
    def call(**changes: Any) -> None:
        tensors = {
            "x_TD": torch.zeros(5, 8),
            "chosen_TK": torch.zeros(5, 2, dtype=torch.int64), "weight_TK": torch.zeros(5, 2),
            "gate_XFD": torch.zeros(3, 16, 8), "up_XFD": torch.zeros(3, 16, 8), "down_XDF": torch.zeros(3, 8, 16),
        } | changes  # fmt: skip
        experts(**{k: v.to(DEVICE) if isinstance(v, Tensor) and not v.is_meta else v for k, v in tensors.items()})

    biases = Biases(torch.zeros(3, 16), torch.zeros(3, 16), torch.zeros(3, 16))
    cases: dict[str, dict[str, Any]] = {
        "take bfloat16": {"x_TD": torch.zeros(5, 8, dtype=torch.float64)},
        "do not fit": {"x_TD": torch.zeros(5, 9)},
        "must be .X, F, D. twice": {"down_XDF": torch.zeros(3, 16, 8)},
        "choices .5, 1.": {"chosen_TK": torch.zeros(5, 1, dtype=torch.int64)},
        "must be int64": {"chosen_TK": torch.zeros(5, 2)},
        "biases are": {"biases": Biases(*(b.to(DEVICE) for b in biases))},
        "not on": {"gate_XFD": torch.zeros(3, 16, 8, device="meta")},
    }
    with way(0):
        for message, changes in cases.items():
            with pytest.raises(KernelError, match=f"experts: .*{message}"):
                call(**changes)
        offsets = torch.zeros(3, dtype=torch.int64, device=DEVICE)
        weight, x = torch.zeros(3, 16, 8, device=DEVICE), torch.zeros(5, 8, device=DEVICE)
        with pytest.raises(KernelError, match="grouped_linear: offsets are"):
            grouped.grouped_linear(x, weight, offsets)
        with pytest.raises(KernelError, match="grouped_linear: rows"):
            grouped.grouped_linear(x[:, :7], weight, offsets.int())
        with pytest.raises(KernelError, match="grouped_linear: bias"):
            grouped.grouped_linear(x, weight, offsets.int(), weight[:, 0])
        with pytest.raises(KernelError, match="sort_by_expert: choices are"):
            sorting.sort_by_expert(x, 3)


def test_torch_knows_the_operators() -> None:
    x, weight = random(4, 8, seed=0, dtype=torch.float32), random(4, 2, seed=1, dtype=torch.float32)
    weights = [random(*shape, seed=2, dtype=torch.float32) for shape in ((3, 16, 8), (3, 16, 8), (3, 8, 16))]
    chosen = choices(4, 2, 3, "even", 0)
    offsets = torch.tensor([1, 1, 4], dtype=torch.int32, device=DEVICE)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    with way(0):
        options = (None, None, None, SILU_GATE.key, True)
        torch.library.opcheck(layer._forward, (x, chosen, weight, *weights, *options), test_utils=tests)
        torch.library.opcheck(grouped._linear, (x, weights[0], offsets), test_utils=tests)


# --- 8-bit floats


def test_quantized_rows() -> None:
    x = random(7, 33, seed=0, dtype=torch.float32).detach() * torch.logspace(-20, 20, 7, device=DEVICE)[:, None]
    x[3] = 0
    values, scale = grouped_fp8.quantize_rows(x)
    expected, their_scale = (t.to(DEVICE) for t in reference.quantize(x.cpu(), "fp8"))
    assert torch.equal(scale, their_scale)
    same, size = values.float() == expected.float(), expected.float().abs()
    if DEVICE == "cpu":  # interpreted, rounding up to a power of two does not carry, and subnormal numbers are cut
        assert (same | (size.log2().frac() == 0) | (size < 2**-6)).all()
    assert same.float().mean() > 0.9 if DEVICE == "cpu" else same.all()


@settings(max_examples=examples(6), **QUIET)
@given(
    counts=COUNTS, inner=WIDTHS, width=st.sampled_from([16, 48, 80]), number=st.integers(0, 12), gather=st.booleans(),
    exact=st.booleans(),
)  # fmt: skip
def test_grouped_linear_fp8(counts: list[int], inner: int, width: int, number: int, gather: bool, exact: bool) -> None:
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        return
    rows, offsets = sum(counts), torch.tensor(counts, device=DEVICE).cumsum(0).to(torch.int32)
    x, x_scale = reference.quantize(random(rows, width, seed=0, dtype=torch.float32), "fp8")
    weight, weight_scale = reference.quantize(random(len(counts), inner, width, seed=1, dtype=torch.float32), "fp8")
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).int().to(DEVICE) if gather else None
    with way(number):
        y = grouped_fp8.grouped_linear_fp8(
            x, x_scale, weight, weight_scale, offsets, order, int(gather), dtype=torch.float32, exact=exact
        )
    wide = x.double() * x_scale.double()[:, None]
    with use_kernels("reference"):
        z = grouped.grouped_linear(
            wide if order is None else wide[order.long()], weight.double() * weight_scale.double()[..., None], offsets
        )
    assert_close([y], [z], 1e-3 if exact else 1e-2)


# --- on a GPU, with the tiles that it is given


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize(  # as many as there are ways for so many rows of an expert: few, some, many
    ("tokens", "number"), [(tokens, n) for tokens, count in ((3, 9), (100, 10), (2000, 14)) for n in range(count)]
)
def test_every_tile(number: int, tokens: int) -> None:
    found, exact, _ = layer_case(tokens, 4, 8, 384, 512, torch.bfloat16, number, bias=number % 2 == 1)
    assert_close(found, exact, 3e-2, number)
    found, exact = grouped_case((tokens, 0, 77, 1), 512, 392, torch.bfloat16, number, bias=False)
    assert_close(found, exact, 2e-2, number)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_nothing_waits_for_the_device_and_torch_compile_sees_one_graph() -> None:
    x, weight = random(300, 256, seed=0, dtype=torch.bfloat16), random(300, 4, seed=1, dtype=torch.float32)
    shapes = ((8, 384, 256), (8, 384, 256), (8, 256, 384))
    weights = [random(*shape, seed=2, dtype=torch.bfloat16) for shape in shapes]
    chosen, leaves = choices(300, 4, 8, "even", 0), [x, weight, *weights]

    def step(run: Callable[..., Tensor]) -> list[Tensor]:
        y = run(x, chosen, weight, *weights)
        return [y, *torch.autograd.grad(y.float().square().mean(), leaves)]

    first = step(experts)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = step(experts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    compiled = step(torch.compile(experts, fullgraph=True))
    for other in (again, compiled):
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
