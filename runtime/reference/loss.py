"""What training minimises."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .arrange import shift
from .precision import wide

IGNORED = -100  # the target of a position that has nothing to predict


def next_token(
    logits_BSV: Tensor, targets_BS: Tensor, ahead: int = 1, z: float = 0.0, smoothing: float = 0.0
) -> Tensor:
    """Mean cross entropy in nats over the targets that are not -100; a scalar in float32 (float64 when the logits are).

    targets_BS [B, S] (int64) holds at each position the token that follows it. With `ahead = n` the logits predict the
    n-th token after their position (multi-token prediction, arXiv:2412.19437, equation 24); it counts only when none of
    the tokens up to it is -100, so that no prediction crosses a document's end. `z` adds `z * mean(logsumexp²)`
    (arXiv:2204.02311, section 5), `smoothing` mixes the target with the uniform distribution. Zero when no target
    counts.
    """
    assert ahead >= 1, f"cannot predict {ahead} tokens ahead"
    target_BS = targets_BS
    for n in range(1, ahead):
        target_BS = shift(targets_BS, n, fill=IGNORED).where(target_BS != IGNORED, IGNORED)
    logits_NV, target_N = wide(logits_BSV).flatten(0, -2), target_BS.flatten()
    counted_N = target_N != IGNORED
    count = counted_N.sum().clamp(min=1)
    total = F.cross_entropy(logits_NV, target_N, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    if z:
        total = total + z * logits_NV.logsumexp(-1).square().where(counted_N, 0.0).sum()
    return total / count
