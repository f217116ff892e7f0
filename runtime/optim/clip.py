"""Keeping one step's gradients from going too far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..problem import Problem
from . import check

WAY_OUT = "try a lower learning rate, a longer warmup, or --precision fp32"


@dataclass(frozen=True)
class NotFinite:
    """Why a step changed nothing. name: of the first parameter, in the order of the forward pass, whose gradient is not
    finite; `norm` where only their norm is not, and `loss` where the gradients are. what: the same in words.
    """

    name: str
    what: str


@torch.no_grad()
def clip(model: nn.Module, max_norm: float | None) -> Tensor:
    """Scale all gradients so that their global 2-norm is at most `max_norm` (arXiv:1211.5063, section 3.2).

    Returns the norm before scaling, a scalar in float32 at least. `None` only measures. Raises Problem when the norm
    is not finite, naming the first parameter whose gradient is not.
    """
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = measure(grads)
    if not norm.isfinite():  # waits for the device, as reporting the norm would
        raise Problem(not_finite(grads).what, WAY_OUT)
    scale(grads, norm, max_norm)
    return norm


def measure(grads: Mapping[str, Tensor], guard: Tensor | None = None) -> Tensor:
    """The global 2-norm of gradients; not a number when `guard`, a scalar, is not finite."""
    if not grads:
        return torch.zeros(())
    norms = torch.stack([torch.linalg.vector_norm(grad, dtype=_wide(grad)) for grad in grads.values()])
    return guarded(torch.linalg.vector_norm(norms), guard)


def scale(grads: Mapping[str, Tensor], norm: Tensor, most: float | None, times: float = 1.0) -> None:
    """Multiply gradients, in place, so that they are not `times` too large, and their norm, which then is this,
    is at most `most`; None leaves it.
    """
    check.most(most)
    if most is None and times == 1.0:
        return
    factor = torch.ones_like(norm) if most is None else (most / (norm + 1e-6)).clamp(max=1.0)
    for grad in grads.values():
        grad.mul_((factor / times).to(grad.dtype))


def guarded(norm: Tensor, guard: Tensor | None) -> Tensor:
    """The norm, or not a number where `guard` is not finite, without looking at it on the host."""
    return norm if guard is None else norm + (guard - guard)


def not_finite(grads: Mapping[str, Tensor]) -> NotFinite:
    """What is wrong with gradients whose guarded norm is not finite."""
    counts = {name: int((~grad.isfinite()).sum()) for name, grad in grads.items()}
    wrong = [name for name, count in counts.items() if count]
    if not wrong:
        if torch.isfinite(measure(grads)):
            return NotFinite("loss", "the loss is not finite")
        return NotFinite("norm", "the gradients are so large that their norm overflows")
    first, last = wrong[0], wrong[-1]
    what = f"the gradient of {first} has {counts[first]:,} of {grads[first].numel():,} values not finite"
    if len(wrong) > 1:  # backward goes the other way
        what += f", those of {len(wrong) - 1} more have some, and backward came to {last} first"
    return NotFinite(first, what)


def _wide(grad: Tensor) -> torch.dtype:
    return torch.promote_types(grad.dtype, torch.float32)
