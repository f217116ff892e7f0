"""Products of int8 and of 8-bit floats, their quantizers, a linear layer trained with them: against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.runtime.kernels import KernelError, use_kernels
from dskc.runtime.kernels.tuning import Tile
from dskc.runtime.reference import quantized as reference
from dskc.runtime.reference.quantized import Int8Rows, quantize_int8_rows

from .conftest import triton_interprets

with triton_interprets():
    from dskc.runtime.kernels import fp8_matmul, fp8_quantize, int8_matmul, product

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
    """Takes the way at `index` of each operation, round and round, small tiles on a CPU; poisons what is not written."""

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


@settings(max_examples=25, **QUIET)
@given(N=st.one_of(st.just(0), SIZES), F=SIZES, D=WIDTHS, dtype=st.sampled_from((*DTYPES, torch.float32)),
       zero=st.sampled_from([0, 3, 128, 255]), way=st.integers(0, 9), shifted=st.booleans(), biased=st.booleans())  # fmt: skip
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
