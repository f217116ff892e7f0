"""Scaled dot-product attention (arXiv:1706.03762, section 3.2.1) over torch's own kernels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .mask import Causal, Everything, Mask, everything


def attention(
    q_BSHE: Tensor,
    k_BTGE: Tensor,
    v_BTGE: Tensor,
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """`softmax(scale * q k^T, where mask) v`: [B, S, H, Ev], in the dtype of q.

    q is [B, S, H, E], k [B, T, G, E], v [B, T, G, Ev]. H is a multiple of G, and query head h reads key head
    `h // (H / G)` (grouped queries, arXiv:2305.13245). The queries are the last S of the T positions. `mask=None` lets
    each query see every key; a mask must leave each query a key. `scale` defaults to `E ** -0.5`. While training, each
    probability is dropped with probability `dropout`.
    """
    queries, heads = q_BSHE.shape[1:3]
    keys, groups = k_BTGE.shape[1:3]
    assert heads % groups == 0, f"{heads} query heads do not divide over {groups} key heads"
    assert queries <= keys, f"{queries} queries stand at the end of {keys} positions"
    mask = everything if mask is None else mask.simplified(keys)
    if isinstance(mask, Causal) and queries == 1:
        mask = everything  # the last position sees all
    is_causal, allowed = False, None
    if isinstance(mask, Causal) and queries == keys:
        is_causal = True  # by a branch: to torch.export and torch.compile, `queries == keys` may be a symbol
    elif not isinstance(mask, Everything):
        allowed = mask.allowed(queries, keys, q_BSHE.device)
        if allowed.ndim == 3:
            allowed = allowed.unsqueeze(1)  # [B, 1, S, T]; CPU kernels take this and [S, T], but no [1, S, T]
        if groups != heads:
            # With a mask tensor, none of CUDA's fused kernels groups heads: the fallback would hold all the scores.
            k_BTGE = k_BTGE.repeat_interleave(heads // groups, dim=2)
            v_BTGE = v_BTGE.repeat_interleave(heads // groups, dim=2)
    o_BHSE = F.scaled_dot_product_attention(
        q_BSHE.transpose(1, 2),
        k_BTGE.transpose(1, 2),
        v_BTGE.transpose(1, 2),
        attn_mask=allowed,
        dropout_p=dropout if training else 0.0,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=k_BTGE.shape[2] != heads,
    )
    return o_BHSE.transpose(1, 2)
