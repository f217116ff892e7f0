"""Compressed memory (DeepSeek-V4, section 2.3): groups of positions as one entry each, and attention to the entries.

Axes besides those of all: C entries, M positions that one entry stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import selected, written_out
from .index import index_keys
from .mask import Mask, everything
from .precision import wide


def compress(x_BSW: Tensor, gate_BSW: Tensor, bias_MW: Tensor, overlap: bool = False) -> Tensor:
    """`sum_m softmax_m(gate + bias) * x` over every whole group of M positions: [B, C, W], in the dtype of x.

    With `overlap` x and gate hold two series of E = W / 2 each, and the softmax runs over 2 M numbers: the first series
    of the group before, none for the first group, and the second series of its own. Then the result is [B, C, E].
    Positions after the last whole group are left out. The softmax and the sum run in float32 at least.
    """
    size, groups = bias_MW.shape[0], x_BSW.shape[1] // bias_MW.shape[0]
    x_BCMW = wide(x_BSW[:, : groups * size]).unflatten(1, (groups, size))
    gate_BCMW = wide(gate_BSW[:, : groups * size]).unflatten(1, (groups, size)) + wide(bias_MW)
    if overlap:
        x_BCMW = _with_group_before(x_BCMW, 0.0)
        gate_BCMW = _with_group_before(gate_BCMW, float("-inf"))
    return (x_BCMW * gate_BCMW.softmax(2)).sum(2).to(x_BSW.dtype)


def _with_group_before(x_BCMW: Tensor, fill: float) -> Tensor:
    """The first series of the group before, then the second series of each group: [B, C, 2 M, E]."""
    first, second = x_BCMW.chunk(2, dim=-1)
    blank = torch.full_like(first[:, :1], fill)
    return torch.cat((torch.cat((blank, first[:, :-1]), dim=1), second), dim=2)


def choose_entries(q_BSHE: Tensor, k_BCE: Tensor, weight_BSH: Tensor, position_S: Tensor, k: int, size: int) -> Tensor:
    """True for the `k` entries (fewer where there are not so many) that score best with a query: bool [B, S, C].

    They are those of `index_keys` over entries whose `size` positions all lie up to the query's own, which position_S
    [S] tells.
    """
    entries = k_BCE.shape[1]
    return selected(index_keys(q_BSHE, k_BCE, weight_BSH, k, _WholeGroups(position_S, size)), entries)


def attend_compressed(
    q_BSHE: Tensor,
    kv_BTE: Tensor,
    sinks_H: Tensor,
    entries_BCE: Tensor,
    chosen_BSC: Tensor | None = None,
    *,
    size: int,
    mask: Mask | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of every head to positions, as far as the mask allows, and to the entries before: [B, S, H, E], in
    q's dtype.

    kv_BTE is key and value of each position, entries_BCE of each group of `size` positions; the queries are the last S
    of the T positions. A query sees the entries whose positions all lie up to its own, of those only the ones that
    chosen_BSC (bool) marks where it is given. `sinks_H` and `scale` are those of `attention`, and scores are written
    out as there.
    """
    queries, positions = q_BSHE.shape[1], kv_BTE.shape[1]
    position_S = torch.arange(positions - queries, positions, device=q_BSHE.device)
    far = _whole_before(position_S, entries_BCE.shape[1], size)
    far = far if chosen_BSC is None else far & chosen_BSC
    near_ST = (everything if mask is None else mask).allowed(queries, positions, q_BSHE.device)
    seen = torch.cat((near_ST.expand(*far.shape[:-1], -1), far), dim=-1)
    kv_BT1E = torch.cat((kv_BTE, entries_BCE), dim=1).unsqueeze(2)
    return written_out(q_BSHE, kv_BT1E, kv_BT1E, seen, scale, 0.0, None, sinks_H)


@dataclass(frozen=True, slots=True, eq=False)
class _WholeGroups(Mask):
    """A query at one of these positions sees the entries of `size` positions each that all lie up to it."""

    position_S: Tensor
    size: int

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        return _whole_before(self.position_S, keys, self.size)


def _whole_before(position_S: Tensor, entries: int, size: int) -> Tensor:
    """Whether all positions of an entry lie up to the query's: bool [S, C]."""
    last_C = torch.arange(entries, device=position_S.device) * size + (size - 1)
    return last_C <= position_S.unsqueeze(-1)
