"""Benchmarks of experts: sorting, grouped products with what is fused into them, and the whole layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..kernels import use_kernels
from ..kernels.experts.grouped import grouped_linear, grouped_product
from ..kernels.experts.grouped_fp8 import grouped_linear_fp8, quantize_rows
from ..kernels.experts.grouped_product import Product
from ..kernels.experts.layer import down_product, experts
from ..kernels.experts.sorting import Routing, sort_by_expert
from .case import OURS, Case, Run, gradients
from .workload import Workload


@dataclass(frozen=True)
class Sizes:
    """Of one layer: tokens, choices of each, experts, and the two widths of their products."""

    tokens: int
    choices: int
    experts: int
    width: int
    inner: int

    def __str__(self) -> str:
        return f"T{self.tokens} K{self.choices} X{self.experts} D{self.width} F{self.inner}"

    @property
    def rows(self) -> int:
        return self.tokens * self.choices

    @property
    def flops(self) -> float:
        """Of one product."""
        return 2.0 * self.rows * self.width * self.inner

    def moved(self, rows: int) -> float:
        """Bytes of one product whose input has so many rows, in bf16."""
        return 2.0 * (rows * self.width + self.rows * self.inner + self.experts * self.width * self.inner)


PRODUCTS = (Sizes(16384, 6, 64, 2048, 2816), Sizes(8192, 8, 32, 7168, 4096))
LAYERS = {"Qwen3-30B-A3B": Sizes(16384, 8, 128, 2048, 768), "DeepSeek-V2-Lite": Sizes(16384, 6, 64, 2048, 1408)}


def cases(asked: Workload | None = None) -> Iterator[Case]:
    """Every benchmark of experts."""
    products: Sequence[Sizes] = PRODUCTS
    layers: Sequence[tuple[str, Sizes]] = list(LAYERS.items())
    if asked is not None:
        first = {count: (choices, width, inner) for count, choices, inner, width in reversed(asked.experts)}
        products = [Sizes(asked.tokens, k, count, width, inner) for count, (k, width, inner) in first.items()]
        layers = [(asked.model, sizes) for sizes in products]
    for sizes in products:
        backward = 2 * sizes.moved(sizes.rows)
        yield Case("grouped forward", str(sizes), sizes.flops, sizes.moved(sizes.rows), _forward(sizes))
        yield Case("grouped backward", str(sizes), 2 * sizes.flops, backward, _backward(sizes))
        yield Case("grouped with gather", str(sizes), sizes.flops, sizes.moved(sizes.tokens), _gather(sizes))
        moved = sizes.moved(sizes.rows) + 2.0 * (sizes.tokens - sizes.rows) * sizes.inner
        yield Case("grouped with scatter", str(sizes), sizes.flops, moved, _scatter(sizes))
        moved = sizes.moved(sizes.rows) / 2 + sizes.rows * sizes.inner
        yield Case("grouped fp8", str(sizes), sizes.flops, moved, _fp8(sizes), ceiling="fp8")
    for name, sizes in layers:
        moved = 12.0 * sizes.experts * sizes.width * sizes.inner + 10.0 * sizes.tokens * sizes.width
        yield Case("experts", f"{name} {sizes}", 9 * sizes.flops, moved, _layer(sizes))
        yield Case("experts, none kept", f"{name} {sizes}", 9 * sizes.flops, moved, _layer(sizes, keep=False))
        yield Case("sort by expert", str(sizes), 0, 16.0 * sizes.rows, _sort(sizes), unit="GB/s", ceiling="copy")


def _bf16(*shape: int, scale: float = 1.0, learns: bool = False) -> Tensor:
    return (torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale).requires_grad_(learns)


def _chosen(sizes: Sizes) -> Tensor:
    """Choices as uneven as a router's in training: the busiest expert has some twice the mean."""
    share_X = torch.distributions.Dirichlet(torch.full((sizes.experts,), 8.0)).sample().cuda()
    return torch.multinomial(share_X.expand(sizes.tokens, -1), sizes.choices)


def _routed(sizes: Sizes) -> Routing:
    return sort_by_expert(_chosen(sizes), sizes.experts)


def _forward(sizes: Sizes) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        x, weight = _bf16(sizes.rows, sizes.width), _bf16(sizes.experts, sizes.inner, sizes.width, scale=0.02)
        offsets = _routed(sizes).offsets_X
        return {
            OURS: lambda: grouped_linear(x, weight, offsets),
            "torch grouped_mm": lambda: F.grouped_mm(x, weight.transpose(-2, -1), offs=offsets),
        }

    return build


def _backward(sizes: Sizes) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        x = _bf16(sizes.rows, sizes.width, learns=True)
        weight = _bf16(sizes.experts, sizes.inner, sizes.width, scale=0.02, learns=True)
        offsets, grad = _routed(sizes).offsets_X, _bf16(sizes.rows, sizes.inner)
        return {
            OURS: gradients(lambda: grouped_linear(x, weight, offsets), (x, weight), grad),
            "torch grouped_mm": gradients(
                lambda: F.grouped_mm(x, weight.transpose(-2, -1), offs=offsets), (x, weight), grad
            ),
        }

    return build


def _gather(sizes: Sizes) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        x, weight = _bf16(sizes.tokens, sizes.width), _bf16(sizes.experts, sizes.inner, sizes.width, scale=0.02)
        offsets, order, _ = _routed(sizes)
        turned, sorted_ = weight.transpose(-2, -1), _bf16(sizes.rows, sizes.width)
        call = Product(x, weight, offsets, order, sizes.choices)
        return {
            OURS: lambda: grouped_product(call),
            "index_select, torch grouped_mm": lambda: F.grouped_mm(
                x.index_select(0, order // sizes.choices), turned, offs=offsets
            ),
            "torch grouped_mm, nothing gathered": lambda: F.grouped_mm(sorted_, turned, offs=offsets),
        }

    return build


def _scatter(sizes: Sizes) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        hidden, weight = _bf16(sizes.rows, sizes.width), _bf16(sizes.experts, sizes.inner, sizes.width, scale=0.02)
        routing, factor = _routed(sizes), torch.rand(sizes.tokens, sizes.choices, device="cuda")
        turned, flat = weight.transpose(-2, -1), factor.view(-1)
        rows = reference.Rows(hidden, routing.offsets_X, routing.order_R.long(), routing.home_R.long())

        def combined() -> Tensor:
            return reference.combine(F.grouped_mm(hidden, turned, offs=routing.offsets_X), rows, factor)

        return {
            OURS: lambda: down_product(hidden, weight, routing, sizes.choices, flat, None),
            "torch grouped_mm, combine": combined,
            "torch grouped_mm, combine compiled": torch.compile(combined),
            "torch grouped_mm, nothing combined": lambda: F.grouped_mm(hidden, turned, offs=routing.offsets_X),
        }

    return build


def _fp8(sizes: Sizes) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        x, x_scale = quantize_rows(_bf16(sizes.rows, sizes.width))
        weight, scale = quantize_rows(_bf16(sizes.experts, sizes.inner, sizes.width, scale=0.02))
        offsets = _routed(sizes).offsets_X

        def theirs(fast: bool) -> Run:
            return lambda: torch._scaled_grouped_mm(
                x, weight.transpose(-2, -1), x_scale, scale, offs=offsets, out_dtype=torch.bfloat16, use_fast_accum=fast
            )

        return {
            OURS: lambda: grouped_linear_fp8(x, x_scale, weight, scale, offsets),
            "dskc, sums of 14 bits": lambda: grouped_linear_fp8(x, x_scale, weight, scale, offsets, exact=False),
            "torch _scaled_grouped_mm": theirs(False),
            "torch _scaled_grouped_mm, sums of 14 bits": theirs(True),
        }

    return build


def _layer(sizes: Sizes, keep: bool = True) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        x, grad = _bf16(sizes.tokens, sizes.width, learns=True), _bf16(sizes.tokens, sizes.width)
        factor = torch.rand(sizes.tokens, sizes.choices, device="cuda", requires_grad=True)
        wide, narrow = (sizes.experts, sizes.inner, sizes.width), (sizes.experts, sizes.width, sizes.inner)
        gate, up, down = (_bf16(*shape, scale=0.02, learns=True) for shape in (wide, wide, narrow))
        chosen, leaves = _chosen(sizes), [x, factor, gate, up, down]

        def plain() -> Tensor:
            with use_kernels("reference"):
                return experts(x, chosen, factor, gate, up, down)

        return {
            OURS: _step(lambda: experts(x, chosen, factor, gate, up, down, keep=keep), leaves, grad),
            "reference": _step(plain, leaves, grad),
            "reference, torch.compile": _step(torch.compile(_plain(x, chosen, factor, (gate, up, down))), leaves, grad),
        }

    return build


def _plain(x: Tensor, chosen: Tensor, factor: Tensor, weights: Sequence[Tensor]) -> Callable[[], Tensor]:
    """The layer in reference operations, with nothing in it that torch.compile cannot look into."""
    gate, up, down = weights

    def run() -> Tensor:
        rows = reference.dispatch(x, chosen, gate.shape[0])
        hidden = reference.silu(reference.grouped_linear(rows.x_RD, gate, rows.offsets_X))
        hidden = hidden * reference.grouped_linear(rows.x_RD, up, rows.offsets_X)
        return reference.combine(reference.grouped_linear(hidden, down, rows.offsets_X), rows, factor)

    return run


def _step(run: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Run:
    return lambda: torch.autograd.grad(run(), leaves, grad)


def _sort(sizes: Sizes) -> Callable[[], Mapping[str, Run]]:
    def build() -> Mapping[str, Run]:
        chosen = _chosen(sizes)
        token = torch.empty(sizes.tokens, 0, device="cuda")

        def sort() -> object:
            return reference.dispatch(token, chosen, sizes.experts)

        return {
            OURS: lambda: sort_by_expert(chosen, sizes.experts),
            "reference": sort,
            "reference, torch.compile": torch.compile(sort),
        }

    return build
