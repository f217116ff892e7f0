"""Matrix products with weights: linear, heads, embed, unembed. Weights take the dtype of what they meet."""

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


def map_heads(x_BSHE: Tensor, weight_HFE: Tensor) -> Tensor:
    """Each head of x [B, S, H, E] by its own map of weight [H, F, E]: [B, S, H, F]. The weight takes the dtype of x."""
    return torch.einsum("bshe,hfe->bshf", x_BSHE, weight_HFE.to(x_BSHE.dtype))


def embed(tokens: Tensor, weight: Tensor) -> Tensor:
    """Rows of weight [V, D] for tokens (integers, [...]): [..., D], in the weight's dtype."""
    return F.embedding(tokens, weight)


def unembed(x: Tensor, weight: Tensor) -> Tensor:
    """Logits [..., V] of x [..., D] against an embedding's weight [V, D]: the tied head (arXiv:1608.05859)."""
    return linear(x, weight)
