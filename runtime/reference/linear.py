"""Matrix products with weights: linear, embed, unembed. Weights take the dtype of what they meet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, compute: torch.dtype | None = None) -> Tensor:
    """`x @ weight.T + bias`: x [..., I], weight [O, I], bias [O] or None, result [..., O].

    Weight and bias are cast to the dtype of x. With `compute` all three are cast to it, and the result stays in it.
    """
    if compute is not None:
        x = x.to(compute)
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of weight [V, D] for tokens (integers, [...]): [..., D], in the weight's dtype."""
    return F.embedding(tokens, weight)


def unembed(x: Tensor, weight: Tensor) -> Tensor:
    """Logits [..., V] of x [..., D] against an embedding's weight [V, D]: the tied head (arXiv:1608.05859)."""
    return linear(x, weight)
