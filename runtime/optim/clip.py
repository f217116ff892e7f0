"""Keeping one step's gradients from going too far."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..problem import Problem
from . import check


@torch.no_grad()
def clip(model: nn.Module, max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global 2-norm is at most `max_norm` (arXiv:1211.5063, section 3.2).

    Returns the norm before scaling, a scalar in float32 at least. `None` only measures. Raises Problem when the norm
    is not finite, naming the first parameter whose gradient is not.
    """
    return clip_gradients({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, max_norm)


def clip_gradients(grads: Mapping[str, Tensor], max_norm: float | None) -> Tensor:
    """`clip` of gradients by the names of their parameters."""
    if not grads:
        return torch.zeros(())
    norms = torch.stack([torch.linalg.vector_norm(grad, dtype=_wide(grad)) for grad in grads.values()])
    norm = torch.linalg.vector_norm(norms)
    if not norm.isfinite():  # waits for the device, as reporting the norm would
        raise not_finite(grads)
    check.most(max_norm)
    if max_norm is not None:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads.values():
            grad.mul_(scale.to(grad.dtype))
    return norm


def _wide(grad: Tensor) -> torch.dtype:
    return torch.promote_types(grad.dtype, torch.float32)


def not_finite(grads: Mapping[str, Tensor]) -> Problem:
    """What is wrong with gradients whose norm is not finite."""
    for name, grad in grads.items():
        if not grad.isfinite().all():
            what = f"the gradient of {name} has {int((~grad.isfinite()).sum()):,} of {grad.numel():,} values not finite"
            break
    else:
        what = "the gradients are so large that their norm overflows"
    return Problem(what, "try a lower learning rate, a longer warmup, or --precision fp32")
