"""Scaled dot-product attention (arXiv:1706.03762, section 3.2.1): over torch's own kernels, and written out where those
cannot say it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activation import softcap as capped
from .mask import Causal, Everything, Mask, everything
from .precision import wide


def attention(
    q_BSHE: Tensor,
    k_BTGE: Tensor,
    v_BTGE: Tensor,
    mask: Mask | None = None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    training: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    select: Tensor | None = None,
) -> Tensor:
    """`softmax(scale * q k^T, where mask) v`: [B, S, H, Ev], in the dtype of q.

    q is [B, S, H, E], k [B, T, G, E], v [B, T, G, Ev]. H is a multiple of G, and query head h reads key head
    `h // (H / G)` (grouped queries, arXiv:2305.13245). The queries are the last S of the T positions. `mask=None` lets
    each query see every key; a mask must leave each query a key. `scale` defaults to `E ** -0.5`. While training, each
    probability is dropped with probability `dropout`.

    With any of these the scores are written out, in float32 at least: `softcap` bounds the scaled scores by
    `softcap * tanh(score / softcap)` before the mask (Gemma 2, arXiv:2408.00118, section 2). `sinks` [H] are logits
    that take part in each head's softmax and have no value, so that probabilities add up to less than 1 (gpt-oss,
    arXiv:2508.10925, section 2.2). `select` [B, S, K] (int64) are the only positions that a query may see, as far as
    the mask allows them too; -1 is none (DeepSeek sparse attention, arXiv:2512.02556, section 2.1).
    """
    queries, heads = q_BSHE.shape[1:3]
    keys, groups = k_BTGE.shape[1:3]
    assert heads % groups == 0, f"{heads} query heads do not divide over {groups} key heads"
    assert queries <= keys, f"{queries} queries stand at the end of {keys} positions"
    mask = everything if mask is None else mask.simplified(keys)
    if isinstance(mask, Causal) and queries == 1:
        mask = everything  # the last position sees all
    if softcap is not None or sinks is not None or select is not None:
        allowed = None if isinstance(mask, Everything) else mask.allowed(queries, keys, q_BSHE.device)
        if select is not None:
            allowed = selected(select, keys) if allowed is None else allowed & selected(select, keys)
        return written_out(q_BSHE, k_BTGE, v_BTGE, allowed, scale, dropout if training else 0.0, softcap, sinks)
    is_causal, allowed = False, None
    if isinstance(mask, Causal) and queries == keys:
        is_causal = True  # by a branch: to torch.export and torch.compile, `queries == keys` may be a symbol
    elif not isinstance(mask, Everything):
        allowed = mask.allowed(queries, keys, q_BSHE.device)
        if allowed.ndim == 3:
            allowed = allowed.unsqueeze(1)  # [B, 1, S, T]; CPU kernels take this and [S, T], but no [1, S, T]
    if groups != heads and not (is_causal or (dropout and training)) and _few(q_BSHE, k_BTGE, v_BTGE):
        return _grouped(q_BSHE, k_BTGE, v_BTGE, allowed, scale)
    if groups != heads and allowed is not None:
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


def _few(q_BSHE: Tensor, k_BTGE: Tensor, v_BTGE: Tensor) -> bool:
    """Whether so few queries come that a mask for each head is smaller than keys and values for each: in decoding."""
    if torch.compiler.is_exporting() or any(x.requires_grad for x in (q_BSHE, k_BTGE, v_BTGE)):
        return False  # a program for other lengths too; training, whose memory is accounted for as it was
    return q_BSHE.shape[1] < k_BTGE.shape[3] + v_BTGE.shape[3]


def _grouped(q_BSHE: Tensor, k_BTGE: Tensor, v_BTGE: Tensor, allowed: Tensor | None, scale: float | None) -> Tensor:
    """`attention` with the heads of a group as further queries, so that their key and value are not repeated.

    allowed is bool [S, T], [B, 1, S, T], or None for every key.
    """
    queries, heads, groups = q_BSHE.shape[1], q_BSHE.shape[2], k_BTGE.shape[2]
    q_BGRE = q_BSHE.transpose(1, 2).unflatten(1, (groups, -1)).flatten(2, 3)
    if allowed is not None:
        allowed = allowed.repeat(*[1] * (allowed.ndim - 2), heads // groups, 1)
    k_BGTE, v_BGTE = k_BTGE.transpose(1, 2), v_BTGE.transpose(1, 2)
    o_BGRE = F.scaled_dot_product_attention(q_BGRE, k_BGTE, v_BGTE, attn_mask=allowed, scale=scale)
    return o_BGRE.unflatten(2, (-1, queries)).flatten(1, 2).transpose(1, 2)


def selected(select_BSK: Tensor, keys: int) -> Tensor:
    """True where a key's position is among those of the query: bool [B, S, keys]. -1 stands for no position."""
    assert select_BSK.dtype == torch.int64, f"positions are integers, not {select_BSK.dtype}"
    found = torch.zeros(*select_BSK.shape[:2], keys + 1, dtype=torch.bool, device=select_BSK.device)
    place_BSK = torch.where(select_BSK < 0, keys, select_BSK)  # a last column takes what is none
    return found.scatter(2, place_BSK, True)[..., :keys]


def written_out(
    q_BSHE: Tensor,
    k_BTGE: Tensor,
    v_BTGE: Tensor,
    allowed: Tensor | None,
    scale: float | None,
    dropout: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """`attention` with its scores as a tensor; allowed is bool [S, T], [B, S, T], or None for every key."""
    queries, heads, width = q_BSHE.shape[1:]
    groups = k_BTGE.shape[2]
    q_BHSE = wide(q_BSHE).transpose(1, 2) * (width**-0.5 if scale is None else scale)
    q_BGRE = q_BHSE.unflatten(1, (groups, -1)).flatten(2, 3)  # the queries of a group's heads, one after another
    score = (q_BGRE @ wide(k_BTGE).permute(0, 2, 3, 1)).unflatten(2, (-1, queries)).flatten(1, 2)  # [B, H, S, T]
    if softcap is not None:
        score = capped(score, softcap)
    if allowed is not None:
        score = score.masked_fill(~(allowed.unsqueeze(1) if allowed.ndim == 3 else allowed), -torch.inf)
    if sinks_H is not None:
        sink = sinks_H.to(score.dtype).view(1, heads, 1, 1).expand(score.shape[0], heads, queries, 1)
        score = torch.cat((score, sink), dim=-1)
    p = F.dropout(score.softmax(-1)[..., : k_BTGE.shape[1]], dropout)
    o_BGRE = p.unflatten(1, (groups, -1)).flatten(2, 3) @ wide(v_BTGE).transpose(1, 2)
    return o_BGRE.unflatten(2, (-1, queries)).flatten(1, 2).transpose(1, 2).to(q_BSHE.dtype)
