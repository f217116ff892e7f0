"""What training minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def classify(scores_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Mean cross entropy in nats of scores [B, C] at labels (int64 [B]): a scalar in float32 (float64 as they are)."""
    return F.cross_entropy(wide(scores_BC), labels_B)


def regress(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean of squared differences of two tensors of one shape; a scalar in float32 (float64 as the first is).

    Raises ValueError for other shapes: broadcast, they would be compared row with row.
    """
    if found.shape != wanted.shape:
        raise ValueError(f"{list(found.shape)} is compared with {list(wanted.shape)}: both have the result's shape")
    return F.mse_loss(wide(found), wide(wanted))


def weighted(losses: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    """The sum of an objective's terms that a batch has, each times its factor (1 unless told). Losses: scalars.

    Raises ValueError when there are none: the batch has no target that the objective asks for.
    """
    if not losses:
        raise ValueError("the batch has no target of any term of the objective")
    terms = [loss if factors.get(name, 1.0) == 1.0 else factors[name] * loss for name, loss in losses.items()]
    return sum(terms[1:], terms[0])
