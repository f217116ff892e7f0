"""Linear and cross entropy, at the head of a 7B model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels.loss.linear_loss import linear_losses, mean_linear_loss
from .case import OURS, Case, Run
from .workload import Workload

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x [N, D], weight [V, D] and targets [N], a scalar
Shape = tuple[int, int, int]  # N, D and V
SHAPES = ((8192, 4096, 102400), (4096, 4096, 102400), (8192, 2048, 151936), (16384, 4096, 32000))


def cases(asked: Workload | None = None) -> Iterator[Case]:
    """The mean loss with its gradients, that of rows with gradients, and losses alone."""
    shapes: tuple[Shape, ...] = SHAPES
    if asked is not None:
        shapes = ((asked.tokens, asked.hidden, asked.vocabulary),) if asked.hidden is not None else ()
    for rows, width, vocabulary in shapes:
        shape = f"N{rows} D{width} V{vocabulary} bf16"
        flops, moved = 2.0 * rows * width * vocabulary, 2.0 * width * (rows + vocabulary)
        build = partial(_trained, rows, width, vocabulary)
        yield Case("linear + cross entropy, forward and backward", shape, 3 * flops, 2 * moved, build)
    if not shapes:
        return
    rows, width, vocabulary = shapes[0]
    shape = f"N{rows} D{width} V{vocabulary} bf16"
    flops, moved = 2.0 * rows * width * vocabulary, 2.0 * width * (rows + vocabulary)
    build = partial(_rows_trained, rows, width, vocabulary)
    yield Case("linear + cross entropy of rows, forward and backward", shape, 3 * flops, 2 * moved, build)
    build = partial(_evaluated, rows, width, vocabulary)
    yield Case("linear + cross entropy of rows, forward", shape, flops, moved, build)


def _trained(rows: int, width: int, vocabulary: int) -> Mapping[str, Run]:
    return _steps(rows, width, vocabulary, mean_linear_loss, "mean")


def _rows_trained(rows: int, width: int, vocabulary: int) -> Mapping[str, Run]:
    return _steps(rows, width, vocabulary, lambda x, weight, target: linear_losses(x, weight, target).sum(), "sum")


def _steps(rows: int, width: int, vocabulary: int, ours: Loss, reduction: str) -> Mapping[str, Run]:
    x_ND, weight_VD, target_N = _inputs(rows, width, vocabulary)
    x_ND.requires_grad_()
    weight_VD.requires_grad_()

    def step(loss: Loss) -> None:
        x_ND.grad = weight_VD.grad = None
        loss(x_ND, weight_VD, target_N).backward()

    held = partial(_held, reduction=reduction)
    runs: dict[str, Run] = {OURS: partial(step, ours)}
    for name, loss in {"torch.compile": torch.compile(held), "liger": _liger(reduction)}.items():
        runs[name] = partial(step, loss)
    return runs


def _evaluated(rows: int, width: int, vocabulary: int) -> Mapping[str, Run]:
    given = _inputs(rows, width, vocabulary)
    compiled = torch.compile(partial(_held, reduction="none"))
    return {OURS: lambda: linear_losses(*given), "torch.compile": lambda: compiled(*given)}


def _inputs(rows: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    x_ND = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
    weight_VD = torch.randn(vocabulary, width, device="cuda", dtype=torch.bfloat16) * 0.02
    return x_ND, weight_VD, torch.randint(0, vocabulary, (rows,), device="cuda")


def _held(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy((x_ND @ weight_VD.T).float(), target_N, reduction=reduction)


def _liger(reduction: str) -> Loss:
    def loss(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        made: Tensor = LigerFusedLinearCrossEntropyLoss(reduction=reduction)(weight_VD, x_ND, target_N)
        return made

    return loss
