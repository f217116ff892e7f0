"""Attention of decoding over a cache, contiguous or in pages (vLLM, arXiv:2309.06180, section 4.1), and writing it.

Positions of sequence b are 0 to lengths[b] - 1, the newest S of them those of the queries. A contiguous cache is
[B, T, ...]. A paged one is [P, page, ...]: position t of sequence b is row `t % page` of page `table[b, t // page]`.
What a cache or a table holds beyond a sequence's length is never looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .activation import softcap as capped
from .precision import wide


def decode_attention(
    q_BSHE: Tensor,
    k: Tensor,
    v: Tensor,
    lengths_B: Tensor,
    *,
    table_BN: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Causal `attention` of the newest positions of each sequence: o [B, S, H, Ev], dtype of q, and lse [B, S, H].

    q is [B, S, H, E], k [B, T, G, E] or [P, page, G, E], v alike with Ev; lengths [B] and table [B, N] are integers.
    Query s sees the positions up to lengths - S + s, with `window` only the last so many of them; scale, softcap and
    sinks are those of `attention`. Where it sees none, o is 0. Keys stand for `k_scale * k`, values for `v_scale * v`.
    lse is the natural logarithm of the softmax's denominator, sinks included, in float32 at least.
    """
    queries, heads, width = q_BSHE.shape[1:]
    held_BT = _held(k, lengths_B, table_BN)
    k_BTGE, v_BTGE = (_in_order(x, table_BN, held_BT) for x in (k, v))
    per_key = heads // k_BTGE.shape[2]
    k_BHTE = (wide(k_BTGE).to(wide(q_BSHE).dtype) * k_scale).repeat_interleave(per_key, 2).transpose(1, 2)
    v_BHTE = (wide(v_BTGE).to(wide(q_BSHE).dtype) * v_scale).repeat_interleave(per_key, 2).transpose(1, 2)
    score_BHST = wide(q_BSHE).transpose(1, 2) @ k_BHTE.mT * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        score_BHST = capped(score_BHST, softcap)
    at_T = torch.arange(k_BTGE.shape[1], device=q_BSHE.device)
    last_BS1 = (lengths_B[:, None] - queries + torch.arange(queries, device=q_BSHE.device)).unsqueeze(-1)
    seen_BST = at_T <= last_BS1
    if window is not None:
        seen_BST &= at_T > last_BS1 - window
    score_BHST = score_BHST.masked_fill(~seen_BST.unsqueeze(1), -torch.inf)
    logits_BHST = score_BHST
    if sinks_H is not None:
        sink_BHS1 = sinks_H.to(score_BHST.dtype).view(1, -1, 1, 1).expand(*score_BHST.shape[:3], 1)
        logits_BHST = torch.cat((score_BHST, sink_BHS1), dim=-1)
    lse_BHS = logits_BHST.logsumexp(-1)
    base_BHS1 = torch.where(lse_BHS == -torch.inf, 0.0, lse_BHS).unsqueeze(-1)
    o_BHSE = (score_BHST - base_BHS1).exp() @ v_BHTE
    return o_BHSE.transpose(1, 2).to(q_BSHE.dtype), lse_BHS.transpose(1, 2)


def latent_decode(
    q_BSHC: Tensor,
    q_rope_BSHR: Tensor,
    c: Tensor,
    k_rope: Tensor,
    lengths_B: Tensor,
    *,
    scale: float,
    table_BN: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`decode_attention` whose heads share a key, the latent c and k_rope side by side, and a value, the latent.

    That is latent attention once the maps of keys and values are at the queries and behind attention (DeepSeek-V2,
    arXiv:2405.04434, section 2.1.2). q is [B, S, H, C] and [B, S, H, R], c [B, T, C] or [P, page, C], k_rope alike with
    R. Results are [B, S, H, C] and [B, S, H].
    """
    return decode_attention(
        torch.cat((q_BSHC, q_rope_BSHR), dim=-1),
        torch.cat((c, k_rope), dim=-1).unsqueeze(2),
        c.unsqueeze(2),
        lengths_B,
        table_BN=table_BN,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks_H=sinks_H,
    )


def write_cache(new_BSX: Tensor, cache: Tensor, lengths_B: Tensor, table_BN: Tensor | None, scale: float = 1.0) -> None:
    """Puts what is new, [B, S, ...], in its places in a cache, as `new / scale` in the cache's dtype.

    The place of new s is position lengths - S + s; where that is negative, nothing is written.
    """
    batch, queries = new_BSX.shape[:2]
    position_BS = lengths_B[:, None].long() - queries + torch.arange(queries, device=new_BSX.device)
    there_BS = position_BS >= 0
    row_B1 = torch.arange(batch, device=new_BSX.device)[:, None]
    if table_BN is None:
        block_BS, place_BS = row_B1.expand_as(position_BS), position_BS
    else:
        block_BS = table_BN[row_B1, position_BS.clamp(min=0) // cache.shape[1]].long()
        place_BS = position_BS % cache.shape[1]
    value_BSX = new_BSX if scale == 1.0 else wide(new_BSX) / scale
    if cache.dtype == torch.float8_e4m3fn:
        most = torch.finfo(cache.dtype).max
        value_BSX = wide(value_BSX).clamp(-most, most)
    cache[block_BS[there_BS], place_BS[there_BS]] = value_BSX[there_BS].to(cache.dtype)


def _held(k: Tensor, lengths_B: Tensor, table_BN: Tensor | None) -> Tensor:
    """Which positions a sequence has: bool [B, T]."""
    count = k.shape[1] if table_BN is None else k.shape[1] * table_BN.shape[1]
    return torch.arange(count, device=k.device) < lengths_B[:, None]


def _in_order(cache: Tensor, table_BN: Tensor | None, held_BT: Tensor) -> Tensor:
    """A cache as [B, T, ...], zero where a sequence has no position."""
    if table_BN is not None:
        page = cache.shape[1]
        used_BN = held_BT[:, ::page] if table_BN.shape[1] else held_BT
        cache = cache[torch.where(used_BN, table_BN, 0).long()].flatten(1, 2)
    if cache.dtype == torch.float8_e4m3fn:
        cache = cache.float()
    return cache.masked_fill(~held_BT.view(*held_BT.shape, *[1] * (cache.ndim - 2)), 0.0)
