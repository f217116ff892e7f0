"""Residual compression that keeps only the compressed form for backward."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .activation import gelu
from .context import Context
from .linear import linear
from .norm import layer_norm


class _Context(Context, Protocol):
    eps: float


class _Compressed(torch.autograd.Function):
    """`forward` is the block's formula; `backward` is its derivative where the restored form stands for x."""

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        h = linear(x, down, down_bias)
        ctx.save_for_backward(h, down, up, up_bias, weight, bias)
        ctx.eps = eps
        return layer_norm(x + linear(gelu(h), up, up_bias), weight, bias, eps)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, down, up, up_bias, weight, bias = ctx.saved_tensors
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            own = [w.detach().requires_grad_() for w in (up, up_bias, weight, bias)]
            restored = linear(gelu(h), own[0], own[1])
            x = restored.detach().requires_grad_()
            y = layer_norm(x + restored, own[2], own[3], ctx.eps)
        by_x, by_h, *by_own = torch.autograd.grad(y, (x, h, *own), grad)
        by_down = by_h.flatten(0, -2).mT @ x.detach().flatten(0, -2)
        by_x = by_x + by_h @ down.to(by_h.dtype)
        by_down_bias = by_h.flatten(0, -2).sum(0)
        return by_x, by_down.to(down.dtype), by_down_bias.to(down.dtype), *by_own, None


def compressed(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """`layer_norm(x + restored)`, restored = gelu(x downᵀ + down_bias) upᵀ + up_bias: x [..., D], result of its shape.

    down is [R, D], up [D, R]. The result is exact. Between forward and backward only `x downᵀ + down_bias` [..., R] is
    held of the activations, and backward works from what is restored from it, in place of x: the gradients of x and of
    all six weights are those that the same formula has at x = restored. That is: the derivative of the normalisation is
    taken at 2 * restored, and that of `down` by `restored`. What does not rest on x (the derivative of GELU, and what
    `up` is multiplied with) is exact; all is when `restored` is x.
    """
    return _Compressed.apply(x, down, down_bias, up, up_bias, weight, bias, eps)
