"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .arrange import shift
from .precision import wide

IGNORED = -100  # the target of a position that has nothing to predict


def token_losses(logits: Tensor, targets: Tensor, z: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """Cross entropy in nats of each row of logits [..., V] at its target (int64, [...]), zero where that is -100.

    In float32 (float64 when the logits are). `z` adds `z * logsumexp²` (arXiv:2204.02311, section 5), `smoothing` mixes
    the target with the uniform distribution (arXiv:1512.00567, section 7).
    """
    logits_NV, target_N = wide(logits).flatten(0, -2), targets.flatten()
    loss_N = F.cross_entropy(logits_NV, target_N, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing)
    if z:
        loss_N = loss_N + z * logits_NV.logsumexp(-1).square().where(target_N != IGNORED, 0.0)
    return loss_N.view(targets.shape)


def next_token(
    logits_BSV: Tensor,
    targets_BS: Tensor,
    ahead: int = 1,
    rows: Callable[[Tensor, Tensor], Tensor] = token_losses,
) -> Tensor:
    """Mean cross entropy in nats over the targets that are not -100; a scalar in float32 (float64 when the logits are).

    targets_BS [B, S] (int64) holds at each position the token that follows it. With `ahead = n` the logits predict the
    n-th token after their position (multi-token prediction, arXiv:2412.19437, equation 24); it counts only when none of
    the tokens up to it is -100, so that no prediction crosses a document's end. Zero when no target counts. `rows`
    gives each row's loss, as `token_losses` does.
    """
    assert ahead >= 1, f"cannot predict {ahead} tokens ahead"
    target_BS = targets_BS
    for n in range(1, ahead):
        target_BS = shift(targets_BS, n, fill=IGNORED).where(target_BS != IGNORED, IGNORED)
    count = (target_BS != IGNORED).sum().clamp(min=1)
    return rows(logits_BSV, target_BS).sum() / count
