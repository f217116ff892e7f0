"""Steps of optimizers and the norm of gradients, over some layers of a 7B model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..kernels.optimizer.steps import adamw_step, clip_factor, gradient_norm, lion_step
from .case import OURS, Case, Run
from .workload import Workload

LAYERS, D, F = 4, 4096, 11008
SHAPES = (*[(D, D)] * 4, (F, D), (F, D), (D, F), (D,), (D,)) * LAYERS
MOST = 1_500_000_000  # elements: with masters and moments 40 GB

Shapes = Sequence[tuple[int, ...]]


def cases(asked: Workload | None = None) -> Iterator[Case]:
    """Everything in bf16; bytes are those of parameters, gradients and moments."""
    shapes = SHAPES if asked is None else _fitting(asked.parameters)
    count = sum(torch.Size(shape).numel() for shape in shapes)
    about = f"{len(shapes)} tensors, {count / 1e6:.0f} M, bf16"

    def made(kernel: str, moved: int, build: Callable[[Shapes], Mapping[str, Run]]) -> Case:
        return Case(kernel, about, 0.0, float(moved * count), partial(build, shapes), "GB/s", "copy")

    yield made("AdamW", 14, partial(_adamw, "nearest", False))
    yield made("AdamW, stochastic rounding", 14, partial(_adamw, "stochastic", False))
    yield made("norm, clip, AdamW", 16, partial(_adamw, "nearest", True))
    yield made("AdamW, fp32 masters and moments", 28, _mastered)
    yield made("Lion", 10, _lion)
    yield made("norm of gradients", 2, _norm)


def _fitting(shapes: Shapes) -> Shapes:
    """As many of them as a GPU holds with all that goes with them."""
    kept: list[tuple[int, ...]] = []
    left = MOST
    for shape in shapes:
        left -= torch.Size(shape).numel()
        if left >= 0:
            kept.append(shape)
    return kept


def _tensors(shapes: Shapes, dtype: torch.dtype = torch.bfloat16, size: float = 1.0) -> list[Tensor]:
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16).mul_(size).to(dtype) for shape in shapes]


def _zeros(shapes: Shapes, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return [torch.zeros(shape, device="cuda", dtype=dtype) for shape in shapes]


def _adamw(rounding: Literal["nearest", "stochastic"], clip: bool, shapes: Shapes) -> Mapping[str, Run]:
    parameters, grads = _tensors(shapes), _tensors(shapes, size=1e-3)
    means, squares = _zeros(shapes), _zeros(shapes)

    def ours() -> None:
        factor = clip_factor(gradient_norm(grads), 1.0) if clip else None
        adamw_step(parameters, grads, means, squares, step=9, lr=1e-4, decay=0.1, factor=factor, rounding=rounding)

    runs: dict[str, Run] = {OURS: ours}
    for name, options in {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}}.items():
        leaves = [p.detach().requires_grad_() for p in parameters]
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer = torch.optim.AdamW(leaves, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, **options)  # type: ignore[arg-type]
        runs[name] = partial(_theirs, optimizer, leaves if clip else None)
    return runs


def _theirs(optimizer: torch.optim.Optimizer, clipped: list[Tensor] | None) -> None:
    if clipped is not None:
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
    optimizer.step()


def _mastered(shapes: Shapes) -> Mapping[str, Run]:
    parameters, grads = _tensors(shapes), _tensors(shapes, size=1e-3)
    masters, means, squares = (_zeros(shapes, torch.float32) for _ in range(3))

    def ours() -> None:
        adamw_step(parameters, grads, means, squares, step=9, lr=1e-4, decay=0.1, masters=masters)

    return {OURS: ours}


def _lion(shapes: Shapes) -> Mapping[str, Run]:
    parameters, grads, means = _tensors(shapes), _tensors(shapes, size=1e-3), _zeros(shapes)
    leaves = [p.detach().requires_grad_() for p in parameters]
    for leaf, grad in zip(leaves, grads, strict=True):
        leaf.grad = grad
    made: list[torch.optim.Optimizer] = []

    def theirs() -> None:
        if not made:
            from lion_pytorch import Lion

            made.append(Lion(leaves, lr=1e-4, weight_decay=0.1))
        made[0].step()

    return {OURS: lambda: lion_step(parameters, grads, means, step=9, lr=1e-4, decay=0.1), "lion_pytorch": theirs}


def _norm(shapes: Shapes) -> Mapping[str, Run]:
    grads = _tensors(shapes, size=1e-3)
    return {
        OURS: lambda: gradient_norm(grads),
        "torch foreach": lambda: torch.nn.utils.get_total_norm(grads, foreach=True),
    }
