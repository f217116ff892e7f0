"""Elementwise functions, softmax and dropout: shape and dtype of the result are those of x."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import wide


def silu(x: Tensor) -> Tensor:
    """`x * sigmoid(x)` (arXiv:1606.08415, section 2)."""
    return F.silu(x)


def gelu(x: Tensor) -> Tensor:
    """`x * Phi(x)` with the exact normal distribution function (arXiv:1606.08415, section 2)."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of gelu (arXiv:1606.08415, section 2)."""
    return F.gelu(x, approximate="tanh")


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`."""
    return torch.sigmoid(x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return torch.tanh(x)


def relu(x: Tensor) -> Tensor:
    """`max(x, 0)`."""
    return F.relu(x)


def exp(x: Tensor) -> Tensor:
    """`e ** x`."""
    return torch.exp(x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return torch.log(x)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`."""
    return torch.logaddexp(x, torch.zeros_like(x))


def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return torch.sqrt(x)


def clamp(x: Tensor, least: float | None, most: float | None) -> Tensor:
    """x kept from `least` to `most`, None for no bound."""
    return torch.clamp(x, least, most)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` along `axis`, computed in float32 (float64 when x is)."""
    return torch.softmax(wide(x), dim=axis).to(x.dtype)


def softcap(x: Tensor, cap: float) -> Tensor:
    """`cap * tanh(x / cap)`: x kept within (-cap, cap) (Gemma 2, arXiv:2408.00118, section 2), in float32 at least."""
    return (cap * torch.tanh(wide(x) / cap)).to(x.dtype)


def noise(x: Tensor, training: bool) -> Tensor:
    """Standard normal numbers of the shape and dtype of x while training, otherwise zeros."""
    return torch.randn_like(x) if training else torch.zeros_like(x)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Each element zero with probability p and scaled by `1 / (1 - p)` otherwise; x itself when not training."""
    return F.dropout(x, p, training=training)
