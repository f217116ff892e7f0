"""Every kernel in every way of doing it, once, on shapes so small and odd that a wrong bound shows.

Under compute-sanitizer, several at once with other TEXTs:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 python -m tests.kernels.sanitize [TEXT ...]

TEXT: only cases with one of these in their title. Without the sanitizer it compiles the kernels, which is then not done
under it. Torch must not cache memory: out of a tensor's bounds would else be within a cached block.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dskc.runtime.bench import products
from dskc.runtime.bench.case import OURS
from dskc.runtime.bench.run import chosen_cases, sources
from dskc.runtime.kernels.decode import attention, latent, write_cache
from dskc.runtime.kernels.products import fp8_matmul, fp8_quantize, int8_matmul, matvec
from dskc.runtime.kernels.tuning import Timing, compiling
from dskc.runtime.reference.quantized import Int8Rows

GENERATED = Path(__file__).parents[2] / "generated"
# What is taken of each model: all, or its attention, where its weights are too large for a check of bounds.
MODELS = {"moe_nano": "", "deepseek_v2_lite": "attention", "gpt_oss_20b": "attention", "gemma2_2b": "attention"}
BATCH, LENGTH = 1, 33
Call = Callable[[], object]


def model_calls() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Ours of each case of a model, which allocates its tensors when it is asked for."""
    products._recorded = lambda each, weights: lambda: [each(w) for w in weights]  # type: ignore[assignment]
    for model, only in MODELS.items():
        for _, case in chosen_cases(sources(GENERATED / model, None, BATCH, LENGTH), [only] if only else []):
            yield f"{model} {case.title}", lambda case=case: case.build()[OURS]  # type: ignore[misc]


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def product_calls() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Vectors and products of 8 bits, of sizes that no tile divides (but groups of 128 their width)."""
    for form in ("bf16", "int8", "int4 g128"):
        for rows in (1, 3, 16):
            for F, D in ((40, 128), (331, 384)):
                yield f"matvec {form} {rows}x{F}x{D}", partial(_matvec, form, rows, F, D)
    for N, F, D in ((1, 128, 128), (33, 384, 256)):
        yield f"fp8 by rows {N}x{F}x{D}", partial(_fp8_rows, N, F, D)
        yield f"fp8 in blocks {N}x{F}x{D}", partial(_fp8_blocks, N, F, D)
        yield f"int8 {N}x{F}x{D}", partial(_int8, N, F, D)
    for quantize in (fp8_quantize.quantize_rows, fp8_quantize.quantize_columns, fp8_quantize.quantize_tiles,
                     fp8_quantize.quantize_blocks):  # fmt: skip
        yield quantize.__name__, lambda quantize=quantize: partial(quantize, normal(37, 256))  # type: ignore[misc]


def _matvec(form: str, rows: int, F: int, D: int) -> Call:
    x, weight, up = normal(rows, D), products._weight(form, F, D), products._weight(form, F, D)
    fused = {"norm": matvec.Norm(normal(D)), "residual": normal(rows, F), "bias_F": normal(F)}

    def both() -> None:
        matvec.matvec(x, weight)
        matvec.matvec(x, weight, early=True)
        matvec.matvec(x, weight, up=up, gate=matvec.SILU_GATE, **fused)  # type: ignore[arg-type]

    return both


def _fp8_rows(N: int, F: int, D: int) -> Call:
    (x, x_scale), (w, w_scale) = fp8_quantize.quantize_rows(normal(N, D)), fp8_quantize.quantize_rows(normal(F, D))
    return lambda: [fp8_matmul.fp8_rows_matmul(x, x_scale, w, w_scale, fast=fast) for fast in (False, True)]


def _fp8_blocks(N: int, F: int, D: int) -> Call:
    (x, x_scale), (w, w_scale) = fp8_quantize.quantize_tiles(normal(N, D)), fp8_quantize.quantize_blocks(normal(F, D))
    return lambda: fp8_matmul.fp8_blocks_matmul(x, x_scale, w, w_scale)


def _int8(N: int, F: int, D: int) -> Call:
    values = torch.randint(-127, 128, (F, D), device="cuda", dtype=torch.int8)
    weight = Int8Rows(values, torch.rand(F, device="cuda"))
    scale, zero = torch.tensor(0.02, device="cuda"), torch.tensor(121, device="cuda", dtype=torch.int32)
    x, sums = normal(N, D), int8_matmul.weight_sums(weight)
    return lambda: int8_matmul.int8_linear(int8_matmul.quantize_activations(x, scale, zero), weight, scale, zero, sums)


def decode_calls() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Whole texts and pages, heads shared and not, every bound and score change; latents of few heads and of many."""
    for heads, groups, width, paged in ((8, 2, 128, True), (8, 8, 64, False), (6, 1, 192, True), (4, 1, 256, False)):
        yield f"decode H{heads}/{groups} E{width} {paged=}", partial(_decode, heads, groups, width, paged)
    for heads in (16, 128):
        yield f"latents H{heads}", partial(_latents, heads)


def _decode(heads: int, groups: int, width: int, paged: bool) -> Call:
    B, T, P = 3, 96, 16
    lengths = torch.tensor([1, 33, 96], device="cuda", dtype=torch.int32)
    table = torch.randperm(B * T // P, device="cuda").int().view(B, T // P) if paged else None
    k, v = (normal(*((B * T // P, P) if paged else (B, T)), groups, width) for _ in "kv")
    q, new = normal(B, 1, heads, width), normal(B, 1, groups, width)

    def both() -> None:
        write_cache.write_cache(new, new, k, v, lengths - 1, table_BN=table)
        attention.decode_attention(q, k, v, lengths, table_BN=table)
        sinks = normal(heads)
        attention.decode_attention(q, k, v, lengths, table_BN=table, window=20, softcap=30.0, sinks_H=sinks)

    return both


def _latents(heads: int) -> Call:
    lengths, cache = torch.tensor([1, 45], device="cuda", dtype=torch.int32), normal(2, 45, 576)
    q, rotary = normal(2, 1, heads, 512), normal(2, 1, heads, 64)
    return lambda: latent.latent_decode(q, rotary, cache[..., :512], cache[..., 512:], lengths, scale=0.1)


def main(only: Sequence[str]) -> None:
    """Run every case, one line each; exits with 1 where some case had no way that ran."""
    unrun = []
    for calls in (product_calls, decode_calls, model_calls):
        for title, build in calls():
            if only and not any(text in title for text in only):
                continue
            heard: list[Timing] = []
            with compiling(heard.append):
                build()()
            torch.cuda.synchronize()
            failed = [timing for timing in heard if timing.reason]
            print(f"{title}: {len(heard) - len(failed)} ways", *(f"({t.way}: {t.reason})" for t in failed), flush=True)
            if heard and len(failed) == len(heard):
                unrun.append(title)
    if unrun:
        sys.exit(f"nothing ran of {', '.join(unrun)}")


if __name__ == "__main__":
    main(sys.argv[1:])
