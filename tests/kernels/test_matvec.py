"""Products of a few rows with weights of 16, 8 and 4 bits against float64, bitwise invariance, what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.products import matvec as module
from dskc.runtime.kernels.products.matvec import GELU_TANH_GATE, SILU_GATE, Norm, matvec
from dskc.runtime.reference.quantized import (
    Int4Groups,
    Int8Rows,
    Weight,
    dequantize,
    pack_int4,
    quantize_int4_groups,
    quantize_int8_rows,
    unpack_int4,
)

from .conftest import examples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float16, torch.bfloat16) if DEVICE == "cuda" else (torch.float16, torch.float32)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
QUIET = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
FORMATS = ("float", "int8", "int4", "int4 symmetric")
pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def weight_of(form: str, F: int, D: int, dtype: torch.dtype, group: int = 32, seed: int = 1) -> Weight:
    w_FD = numbers(F, D, seed=seed, dtype=dtype) * D**-0.5
    if form == "int8":
        return quantize_int8_rows(w_FD)
    if form.startswith("int4"):
        return quantize_int4_groups(w_FD, group, symmetric=form.endswith("symmetric"))
    return w_FD


def exact(weight: Weight | None) -> Weight | None:
    return weight.double() if isinstance(weight, Tensor) else weight


def ways(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Takes the way at `index` only, of those that there are, round and round; poisons what is not written."""

    def run(operation, key, choices, run):  # type: ignore[no-untyped-def]
        return run(choices[index % len(choices)])

    monkeypatch.setattr(module, "run_best", run)
    empty = torch.empty

    def poisoned(*args, **kwargs):  # type: ignore[no-untyped-def]
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(module.torch, "empty", poisoned)


def compare(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    assert ours.shape == theirs.shape and ours.isfinite().all()
    least = 1e-7 * theirs.numel() ** 0.5 if dtype == torch.float16 else 0.0  # its smallest numbers are that far apart
    error, scale = (ours.double() - theirs).norm(), theirs.norm() + least / TOLERANCE[dtype] + 1e-30
    assert error <= TOLERANCE[dtype] * scale, f"{(error / scale).item():.2e}"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("several", [False, True])
@settings(max_examples=examples(7), **QUIET)
@given(
    N=st.sampled_from([2, 3, 4, 5, 16]), F=st.sampled_from([1, 3, 17, 40]),
    D=st.sampled_from([32, 96, 128, 320, 1152]), dtype=st.sampled_from(DTYPES), gated=st.booleans(),
    normed=st.booleans(), added=st.booleans(), invariant=st.booleans(), way=st.integers(0, 12),
    magnitude=st.sampled_from([1.0, 1e-3, 50.0]),
)  # fmt: skip
def test_products_with_all_that_is_fused(
    form: str, several: bool, N: int, F: int, D: int, dtype: torch.dtype, gated: bool, normed: bool, added: bool,
    invariant: bool, way: int, magnitude: float,
) -> None:  # fmt: skip
    if not several:
        N, invariant = 1, False
    group = 128 if D % 128 == 0 else 32
    weight = weight_of(form, F, D, dtype, group)
    up = weight_of(form, F, D, dtype, group, seed=2) if gated else None
    x = numbers(N, D, seed=3, dtype=dtype) * magnitude
    norm = Norm(1 + 0.1 * numbers(D, seed=4, dtype=dtype), 1e-5, 0.5) if normed else None
    bias = numbers(F, seed=5, dtype=dtype) if added else None
    residual = numbers(N, 2 * F, seed=6, dtype=dtype)[:, ::2] if added else None
    gate = SILU_GATE if gated else None
    with pytest.MonkeyPatch.context() as patch, use_kernels("triton"):
        ways(patch, way)
        given_ = {"bias_F": bias, "residual": residual, "norm": norm, "gate": gate, "up": up, "invariant": invariant}
        y = matvec(x, weight, **given_)
        assert torch.equal(y, matvec(x, weight, **given_))
    with use_kernels("reference"):
        theirs = matvec(
            x.double().cpu(), _cpu(exact(weight)), bias_F=_cpu(bias), residual=_cpu(residual),
            norm=Norm(_cpu(norm.weight_D), norm.eps, norm.offset) if norm else None, up=_cpu(exact(up)), gate=gate,
        )  # fmt: skip
    assert y.dtype == dtype
    compare(y.cpu(), theirs, dtype)


def _cpu(value):  # type: ignore[no-untyped-def]
    if isinstance(value, Tensor):
        return value.cpu()
    if value is None:
        return None
    return type(value)(**{k: _cpu(v) if isinstance(v, Tensor) else v for k, v in vars(value).items()})


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("F", "D"), [(20, 128), (3, 1152)])  # of which the second is split along its columns
def test_a_row_has_the_same_bits_whatever_is_beside_it(form: str, F: int, D: int) -> None:
    dtype = DTYPES[0]
    weight = weight_of(form, F, D, dtype, 128)
    x = numbers(16, D, seed=3, dtype=dtype)
    options = {"norm": Norm(1 + 0.1 * numbers(D, seed=4, dtype=dtype)), "invariant": True, "dtype": torch.float32}
    if D == 128:
        options |= {"up": weight_of(form, F, D, dtype, 128, seed=2), "gate": GELU_TANH_GATE}
    with use_kernels("triton"):
        every = matvec(x, weight, **options)
        for row in (0, 6, 15):
            assert torch.equal(matvec(x[row : row + 1], weight, **options), every[row : row + 1])
        assert torch.equal(matvec(x[5:8], weight, **options), every[5:8])
        assert torch.equal(matvec(x.flip(0), weight, **options), every.flip(0))
        beside = x.clone()
        beside[::2] = torch.nan
        assert torch.equal(matvec(beside, weight, **options)[1::2], every[1::2])


@pytest.mark.parametrize("form", FORMATS)
def test_what_lies_otherwise_in_memory_is_the_same(form: str) -> None:
    dtype = DTYPES[0]
    weight, x = weight_of(form, 24, 64, dtype), numbers(64, 6, dtype=dtype).t()
    with use_kernels("triton"):
        y = matvec(x, weight)
        assert torch.equal(matvec(x.contiguous(), weight), y)
        assert torch.equal(matvec(x.reshape(2, 3, 64), weight), y.reshape(2, 3, 24))
        assert torch.equal(matvec(x, weight, early=True), y)
        assert matvec(x[:0], weight).shape == (0, 24)
        assert matvec(x, weight, dtype=torch.float32).dtype == torch.float32
        if isinstance(weight, Tensor):
            wide = torch.zeros(24, 80, dtype=dtype, device=DEVICE)
            wide[:, :64] = weight
            assert torch.equal(matvec(x, wide[:, :64]), y)


def test_formats_give_back_what_they_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 16, (5, 96), generator=generator, dtype=torch.uint8)
    assert torch.equal(unpack_int4(pack_int4(values)), values)
    w_FD = torch.randn(5, 96, generator=generator) * 3
    w_FD[1] = 0.0
    for weight in (
        quantize_int8_rows(w_FD), quantize_int4_groups(w_FD, 32), quantize_int4_groups(w_FD, 32, symmetric=True),
    ):  # fmt: skip
        again = dequantize(weight)
        step = weight.scale_F[:, None] if isinstance(weight, Int8Rows) else weight.scale_FJ.repeat_interleave(32, 1)
        # A zero point is rounded as well, which moves a group's ends by as much again.
        most = 1.001 if isinstance(weight, Int4Groups) and weight.zero_FJ is not None else 0.501
        assert ((again - w_FD).abs() <= most * step).all()
        if isinstance(weight, Int8Rows):
            assert torch.equal(quantize_int8_rows(again).values_FD, weight.values_FD)
        else:
            anew = quantize_int4_groups(again, 32, symmetric=weight.zero_FJ is None)
            torch.testing.assert_close(dequantize(anew), again)
    # By hand, as torchao has it: scale = range / 15, zero = round(-least / scale), value = round(w / scale) + zero.
    by_hand = quantize_int4_groups(torch.tensor([[-1.0, 2.0] + [0.0] * 30]), 32)
    assert by_hand.scale_FJ.item() == pytest.approx(0.2) and by_hand.zero_FJ is not None
    assert by_hand.zero_FJ.item() == 5 and unpack_int4(by_hand.packed_FC)[0, :3].tolist() == [0, 15, 5]


def test_it_is_an_operation_of_torch() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), use_kernels("triton"):
        x = torch.empty(2, 3, 64, dtype=torch.float16)
        weight = Int4Groups(torch.empty(24, 32, dtype=torch.uint8), torch.empty(24, 2), None, 32)
        y = matvec(x, weight, up=weight, gate=SILU_GATE, dtype=torch.float32)
        assert y.shape == (2, 3, 24) and y.dtype == torch.float32


def test_a_cpu_without_an_interpreter_takes_the_reference() -> None:
    x, weight = numbers(3, 64).double().cpu(), _cpu(weight_of("int8", 8, 64, torch.float32))
    with use_kernels("reference"):
        torch.testing.assert_close(matvec(x, weight), x @ dequantize(weight, torch.float64).T)


def test_what_it_refuses() -> None:
    x, w = numbers(2, 64), numbers(8, 64)
    int4 = quantize_int4_groups(w, 32)
    with use_kernels("triton"):
        for broken, says in (
            (lambda: matvec(numbers(17, 64), w), "17 rows"),
            (lambda: matvec(x.double(), w.double()), "float64"),
            (lambda: matvec(x, w.half()), "float16"),
            (lambda: matvec(x, numbers(8, 32)), "64 columns"),
            (lambda: matvec(x, w.t().contiguous().t()), "side by side"),
            (lambda: matvec(x, w, up=w), "gate needs a second weight"),
            (lambda: matvec(x, w, up=int4, gate=SILU_GATE), "one format"),
            (lambda: matvec(x, w, bias_F=numbers(7)), "bias is"),
            (lambda: matvec(x, w, residual=numbers(3, 8)), "residual is"),
            (lambda: matvec(x, w, norm=Norm(numbers(8))), "norm is"),
            (lambda: matvec(x, Int4Groups(int4.packed_FC, int4.scale_FJ[:, :1], None, 32)), "scales and zero"),
            (lambda: matvec(x, Int4Groups(int4.packed_FC, int4.scale_FJ, None, 48)), "32, 64 or 128"),
            (lambda: matvec(x.requires_grad_(), w), "no gradient"),
        ):
            with pytest.raises(KernelError, match=f"matvec: .*{says}"):
                broken()
    with pytest.raises(ValueError, match="groups of 48"):
        quantize_int4_groups(numbers(8, 96), 48)
