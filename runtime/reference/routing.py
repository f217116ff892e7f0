"""Which experts a token goes to, with what weight, and the losses that keep the experts evenly used."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import wide


def top_k(score: Tensor, k: int, groups: int = 1, keep: int = 1, group_by: str = "best") -> Tensor:
    """Indices (int64, [..., K]) of the k largest of score [..., X], best first; of equal scores the lower index first.

    With `groups`, only the `keep` best of so many equal parts of the axis can be chosen from. What a part is worth is
    its best score (DeepSeek-V2, arXiv:2405.04434, section 2.2.1) or the sum of its best two (`best_two`: DeepSeek-V3,
    arXiv:2412.19437, section 2.1.2); of equal parts the lower goes first. The scores of other parts count as -inf. (As
    0.0, which some published code has, they would beat scores that a selection bias makes negative.)

    No gradient flows through a choice. `torch.topk` leaves the order of ties open, and they do occur: bf16 is coarse.
    """
    assert 1 <= k <= score.shape[-1], f"cannot choose {k} of {score.shape[-1]}"
    score = score.detach()
    if keep < groups:
        score = _best_groups(score, groups, keep, 2 if group_by == "best_two" else 1)
    return _best(score, k)


def _best_groups(score: Tensor, groups: int, keep: int, best: int) -> Tensor:
    """The scores of the `keep` best groups, by the sum of their `best` best; -inf elsewhere."""
    score_GX = score.unflatten(-1, (groups, -1))
    worth_G = torch.sort(score_GX, dim=-1, descending=True, stable=True).values[..., :best].sum(-1)
    number_G = torch.arange(groups, device=score.device)
    kept_G = (_best(worth_G, keep).unsqueeze(-1) == number_G).any(-2)
    return score_GX.masked_fill(~kept_G.unsqueeze(-1), -torch.inf).flatten(-2)


def _best(score: Tensor, k: int) -> Tensor:
    order = torch.sort(score, dim=-1, descending=True, stable=True).indices
    return order[..., :k].contiguous()  # a view would keep the whole order until backward


def normalize(x: Tensor) -> Tensor:
    """x divided by its sum over the last axis (+ 1e-20, as in DeepSeek-V3's `Gate`), in float32 at least."""
    y = wide(x)
    return (y / (y.sum(-1, keepdim=True) + 1e-20)).to(x.dtype)


def load_balance(score_BSX: Tensor, chosen_BSK: Tensor) -> Tensor:
    """`X * sum_i f_i P_i` over all tokens of the batch: a scalar in float32 at least, 1 when all is even.

    f_i is the share of the tokens' choices that fell on expert i, P_i the mean score of expert i; score_BSX holds
    probabilities, chosen_BSK the indices of `top_k`. Switch Transformer, arXiv:2101.03961, equations 4 to 6, with the k
    choices of a token counted as k; transformers' `load_balancing_loss_func` is k times this.
    """
    experts = score_BSX.shape[-1]
    count_X = expert_counts(chosen_BSK, experts)
    score_X = wide(score_BSX).flatten(0, -2).mean(0)
    return experts * (count_X.to(score_X.dtype) / chosen_BSK.numel() * score_X).sum()


def sequence_balance(score_BSX: Tensor, chosen_BSK: Tensor) -> Tensor:
    """The balance loss of each sequence by itself, averaged over the batch: a scalar in float32 at least, 1 when even.

    Per sequence `sum_i f_i P_i` with `f_i = X / (K S) * times i was chosen` and P_i the mean over the sequence of
    `s_i / sum_j s_j`; score_BSX holds affinities (not negative), chosen_BSK the indices of `top_k`. DeepSeek-V3,
    arXiv:2412.19437, equations 17 to 20, without the factor alpha.
    """
    experts, (length, chosen) = score_BSX.shape[-1], chosen_BSK.shape[-2:]
    index = chosen_BSK.flatten(1)
    count_BX = torch.zeros(index.shape[0], experts, dtype=torch.int64, device=index.device)
    count_BX = count_BX.scatter_add(1, index, torch.ones_like(index))
    score_BX = normalize(wide(score_BSX)).mean(1)
    share_BX = count_BX.to(score_BX.dtype) * (experts / (chosen * length))
    return (share_BX * score_BX).sum(-1).mean()


def z_loss(logits: Tensor) -> Tensor:
    """The mean of `logsumexp(logits)²` over all but the last axis: a scalar in float32 at least.

    It keeps a router's logits small (ST-MoE, arXiv:2202.08906, equation 5).
    """
    return wide(logits).logsumexp(-1).square().mean()


def expert_counts(chosen: Tensor, experts: int, counted: Tensor | None = None) -> Tensor:
    """How often each expert occurs in `chosen` (int64, any shape): int64 [X], computed without asking the device.

    counted: which of them count (bool, of the same shape); all when None.
    """
    index = chosen.flatten()
    ones = torch.ones_like(index) if counted is None else counted.flatten().to(index.dtype)
    return torch.zeros(experts, dtype=torch.int64, device=index.device).scatter_add(0, index, ones)
