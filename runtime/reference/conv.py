"""Causal depthwise convolution along the sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import wide
from .state import State


def conv(
    x_BSC: Tensor,
    weight_C1W: Tensor,
    bias_C: Tensor | None = None,
    documents_BS: Tensor | None = None,
    state: State | None = None,
) -> Tensor:
    """`y[s] = sum_w weight[w] x[s - W + 1 + w] + bias` for each channel by itself, 0 before the first position: [B, S,
    C].

    As in Mamba (arXiv:2312.00752, section 3.4). Sums run in float32 at least; the result has the dtype of x. With
    documents (integers) a position sees those of its own document only. `state` holds the last W - 1 positions of the
    pass before.
    """
    reach = weight_C1W.shape[-1] - 1
    before = state.read() if state is not None else None
    if before is None:
        before = x_BSC.new_zeros(x_BSC.shape[0], reach, x_BSC.shape[2])
    long_BTC = torch.cat([before, x_BSC], dim=1)
    if state is not None:
        state.write(long_BTC[:, long_BTC.shape[1] - reach :])
    wide_BTC = wide(long_BTC)
    weight_C1W = weight_C1W.to(wide_BTC.dtype)
    if documents_BS is None:
        y_BSC = F.conv1d(wide_BTC.transpose(1, 2), weight_C1W, groups=x_BSC.shape[2]).transpose(1, 2)
    else:
        ids_BSW = _windows(F.pad(documents_BS, (reach, 0), value=-1), reach + 1)
        own_BS1W = (ids_BSW == documents_BS.unsqueeze(-1)).unsqueeze(2)
        seen_BSCW = torch.where(own_BS1W, _windows(wide_BTC, reach + 1), 0.0)
        y_BSC = torch.einsum("bscw,cw->bsc", seen_BSCW, weight_C1W.squeeze(1))
    if bias_C is not None:
        y_BSC = y_BSC + bias_C.to(y_BSC.dtype)
    return y_BSC.to(x_BSC.dtype)


def _windows(x: Tensor, width: int) -> Tensor:
    """[B, S, ..., W] of x [B, S + W - 1, ...]: what each position sees."""
    length = x.shape[1] - width + 1
    return torch.stack([x[:, w : w + length] for w in range(width)], dim=-1)
