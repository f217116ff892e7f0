"""Matrix-vector products of 16, 8 and 4 bits, and products of int8 and fp8, beside cuBLAS and Inductor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F_
from torch import Tensor

from ..kernels.timing import Recorded
from ..reference.quantized import Weight
from .case import OURS, Case, Run, later
from .workload import Workload

T = TypeVar("T")
MATRICES = ((4096, 4096), (22016, 4096), (4096, 11008), (102400, 4096))
SMALLEST, MOST = 1 << 20, 6  # of a model the largest weights: so many elements, and how many
PAST_CACHE = 300e6  # bytes of weights to take turns with
ROWS, COLUMNS, TARGETS = 8192, 4096, 11008


def cases(asked: Workload | None = None) -> Iterator[Case]:
    """Products with vectors, of int8 and of fp8: of a model those with its weights, one vector at a time."""
    matrices: Sequence[tuple[int, int]] = MATRICES
    if asked is not None:
        matrices = [m for m in sorted(asked.linears, key=lambda m: m[0] * m[1]) if m[0] * m[1] >= SMALLEST][-MOST:]
    for form, bits in (("bf16", 16.0), ("int8", 8.0), ("int4 g128", 4.0 + 24 / 128)):
        for F, D in matrices:
            if D % 128 == 0 or form == "bf16":
                yield _vectors(form, bits, 1, F, D)
    if asked is not None:
        return
    for N in (4, 16):
        for form, bits in (("bf16", 16.0), ("int8", 8.0), ("int4 g128", 4.0 + 24 / 128)):
            yield _vectors(form, bits, N, *MATRICES[1])
    flops = 2.0 * ROWS * COLUMNS * TARGETS
    moved = float(ROWS * COLUMNS + TARGETS * COLUMNS + 2 * ROWS * TARGETS)
    shape = f"{ROWS}x{COLUMNS}x{TARGETS}"
    yield Case("int8 product with its epilogue", shape, flops, moved, _int8, "TFLOP/s", "int8")
    yield Case("fp8 product, scales by rows", shape, flops, moved, partial(_fp8_rows, False), "TFLOP/s", "fp8")
    yield Case("fp8 product, scales by rows, fast", shape, flops, moved, partial(_fp8_rows, True), "TFLOP/s", "fp8")
    yield Case("fp8 product, scales in blocks", shape, flops, moved, _fp8_blocks, "TFLOP/s", "fp8")
    yield Case("fp8 linear forward and backward", shape, 3 * flops, 3 * moved, _fp8_linear, "TFLOP/s", "fp8")
    yield Case(
        "activations to uint8", f"{ROWS}x{TARGETS}", 4.0 * ROWS * TARGETS, 3.0 * ROWS * TARGETS, _uint8, "GB/s", "copy"
    )
    yield Case("rows to fp8", f"{ROWS}x{TARGETS}", 4.0 * ROWS * TARGETS, 3.0 * ROWS * TARGETS, _rows, "GB/s", "copy")


def _vectors(form: str, bits: float, N: int, F: int, D: int) -> Case:
    """N rows of x times each weight of a list in one CUDA graph: `bytes` and `flops` are those of the whole list."""
    copies = int(PAST_CACHE // (F * D * bits / 8)) + 1
    return Case(
        f"matrix-vector {form}", f"N{N} {F}x{D}, {copies} copies", 2.0 * N * F * D * copies,
        F * D * bits / 8 * copies, partial(_matvec, form, N, F, D, copies), "GB/s", "copy",
    )  # fmt: skip


def _recorded(each: Callable[[T], object], weights: list[T]) -> Run:
    """Every weight in turn, as one CUDA graph, recorded behind a run in which ways are tuned."""

    def all_of_them() -> None:
        with torch.no_grad():
            for weight in weights:
                each(weight)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        all_of_them()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_of_them()
    return Recorded(graph, all_of_them)


def _graph(each: Callable[[T], object], weights: list[T]) -> Run:
    return later(lambda: _recorded(each, weights))


def _matvec(form: str, N: int, F: int, D: int, copies: int) -> Mapping[str, Run]:
    """Ours with weights asked for while the kernel before still runs, and without; of bf16 the peers too."""
    from ..kernels.products.matvec import matvec

    x = torch.randn(N, D, device="cuda", dtype=torch.bfloat16)
    weights = [_weight(form, F, D) for _ in range(copies)]
    runs: dict[str, Run] = {
        OURS: _graph(lambda w: matvec(x, w, early=True), weights),
        f"{OURS}, each after the one before": _graph(lambda w: matvec(x, w), weights),
    }
    plain = [w for w in weights if isinstance(w, Tensor)]
    if plain:
        runs["cuBLAS"] = _graph(lambda w: F_.linear(x, w), plain)
    if plain and N == 1:
        compiled = torch.compile(lambda x, w: (w.float() * x.float()).sum(-1))
        runs["Inductor"] = _graph(lambda w: compiled(x, w), plain)
    return runs


def _weight(form: str, F: int, D: int) -> Weight:
    from ..reference.quantized import Int4Groups, Int8Rows

    if form == "bf16":
        return torch.randn(F, D, device="cuda", dtype=torch.bfloat16)
    if form == "int8":
        values = torch.randint(-127, 128, (F, D), device="cuda", dtype=torch.int8)
        return Int8Rows(values, torch.rand(F, device="cuda") * 0.01)
    packed = torch.randint(0, 256, (F, D // 2), device="cuda", dtype=torch.uint8)
    zeros = torch.randint(0, 16, (F, D // 128), device="cuda", dtype=torch.uint8)
    return Int4Groups(packed, torch.rand(F, D // 128, device="cuda").bfloat16() * 0.01, zeros, 128)


def _int8() -> Mapping[str, Run]:
    from ..kernels.products.int8_matmul import int8_linear, weight_sums
    from ..reference.quantized import Int8Rows

    x = torch.randint(0, 256, (ROWS, COLUMNS), device="cuda", dtype=torch.uint8)
    shifted = (x ^ 128).view(torch.int8)
    values = torch.randint(-127, 128, (TARGETS, COLUMNS), device="cuda", dtype=torch.int8)
    weight = Int8Rows(values, torch.rand(TARGETS, device="cuda") * 0.01)
    scale, zero = torch.tensor(0.02, device="cuda"), torch.tensor(121, device="cuda", dtype=torch.int32)
    sums = weight_sums(weight)

    def library() -> Tensor:
        return ((torch._int_mm(shifted, values.t()) - (zero - 128) * sums) * (scale * weight.scale_F)).bfloat16()

    return {
        OURS: lambda: int8_linear(shifted, weight, scale, zero, sums),
        f"{OURS}, uint8 as it is": lambda: int8_linear(x, weight, scale, zero, sums),
        "_int_mm alone": lambda: torch._int_mm(shifted, values.t()),
        "_int_mm, compiled epilogue": torch.compile(library),
    }


def _fp8_operands() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    return x, torch.randn(TARGETS, COLUMNS, device="cuda", dtype=torch.bfloat16) * 0.02


def _fp8_rows(fast: bool) -> Mapping[str, Run]:
    from ..kernels.products.fp8_matmul import fp8_rows_matmul
    from ..kernels.products.fp8_quantize import quantize_rows

    (x, x_scale), (w, w_scale) = (quantize_rows(t) for t in _fp8_operands())
    one = torch.ones((), device="cuda")

    def library(x_scale: Tensor, w_scale: Tensor) -> Tensor:
        return torch._scaled_mm(x, w.t(), x_scale, w_scale, out_dtype=torch.bfloat16, use_fast_accum=fast)

    return {
        OURS: lambda: fp8_rows_matmul(x, x_scale, w, w_scale, fast=fast),
        "_scaled_mm by rows": lambda: library(x_scale[:, None], w_scale[None, :]),
        "_scaled_mm, one scale": lambda: library(one, one),
    }


def _fp8_blocks() -> Mapping[str, Run]:
    from ..kernels.products.fp8_matmul import fp8_blocks_matmul
    from ..kernels.products.fp8_quantize import quantize_blocks, quantize_tiles

    x, w = _fp8_operands()
    (x8, x_scale), (w8, w_scale) = quantize_tiles(x), quantize_blocks(w)

    def library() -> Tensor:
        return torch._scaled_mm(x8, w8.t(), x_scale, w_scale.t(), out_dtype=torch.bfloat16)

    return {
        OURS: lambda: fp8_blocks_matmul(x8, x_scale, w8, w_scale),
        "_scaled_mm in blocks": library,
        "bf16 product": lambda: F_.linear(x, w),
    }


def _fp8_linear() -> Mapping[str, Run]:
    from ..kernels.products.fp8_matmul import fp8_linear

    x, w = (t.requires_grad_() for t in _fp8_operands())
    direction = torch.randn(ROWS, TARGETS, device="cuda", dtype=torch.bfloat16)
    return {
        OURS: lambda: torch.autograd.grad(fp8_linear(x, w), (x, w), direction),
        "bf16 product": lambda: torch.autograd.grad(F_.linear(x, w), (x, w), direction),
    }


def _uint8() -> Mapping[str, Run]:
    from ..kernels.products.int8_matmul import quantize_activations
    from ..reference.quantized import quantize_uint8

    x = torch.randn(ROWS, TARGETS, device="cuda", dtype=torch.bfloat16)
    scale, zero = torch.tensor(0.02, device="cuda"), torch.tensor(121, device="cuda", dtype=torch.int32)
    compiled = torch.compile(quantize_uint8)
    return {OURS: lambda: quantize_activations(x, scale, zero), "Inductor": lambda: compiled(x, scale, zero)}


def _rows() -> Mapping[str, Run]:
    from ..kernels.products.fp8_quantize import quantize_rows
    from ..reference.quantized import quantize_fp8_rows

    x = torch.randn(ROWS, TARGETS, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(quantize_fp8_rows)
    return {OURS: lambda: quantize_rows(x), "Inductor": lambda: compiled(x)}
