"""Products of int8 and of 8-bit floats, their quantizers, a linear layer trained with them: against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.products import fp8_matmul, fp8_quantize, int8_matmul, product
from dskc.runtime.kernels.tuning import Tile
from dskc.runtime.reference import quantized as reference
from dskc.runtime.reference.quantized import Int8Rows, quantize_int8_rows

from .conftest import examples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float16, torch.float32)
EPSILON = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with use_kernels("triton"):
        yield


def choose(patch: pytest.MonkeyPatch, index: int) -> None:
    """Takes the way at `index` of each operation, round and round, small on a CPU; poisons what is not written."""

    def run(operation, key, ways, run):  # type: ignore[no-untyped-def]
        way = ways[index % len(ways)]
        if DEVICE == "cpu" and isinstance(way, Tile) and "GROUP" in dict(way.blocks):
            # On a CPU of the same kind, but smaller: several tiles each way.
            small = {"BLOCK_N": 16, "BLOCK_F": 32, "BLOCK_D": 128 if way["BLOCK_F"] != 64 else 64, "GROUP": 2}
            small["BLOCK_D"] = 128 if operation.startswith("fp8_blocks") else small["BLOCK_D"]
            way = Tile(way.name, tuple({**dict(way.blocks), **small}.items()), way.warps, way.stages)
        return run(way)

    empty = torch.empty

    def poisoned(*args, **kwargs):  # type: ignore[no-untyped-def]
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan if made.is_floating_point() else 77) if made.numel() else made

    for module in (fp8_quantize, int8_matmul, product):
        patch.setattr(module, "run_best", run)
    patch.setattr(torch, "empty", poisoned)


def near(ours: Tensor, theirs: Tensor, epsilon: float) -> None:
    assert ours.shape == theirs.shape and ours.isfinite().all()
    error, scale = (ours.cpu().double() - theirs.cpu()).abs(), theirs.cpu().abs().amax() if theirs.numel() else 1.0
    assert (error <= epsilon * scale + 1e-30).all(), f"{(error.max() / scale).item():.2e}"


SIZES = st.sampled_from([1, 2, 15, 16, 17, 40, 70])
WIDTHS = st.sampled_from([1, 16, 48, 100, 128, 144, 300])


@settings(max_examples=examples(25), **QUIET)
@given(N=st.one_of(st.just(0), SIZES), F=SIZES, D=WIDTHS, dtype=st.sampled_from((*DTYPES, torch.float32)),
       zero=st.sampled_from([0, 3, 128, 255]), way=st.integers(0, 9), shifted=st.booleans(),
       biased=st.booleans())  # fmt: skip
def test_int8_products_are_exact(
    N: int, F: int, D: int, dtype: torch.dtype, zero: int, way: int, shifted: bool, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(N + F + D)
    x = torch.randint(0, 256, (N, D), generator=generator, dtype=torch.uint8).to(DEVICE)
    values = torch.randint(-128, 128, (F, D), generator=generator, dtype=torch.int8).to(DEVICE)
    weight = Int8Rows(values, numbers(F).abs() + 0.1)
    scale, zero_point = torch.tensor(0.013, device=DEVICE), torch.tensor(zero, dtype=torch.int32, device=DEVICE)
    bias = numbers(F, seed=2) if biased else None
    theirs = reference.int8_linear(x, weight, scale, zero_point, bias, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, way)
        given_ = (x ^ 128).view(torch.int8) if shifted else x
        y = int8_matmul.int8_linear(given_, weight, scale, zero_point, bias_F=bias, dtype=dtype)
        again = int8_matmul.int8_linear(
            given_, weight, scale, zero_point, int8_matmul.weight_sums(weight), bias_F=bias, dtype=dtype
        )
    assert y.dtype == dtype and torch.equal(y, again)
    near(y, theirs, EPSILON[dtype])


@settings(max_examples=examples(20), **QUIET)
@given(shape=st.sampled_from([(1,), (0, 3), (7, 5), (3, 700), (2, 2500)]),
       dtype=st.sampled_from((*DTYPES, torch.float32)),
       magnitude=st.sampled_from([1e-30, 0.02, 1.0, 1e4]), zero=st.sampled_from([0, 128, 255]), way=st.integers(0, 2),
       shifted=st.booleans(), strided=st.booleans())  # fmt: skip
def test_activations_are_quantized_as_they_are_defined(
    shape: tuple[int, ...], dtype: torch.dtype, magnitude: float, zero: int, way: int, shifted: bool, strided: bool
) -> None:
    x = (numbers(*shape, seed=zero) * magnitude).to(dtype)
    x = x.mT if strided and x.ndim == 2 else x
    scale, zero_point = torch.tensor(0.01, device=DEVICE), torch.tensor(zero, dtype=torch.int32, device=DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, way)
        ours = int8_matmul.quantize_activations(x, scale, zero_point, shifted)
    theirs = reference.quantize_uint8(x, scale, zero_point)
    assert torch.equal(ours, (theirs ^ 128).view(torch.int8) if shifted else theirs)


def test_what_is_no_number_or_halfway_when_quantized() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5, 1.5, 2.5, -0.5, 3.4e38], device=DEVICE)
    one, zero = torch.tensor(1.0, device=DEVICE), torch.tensor(7, dtype=torch.int32, device=DEVICE)
    ours = int8_matmul.quantize_activations(x, one, zero)
    assert ours.tolist() == [0, 255, 0, 7, 9, 9, 7, 255]
    assert torch.equal(ours, reference.quantize_uint8(x, one, zero))


QUANTIZERS = {
    "rows": (fp8_quantize.quantize_rows, reference.quantize_fp8_rows, lambda s, x: s[:, None].expand_as(x)),
    "columns": (fp8_quantize.quantize_columns, lambda x, to: reference.quantize_fp8_rows(x.t(), to),
                lambda s, x: s[:, None].expand_as(x)),
    "tiles": (fp8_quantize.quantize_tiles, reference.quantize_fp8_tiles,
              lambda s, x: reference.spread_scales(s, *x.shape, 1)),
    "blocks": (fp8_quantize.quantize_blocks, reference.quantize_fp8_blocks,
               lambda s, x: reference.spread_scales(s, *x.shape, 128)),
}  # fmt: skip


def eight_bits(shape: tuple[int, int], to: torch.dtype, seed: int) -> Tensor:
    return (numbers(*shape, seed=seed) * 30).clamp(-440, 440).cpu().to(to).to(DEVICE)


@pytest.mark.parametrize("kind", sorted(QUANTIZERS))
@settings(max_examples=examples(8), **QUIET)
@given(shape=st.sampled_from([(1, 16), (2, 100), (33, 300), (130, 129), (3, 1)]), to=st.sampled_from(FP8),
       power=st.sampled_from([-70, 0, 40]), way=st.integers(0, 3), strided=st.booleans())  # fmt: skip
def test_numbers_that_fit_eight_bits_keep_all_of_them(
    kind: str, shape: tuple[int, int], to: torch.dtype, power: int, way: int, strided: bool
) -> None:
    quantizer, meaning, spread = QUANTIZERS[kind]
    x = eight_bits(shape, to, 5).float()
    x[:, ::128] = x[::128] = reference.LARGEST[to]  # in every row, column, tile and block, so that scales are powers
    x = (x.t().contiguous().t() if strided else x) * 2.0**power
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, way)
        values, scale = quantizer(x, to)
    expected, expected_scale = meaning(x, to)
    assert torch.equal(scale, expected_scale) and torch.equal(values.float(), expected.float())
    assert torch.equal(values.float() * spread(scale, values), x.t() if kind == "columns" else x)


@pytest.mark.parametrize("kind", sorted(QUANTIZERS))
@settings(max_examples=examples(6), **QUIET)
@given(shape=st.sampled_from([(1, 1), (2, 100), (33, 129)]), to=st.sampled_from(FP8),
       dtype=st.sampled_from((*DTYPES, torch.float32)), magnitude=st.sampled_from([1e-25, 1.0,
       3e4]), way=st.integers(0, 3))  # fmt: skip
def test_other_numbers_are_rounded(
    kind: str, shape: tuple[int, int], to: torch.dtype, dtype: torch.dtype, magnitude: float, way: int
) -> None:
    quantizer, meaning, _ = QUANTIZERS[kind]
    x = numbers(*shape, seed=3).mul(magnitude).clamp(-6e4, 6e4).to(dtype)
    x[0] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, way)
        values, scale = quantizer(x, to)
    expected, expected_scale = (t.to(DEVICE) for t in meaning(x.cpu(), to))
    assert torch.equal(scale, expected_scale)
    if DEVICE == "cuda":
        assert torch.equal(values.float(), expected.float())
    else:  # Triton's interpreter rounds a fraction up without a carry: few numbers come out up to half as large
        assert (values.float() - expected.float()).norm() <= 0.25 * expected.float().norm()


@settings(max_examples=examples(16), **QUIET)
@given(N=st.one_of(st.just(0), SIZES), F=st.one_of(SIZES, st.just(140)), D=WIDTHS,
       dtype=st.sampled_from((*DTYPES, torch.float32)),
       x_to=st.sampled_from(FP8), w_to=st.sampled_from(FP8), blocks=st.booleans(),
       fast=st.booleans(), way=st.integers(0, 10))  # fmt: skip
def test_products_of_eight_bit_floats(
    N: int, F: int, D: int, dtype: torch.dtype, x_to: torch.dtype, w_to: torch.dtype, blocks: bool, fast: bool, way: int
) -> None:
    x, w = eight_bits((N, D), x_to, 1), eight_bits((F, D), w_to, 2)
    columns, rows = -(-D // 128), -(-F // 128)
    x_scale, w_scale = ((N, columns), (rows, columns)) if blocks else ((N,), (F,))
    x_scale, w_scale = (numbers(*s, seed=3).abs() * 1e-3 + 1e-4 for s in (x_scale, w_scale))
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, way)

        def ours() -> Tensor:
            if blocks:
                return fp8_matmul.fp8_blocks_matmul(x, x_scale, w, w_scale, dtype)
            return fp8_matmul.fp8_rows_matmul(x, x_scale, w, w_scale, dtype, fast)

        y = ours()
        assert torch.equal(y, ours())
    meaning = reference.fp8_blocks_linear if blocks else reference.fp8_rows_linear
    theirs = meaning(x.cpu(), x_scale.cpu(), w.cpu(), w_scale.cpu(), torch.float64)
    assert y.dtype == dtype
    near(y, theirs, EPSILON[dtype] + (2e-3 if DEVICE == "cuda" else 0))  # tensor cores keep 14 bits of sums


@pytest.mark.parametrize("gradient", ["e4m3", "e5m2"])
@pytest.mark.parametrize("scaling", ["rows", "blocks"])
@pytest.mark.parametrize("shape", [(1, 16, 8), (2, 3, 40, 24), (0, 16, 8), (5, 136, 144)])
def test_a_linear_layer_trains(gradient: str, scaling: fp8_matmul.Scaling, shape: tuple[int, ...]) -> None:
    *lead, D, F = shape
    x, w = numbers(*lead, D, seed=1).requires_grad_(), numbers(F, D, seed=2).requires_grad_()
    direction = numbers(*lead, F, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, 99)
        y = fp8_matmul.fp8_linear(x, w, scaling=scaling, gradient=gradient)
        found = torch.autograd.grad(y, (x, w), direction)
    exact = torch.nn.functional.linear(x, w)
    wanted = torch.autograd.grad(exact, (x, w), direction)
    # A product of two numbers of 4 bits each is off by some percent, by more in Triton's interpreter.
    coarse = 0.25 if DEVICE == "cpu" else 0.1 if gradient == "e4m3" else 0.2
    for ours, theirs, bound in (
        (y, exact, 0.25 if DEVICE == "cpu" else 0.1),
        (found[0], wanted[0], coarse),
        (found[1], wanted[1], coarse),
    ):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= bound * theirs.norm()


@pytest.mark.skipif(DEVICE == "cuda", reason="of the arithmetic, which references do exactly")
def test_blocks_are_those_of_the_transpose_in_backward() -> None:
    """The gradient of x is the product with the very weight of forward: the same 8-bit values and scales."""
    x, w, direction = numbers(4, 300).requires_grad_(), numbers(200, 300, seed=2), numbers(4, 200, seed=3)
    with use_kernels("reference"):
        (found,) = torch.autograd.grad(fp8_matmul.fp8_linear(x, w, scaling="blocks", gradient="e4m3"), x, direction)
    values, scales = reference.quantize_fp8_blocks(w)
    meant = values.double() * reference.spread_scales(scales.double(), 200, 300, 128)
    tiles, tile_scales = reference.quantize_fp8_tiles(direction)
    given = tiles.double() * reference.spread_scales(tile_scales.double(), 4, 200, 1)
    near(found, given @ meant, EPSILON[torch.float32])


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, w = numbers(4, 16), numbers(8, 16).requires_grad_()
    fp8_matmul.fp8_linear(x, w).sum().backward()
    assert x.grad is None and w.grad is not None
    x, w = x.requires_grad_(), w.detach()
    y = fp8_matmul.fp8_linear(x, w)
    assert [t.dtype for t in y.grad_fn.next_functions[0][0].saved_tensors] == [torch.float32]  # no copy of x
    y.sum().backward()
    assert x.grad is not None


def test_numbers_beyond_all_bounds_are_seen() -> None:
    x, w = numbers(3, 16), numbers(8, 16)
    x[1, 3] = torch.nan
    x[2, 5] = torch.inf
    y = fp8_matmul.fp8_linear(x, w)
    assert y[0].isfinite().all() and not y[1].isfinite().any() and not y[2].isfinite().any()


def test_fake_tensors_pass() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, w = torch.empty(5, 32, requires_grad=True), torch.empty(8, 32, requires_grad=True)
        y = fp8_matmul.fp8_linear(x, w)
        grads = torch.autograd.grad(y, (x, w), torch.empty(5, 8))
        assert y.shape == (5, 8) and [g.shape for g in grads] == [(5, 32), (8, 32)]
        weight = Int8Rows(torch.empty(8, 32, dtype=torch.int8), torch.empty(8))
        scale, zero = torch.empty(()), torch.empty((), dtype=torch.int32)
        values = int8_matmul.quantize_activations(torch.empty(5, 32), scale, zero, shifted=True)
        assert int8_matmul.int8_linear(values, weight, scale, zero).shape == (5, 8)


def test_what_it_refuses() -> None:
    weight = quantize_int8_rows(numbers(8, 32))
    one, zero = torch.tensor(1.0, device=DEVICE), torch.tensor(0, dtype=torch.int32, device=DEVICE)
    x = torch.zeros(4, 32, dtype=torch.uint8, device=DEVICE)
    for broken in (
        lambda: int8_matmul.int8_linear(x.float(), weight, one, zero),
        lambda: int8_matmul.int8_linear(x[:, :16], weight, one, zero),
        lambda: int8_matmul.int8_linear(x, weight, one, one),
        lambda: int8_matmul.int8_linear(x, weight, one, zero, dtype=torch.int32),
        lambda: int8_matmul.int8_linear(x, weight, one.expand(2), zero),
        lambda: int8_matmul.int8_linear(x, weight, one, zero, bias_F=numbers(7)),
        lambda: int8_matmul.quantize_activations(x.float(), one, one),
        lambda: int8_matmul.quantize_activations(x.double(), one, zero),
        lambda: fp8_quantize.quantize_rows(numbers(4, 4), torch.int8),
        lambda: fp8_quantize.quantize_tiles(numbers(4)),
        lambda: fp8_matmul.fp8_rows_matmul(x, one, x, one),
        lambda: fp8_matmul.fp8_linear(numbers(4, 8), numbers(4, 9)),
        lambda: fp8_matmul.fp8_linear(numbers(4, 8), numbers(4, 8), gradient="e3m4"),  # type: ignore[arg-type]
    ):
        with pytest.raises(KernelError, match=r"int8_linear|quantize_|fp8_"):
            broken()


def test_a_gpu_without_eight_bit_floats_says_so_or_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_matmul, "has_fp8", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "an older GPU")
    x, w = numbers(4, 8), numbers(3, 8)
    with pytest.raises(KernelError, match=r"fp8_linear: an older GPU has no 8-bit floats"):
        fp8_matmul.fp8_linear(x, w)
    assert torch.equal(fp8_matmul.fp8_linear(x, w, fallback=True), torch.nn.functional.linear(x, w))
