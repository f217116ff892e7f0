"""Lion: the sign of an interpolated momentum (arXiv:2302.06675, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import check
from .optimizer import Optimizer, groups, trainable


class Lion(Optimizer):
    """Lion keeps one moment; its rate is usually 3 to 10 times smaller than AdamW's, its decay as much larger.

    state_dtype: of the moment; that of each parameter when None.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        decay: float = 0.1,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        check.rate(lr)
        check.coefficients(betas)
        self.parameters = trainable(model)
        self.inner = _Lion(groups(self.parameters, decay), {"lr": lr, "betas": betas, "weight_decay": 0.0})
        for parameter in self.parameters.values():
            moment = torch.zeros_like(parameter, dtype=state_dtype or parameter.dtype)
            self.inner.state[parameter] = {"exp_avg": moment}


class _Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moment = self.state[parameter]["exp_avg"]
                    _update(parameter, parameter.grad, moment, group["lr"], group["weight_decay"], first, second)


def _update(
    parameter: Tensor, grad: Tensor, moment: Tensor, lr: float, decay: float, first: float, second: float
) -> None:
    if moment.dtype != grad.dtype:
        grad = grad.to(moment.dtype)
    parameter.mul_(1 - lr * decay)
    direction = moment.mul(first).add_(grad, alpha=1 - first).sign_()
    parameter.add_(direction.to(parameter.dtype), alpha=-lr)
    moment.mul_(second).add_(grad, alpha=1 - second)
