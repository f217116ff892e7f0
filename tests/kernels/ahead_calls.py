"""Calls of every operation at the sizes of real models, for `compile_ahead`: on a CPU, with tensors nobody writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
import triton
from torch import Tensor

from dskc.runtime.kernels.attention.kernel import AttentionKernel
from dskc.runtime.kernels.decode import attention, latent, write_cache
from dskc.runtime.kernels.experts import combine, gated, grouped, grouped_fp8, grouped_outer, layer, sorting
from dskc.runtime.kernels.experts.grouped_outer import Outer
from dskc.runtime.kernels.experts.grouped_product import Product
from dskc.runtime.kernels.loss.linear_loss import linear_losses, mean_linear_loss
from dskc.runtime.kernels.optimizer import steps
from dskc.runtime.kernels.products import fp8_matmul, fp8_quantize, int8_matmul, matvec
from dskc.runtime.reference import causal
from dskc.runtime.reference.quantized import Int4Groups, Int8Rows

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
Call = Callable[[], object]


def empty(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def experts_calls() -> Iterator[Call]:
    """A layer forward and backward, for many rows of an expert, some and few; grouped products, fp8, odd widths."""
    for tokens, width, inner in ((8192, 2048, 768), (512, 2048, 768), (16, 2048, 768), (512, 100, 36)):
        rows, choices, experts = tokens * 8, 8, 128
        routing = sorting.Routing(*(torch.empty(n, dtype=torch.int32) for n in (experts, rows, rows)))
        x, narrow = empty(tokens, width), empty(rows, inner)
        up, down = empty(experts, inner, width), empty(experts, width, inner)
        factor = empty(rows, dtype=torch.float32)
        call = gated.Gated(x, up, up, routing, choices, gated.SILU_GATE)
        yield partial(gated.gated, call, hidden=True, keep=True)
        yield partial(layer.down_product, narrow, down, routing, choices, factor, None)
        back = gated.GatedGradient(x, down, narrow, narrow, factor, routing, choices, gated.SILU_GATE)
        yield partial(gated.gated_gradient, back, hidden=True, share=True)
        copied = replace(back, grad=empty(rows, width), gathered=True)
        yield partial(gated.gated_gradient, copied, hidden=True, share=True)
        yield partial(layer._tokens_gradient, narrow, narrow, up, up, routing, choices)
        outer = partial(Outer, offsets_X=routing.offsets_X, dtype=BF16)
        yield partial(grouped_outer.grouped_outer, outer(narrow, empty(rows, width)))
        gathered = partial(outer, order_R=routing.order_R, choices=choices)
        yield partial(grouped_outer.grouped_outer, gathered(narrow, x, gather_x=True))
        yield partial(grouped_outer.grouped_outer, gathered(x, narrow, gather_y=True))
        for kind in (BF16, torch.float32):
            x_RD, weight = empty(rows, width, dtype=kind), empty(experts, inner, width, dtype=kind)
            yield partial(grouped.grouped_product, Product(x_RD, weight, routing.offsets_X))
            tokens_TD = empty(tokens, width, dtype=kind)
            yield partial(
                grouped.grouped_product, Product(tokens_TD, weight, routing.offsets_X, routing.order_R, choices)
            )
            yield partial(
                grouped.grouped_product,
                Product(empty(rows, inner, dtype=kind), weight, routing.offsets_X, flipped=True),
            )
        if width % 16 == 0:
            eight = empty(rows, width, dtype=FP8), empty(rows, dtype=torch.float32)
            weights = empty(experts, inner, width, dtype=FP8), empty(experts, inner, dtype=torch.float32)
            for exact in (True, False):
                yield partial(grouped_fp8.grouped_linear_fp8, *eight, *weights, routing.offsets_X, exact=exact)
    yield partial(sorting.sort_by_expert, torch.empty(8192, 8, dtype=torch.int64), 128)
    yield partial(grouped_fp8.quantize_rows, x)
    yield partial(grouped_outer.expert_sums, narrow, routing.offsets_X, BF16)
    yield partial(combine.combine_rows, empty(rows, width), choices, routing.home_R, factor)
    yield partial(combine.bias_shares, x, empty(experts, width), routing.offsets_X, routing.order_R, choices)
    behind = gated.activate_kernel[(1,)], gated.activate_gradient_kernel[(1,)]
    yield partial(behind[0], narrow, narrow, narrow, narrow.numel(), gated.silu_gate, 2048)
    yield partial(
        behind[1], narrow, narrow, narrow, factor, narrow, narrow, narrow, factor, routing.order_R, inner,
        gated.silu_gate, gated.silu_gate_gradient, 1024,
    )  # fmt: skip


def products_calls() -> Iterator[Call]:
    """Matrix-vector products of each format with all that can be fused, and products of 8 bits."""
    F, D = 4096, 4096
    packed = empty(F, D // 2, dtype=torch.uint8), empty(F, D // 128), empty(F, D // 128, dtype=torch.uint8)
    weights = (
        empty(F, D), Int8Rows(empty(F, D, dtype=torch.int8), empty(F, dtype=torch.float32)), Int4Groups(*packed, 128),
    )  # fmt: skip
    for weight in weights:
        for rows in (1, 4):
            x = empty(rows, D)
            yield partial(matvec.matvec, x, weight)
            yield partial(
                matvec.matvec, x, weight, norm=matvec.Norm(empty(D)), up=weight, gate=matvec.SILU_GATE,
                residual=empty(rows, F), bias_F=empty(F),
            )  # fmt: skip
    for N in (4096, 32):
        x8, w8 = empty(N, D, dtype=FP8), empty(F, D, dtype=FP8)
        by_row = [empty(n, dtype=torch.float32) for n in (N, F)]
        for fast in (False, True):
            yield partial(fp8_matmul.fp8_rows_matmul, x8, by_row[0], w8, by_row[1], fast=fast)
        in_blocks = [empty(n, D // 128, dtype=torch.float32) for n in (N, F // 128)]
        yield partial(fp8_matmul.fp8_blocks_matmul, x8, in_blocks[0], w8, in_blocks[1])
        scale, zero = torch.ones(()), torch.zeros((), dtype=torch.int32)
        sums = empty(F, dtype=torch.int32)
        yield partial(int8_matmul.int8_linear, empty(N, D, dtype=torch.int8), weights[1], scale, zero, sums)
    x = empty(512, D)
    for quantize in (fp8_quantize.quantize_rows, fp8_quantize.quantize_columns, fp8_quantize.quantize_tiles,
                     fp8_quantize.quantize_blocks):  # fmt: skip
        yield partial(quantize, x)
    yield partial(int8_matmul.quantize_activations, x, scale, zero)


def decode_calls() -> Iterator[Call]:
    """Heads of their own and shared, a width of 192, pages, fp8, a window; latents of few heads and of many."""
    B, T, P = 4, 8192, 64
    lengths, table = torch.empty(B, dtype=torch.int32), torch.empty(B, T // P, dtype=torch.int32)
    for heads, groups, width, cached, paged in (
        (32, 8, 128, BF16, False), (32, 8, 128, BF16, True), (32, 32, 128, BF16, False), (64, 2, 128, BF16, True),
        (128, 1, 64, BF16, False), (16, 16, 192, BF16, False), (32, 8, 128, FP8, True), (8, 1, 256, BF16, False),
    ):  # fmt: skip
        k = empty(*((B * T // P, P) if paged else (B, T)), groups, width, dtype=cached)
        q, pages = empty(B, 1, heads, width), table if paged else None
        yield partial(attention.decode_attention, q, k, k, lengths, table_BN=pages)
        if cached == BF16:
            yield partial(write_cache.write_cache, empty(B, 1, groups, width), empty(B, 1, groups, width), k, k,
                          lengths, table_BN=pages)  # fmt: skip
    bounded = {"window": 1024, "softcap": 30.0, "sinks_H": empty(32)}
    k = empty(B, T, 8, 128)
    yield partial(attention.decode_attention, empty(B, 1, 32, 128), k, k, lengths, **bounded)  # type: ignore[arg-type]
    for heads in (16, 32, 128):
        cache = empty(B, T, 576)
        yield partial(latent.latent_decode, empty(B, 1, heads, 512), empty(B, 1, heads, 64), cache[..., :512],
                      cache[..., 512:], lengths, scale=0.1)  # fmt: skip


@triton.jit
def allows(query, key, query_document, key_document):  # type: ignore[no-untyped-def]
    return key <= query


@triton.jit
def of_queries(first, last):  # type: ignore[no-untyped-def]
    return 0, last + 1, 0, first + 1


@triton.jit
def of_keys(first, last):  # type: ignore[no-untyped-def]
    return first, 1073741824, last, 1073741824


def attention_calls() -> Iterator[Call]:
    """Causal, forward and backward, at usual widths; with sinks, a bound and dropout; of documents."""
    plain = AttentionKernel("ahead::causal", "", lambda ids: causal, allows, of_queries, of_keys)
    full = AttentionKernel(
        "ahead::full", "", lambda ids: causal, allows, of_queries, of_keys, softcap=30.0, dropout=0.1
    )
    for width, value in ((64, 64), (128, 128), (192, 128), (256, 256), (80, 80)):
        q, k, v = empty(1, 512, 8, width), empty(1, 512, 2, width), empty(1, 512, 2, value)
        o, lse = empty(1, 512, 8, value), empty(1, 8, 512, dtype=torch.float32)
        yield partial(plain._forward, q, k, v, None, None, None)
        yield partial(plain._gradients, o, q, k, v, o, lse, None, None, None)
        if width == 128:
            options = None, empty(8, dtype=torch.float32), empty(1, dtype=torch.int64)
            yield partial(full._forward, q, k, v, *options)
            yield partial(full._gradients, o, q, k, v, o, lse, *options)


def loss_calls() -> Iterator[Call]:
    """The mean loss and that of rows, with gradients; sizes are small, since products are made on the CPU."""
    x, weight = torch.zeros(64, 32, dtype=BF16), torch.zeros(4096, 32, dtype=BF16)
    target = torch.zeros(64, dtype=torch.int64)

    def step(function: Callable[..., Tensor], **options: float) -> None:
        with torch.enable_grad():
            leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
            torch.autograd.grad(function(*leaves, target, **options).sum(), leaves)

    for options in ({}, {"z": 1e-4, "smoothing": 0.1, "softcap": 30.0}):
        yield partial(step, mean_linear_loss, **options)
        yield partial(step, linear_losses, **options)


def optimizer_calls() -> Iterator[Call]:
    """Steps in bf16 and with masters in fp32, and the norm."""
    for rounding in ("nearest", "stochastic"):
        lists = [[torch.zeros(64, 64, dtype=BF16), torch.zeros(64, dtype=BF16)] for _ in range(4)]
        yield partial(steps.adamw_step, *lists, step=1, lr=1e-3, rounding=rounding)
        yield partial(steps.lion_step, *lists[:3], step=1, lr=1e-3, rounding=rounding)
    masters, means, squares = ([t.float() for t in lists[0]] for _ in range(3))
    yield partial(steps.adamw_step, *lists[:2], means, squares, step=1, lr=1e-3, masters=masters)
    yield partial(steps.gradient_norm, lists[1])


GROUPS: dict[str, Callable[[], Iterator[Call]]] = {
    "attention": attention_calls,
    "loss": loss_calls,
    "optimizer": optimizer_calls,
    "experts": experts_calls,
    "products": products_calls,
    "decode": decode_calls,
}
