"""What products, experts and decoding refuse: an error that names the operation and says what it takes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dskc.runtime.kernels import KernelError, gpu, use_kernels
from dskc.runtime.kernels.decode import attention, latent, split, write_cache
from dskc.runtime.kernels.experts import grouped, grouped_fp8, layer, sorting
from dskc.runtime.kernels.products import fp8_matmul, fp8_quantize, int8_matmul, matvec
from dskc.runtime.reference.quantized import Int4Groups, Int8Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8 = torch.float8_e4m3fn
Tensors = dict[str, Any]
pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]


def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=DEVICE)


def single(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.float32)


def whole(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.int32)


def good() -> dict[str, tuple[Callable[..., object], Tensors]]:
    """For each operation a call that it takes, by name."""
    eight, x_TD = zeros(4, 128).to(FP8), zeros(5, 8)
    weights = {"gate_XFD": zeros(3, 16, 8), "up_XFD": zeros(3, 16, 8), "down_XDF": zeros(3, 8, 16)}
    int8 = Int8Rows(zeros(8, 64, dtype=torch.int8), single(8))
    return {
        "grouped_linear": (
            grouped.grouped_linear,
            {"x_RD": x_TD, "weight_XFD": weights["gate_XFD"], "offsets_X": whole(3), "bias_XF": zeros(3, 16)},
        ),
        "experts": (
            layer.experts,
            {"x_TD": x_TD, "chosen_TK": zeros(5, 2, dtype=torch.int64), "weight_TK": single(5, 2), **weights},
        ),
        "sort_by_expert": (sorting.sort_by_expert, {"chosen_TK": zeros(5, 2, dtype=torch.int64), "experts": 3}),
        "grouped_linear_fp8": (
            grouped_fp8.grouped_linear_fp8,
            {
                "x_RD": eight, "x_scale_R": single(4), "weight_XFD": zeros(3, 16, 128).to(FP8),
                "weight_scale_XF": single(3, 16), "offsets_X": whole(3),
            },
        ),
        "matvec": (matvec.matvec, {"x": zeros(2, 64), "weight": zeros(8, 64), "bias_F": zeros(8)}),
        "int8_linear": (
            int8_matmul.int8_linear,
            {"x_ND": zeros(4, 64, dtype=torch.int8), "weight": int8, "x_scale": single(), "zero_point": whole(),
             "bias_F": single(8)},
        ),
        "quantize_activations": (
            int8_matmul.quantize_activations, {"x": zeros(4, 64), "scale": single() + 1, "zero_point": whole()},
        ),
        "fp8_rows_matmul": (
            fp8_matmul.fp8_rows_matmul, {"x_ND": eight, "x_scale_N": single(4), "w_FD": eight, "w_scale_F": single(4)},
        ),
        "fp8_blocks_matmul": (
            fp8_matmul.fp8_blocks_matmul,
            {"x_ND": eight, "x_scale_NJ": single(4, 1), "w_FD": eight, "w_scale_IJ": single(1, 1)},
        ),
        "fp8_linear": (fp8_matmul.fp8_linear, {"x": zeros(4, 64), "weight_FD": zeros(8, 64)}),
        "decode_attention": (
            attention.decode_attention,
            {"q_BSHE": zeros(2, 1, 4, 16), "k": zeros(2, 8, 2, 16), "v": zeros(2, 8, 2, 16), "lengths_B": whole(2)},
        ),
        "latent_decode": (
            latent.latent_decode,
            {"q_BSHC": zeros(2, 1, 4, 32), "q_rope_BSHR": zeros(2, 1, 4, 16), "c": zeros(2, 8, 32),
             "k_rope": zeros(2, 8, 16), "lengths_B": whole(2), "scale": 0.1},
        ),
        "write_cache": (
            write_cache.write_cache,
            {"k_BSGE": zeros(2, 1, 2, 16), "v_BSGE": zeros(2, 1, 2, 16), "k_cache": zeros(2, 8, 2, 16),
             "v_cache": zeros(2, 8, 2, 16), "lengths_B": whole(2) + 1},
        ),
        **{
            name: (getattr(fp8_quantize, name), {"x_ND": zeros(4, 128)})
            for name in ("quantize_rows", "quantize_columns", "quantize_tiles")
        },
        "quantize_blocks": (fp8_quantize.quantize_blocks, {"w_FD": zeros(4, 128)}),
    }  # fmt: skip


OPERATIONS = sorted(good())


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with use_kernels("triton"):
        yield


def refused(name: str, changed: Tensors) -> str:
    call, taken = good()[name]
    with torch.no_grad(), pytest.raises(KernelError, match=rf"^{name}") as caught:
        call(**{**taken, **changed})
    return str(caught.value)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_taken(name: str) -> None:
    call, taken = good()[name]
    with torch.no_grad():
        call(**taken)


@pytest.mark.parametrize("name", OPERATIONS)
def test_other_dtypes(name: str) -> None:
    _, taken = good()[name]
    tensor = next(key for key, value in taken.items() if isinstance(value, Tensor))
    kind = torch.complex64 if taken[tensor].dtype != torch.int64 else torch.float32
    assert refused(name, {tensor: taken[tensor].float().to(kind)})


@pytest.mark.parametrize("name", [n for n in OPERATIONS if not n.startswith("quantize_") and n != "sort_by_expert"])
def test_other_widths(name: str) -> None:
    """The last tensor but scalars loses a column, or the first its last axis: neither fits what else there is."""
    _, taken = good()[name]
    tensor = next(key for key, value in taken.items() if isinstance(value, Tensor) and value.ndim)
    assert refused(name, {tensor: taken[tensor][..., :-1]})


@pytest.mark.parametrize("name", [n for n in OPERATIONS if len(good()[n][1]) > 1])
def test_each_tensor_on_another_device(name: str) -> None:
    _, taken = good()[name]
    tensors = [key for key, value in taken.items() if isinstance(value, Tensor)]
    for tensor in tensors[1:]:
        message = refused(name, {tensor: taken[tensor].to("meta")})
        assert " on " in message or "device" in message, f"{tensor}: {message}"


def test_parts_of_weights_on_another_device() -> None:
    int4 = Int4Groups(zeros(8, 32, dtype=torch.uint8), zeros(8, 2).to("meta"), None, 32)
    assert "scales and zero points" in refused("matvec", {"weight": int4})
    assert "its scale" in refused(
        "int8_linear", {"weight": Int8Rows(zeros(8, 64, dtype=torch.int8), single(8).to("meta"))}
    )


@pytest.mark.parametrize("name", [n for n in OPERATIONS if "fp8" not in n and n not in (
    "quantize_rows", "quantize_columns", "quantize_tiles", "quantize_blocks")])  # fmt: skip
def test_each_asks_whether_the_gpu_is_new_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def old(operation: str, device: torch.device) -> None:
        raise KernelError(f"{operation}: too old")

    for module in [m for n, m in sys.modules.items() if n.startswith("dskc.runtime.kernels.")]:
        if hasattr(module, "require_gpu"):
            monkeypatch.setattr(module, "require_gpu", old)
    split.forget_plans()  # what was taken once is not asked about again
    assert "too old" in refused(name, {})


def test_an_old_gpu_is_named_with_what_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_properties", lambda index: ((7, 5), "Tesla T4"))
    with pytest.raises(KernelError, match=r"experts: Tesla T4 has compute capability 7\.5, and kernels take 8\.0"):
        gpu.require_gpu("experts", torch.device("cuda"))
    gpu.require_gpu("experts", torch.device("cpu"))
