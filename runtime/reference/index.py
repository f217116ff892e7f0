"""Which keys each query attends to: the lightning indexer of DeepSeek-V3.2 (arXiv:2512.02556, section 2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import Mask
from .precision import wide

MOST_SCORES = 1 << 26  # held at once, of all heads: 256 MiB


def index_keys(q_BSHE: Tensor, k_BTE: Tensor, weight_BSH: Tensor, top: int, mask: Mask | None = None) -> Tensor:
    """The `top` keys of highest score for each query, best first: int64 [B, S, top], -1 where there are fewer.

    The score of query s and key t is `sum_h weight[s, h] * relu(q[s, h] . k[t])`, in float32 at least; only keys that
    the mask lets the query see are taken. Of equal scores the earlier position comes first. q is [B, S, H, E], k
    [B, T, E] without heads, weight [B, S, H]; the queries are the last S of the T positions. No gradient flows through
    a choice. (arXiv:2512.02556, equation 1. The Hadamard transform of q and k that DeepSeek's code applies before it
    rounds them to eight bits is orthogonal: it changes no product.)
    """
    with torch.no_grad():
        queries, heads, keys = q_BSHE.shape[1], q_BSHE.shape[2], k_BTE.shape[1]
        allowed = None if mask is None else mask.simplified(keys).allowed(queries, keys, q_BSHE.device)
        step = queries
        if not torch.compiler.is_exporting():  # the program is for other lengths too
            step = max(1, MOST_SCORES // (q_BSHE.shape[0] * heads * keys))
        k_BET = wide(k_BTE).transpose(1, 2).unsqueeze(1)
        chosen = []
        for start in range(0, queries, step):
            part = slice(start, min(start + step, queries))
            score_BSHT = F.relu(wide(q_BSHE[:, part]) @ k_BET)
            score_BST = (wide(weight_BSH[:, part]).unsqueeze(2) @ score_BSHT).squeeze(2)
            if allowed is not None:
                score_BST = score_BST.masked_fill(~allowed[..., part, :], -torch.inf)
            chosen.append(_best(score_BST, top))
        return torch.cat(chosen, dim=1) if len(chosen) > 1 else chosen[0]


def _best(score_BST: Tensor, top: int) -> Tensor:
    """The positions of the `top` greatest scores; -1 for those that are -inf, and past the last position."""
    score, order = torch.sort(score_BST, dim=-1, descending=True, stable=True)
    place = order[..., :top].masked_fill(score[..., :top].isneginf(), -1)
    return F.pad(place, (0, max(0, top - score_BST.shape[-1])), value=-1)
