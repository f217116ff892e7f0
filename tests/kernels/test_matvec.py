"""Products of a few rows with weights of 16, 8 and 4 bits against float64, bitwise invariance, what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.tuning import Way
from dskc.runtime.reference.quantized import Weight, quantize_int4_groups, quantize_int8_rows

from .conftest import triton_interprets

with triton_interprets():
    from dskc.runtime.kernels import matvec as module
    from dskc.runtime.kernels.matvec import GELU_TANH_GATE, SILU_GATE, Norm, matvec

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


@settings(max_examples=40, **QUIET)
@given(
    form=st.sampled_from(FORMATS), N=st.sampled_from([1, 1, 2, 3, 4, 5, 16]), F=st.sampled_from([1, 3, 17, 40]),
    D=st.sampled_from([32, 96, 128, 320]), dtype=st.sampled_from(DTYPES), gated=st.booleans(), normed=st.booleans(),
    added=st.booleans(), invariant=st.booleans(), way=st.integers(0, 12), magnitude=st.sampled_from([1.0, 1e-3, 50.0]),
)  # fmt: skip
def test_drawn_products(
    form: str, N: int, F: int, D: int, dtype: torch.dtype, gated: bool, normed: bool, added: bool, invariant: bool,
    way: int, magnitude: float,
) -> None:  # fmt: skip
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
