"""Normalisation over the last axis."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import wide


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * (offset + weight)` over the last axis (arXiv:1910.07467, section 4).

    x is [..., D], weight [D] or None for no scale; `offset=1.0` is Gemma's form, whose weight is stored less one.
    Computed in float32 (float64 when x is), the scale included; the result has the shape and dtype of x.
    """
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * (weight.to(y.dtype) + offset if offset else weight.to(y.dtype))
    return y.to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last axis (arXiv:1607.06450, section 3).

    x is [..., D], weight and bias [D] or None; the variance is the biased one. Computed in float32 (float64 when x is);
    the result has the shape and dtype of x.
    """
    y = wide(x)
    y = y - y.mean(-1, keepdim=True)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y.to(x.dtype)


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / sqrt(sum(x²) + eps)` over the last axis, computed in float32 at least: rows of length 1 or a little less."""
    y = wide(x)
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + eps)).to(x.dtype)
