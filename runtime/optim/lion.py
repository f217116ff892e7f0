"""Lion: the sign of an interpolated momentum (arXiv:2302.06675, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from . import check
from .fused import FusedLion, fits
from .groups import Group, parameter_groups
from .optimizer import Optimizer, masters, trainable
from .rounding import MEAN, Draw, assign, assign_parameter, check_rounding, draw_seed, number_of


class Lion(Optimizer):
    """Lion keeps one moment; its rate is usually 3 to 10 times smaller than AdamW's, its decay as much larger.

    By kernels where they run and take such tensors. state_dtype: of the moment; that of each parameter when None.
    rounding, groups, master: as `AdamW` has them.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        decay: float = 0.1,
        state_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        groups: Sequence[Group] = (),
        master: bool = False,
    ) -> None:
        check.rate(lr)
        check.coefficients(betas)
        self.parameters = trainable(model)
        own = parameter_groups(self.parameters, decay, groups)
        defaults = {"lr": lr, "betas": betas, "weight_decay": 0.0}
        how = check_rounding(rounding)
        if fits(list(self.parameters.values()), state_dtype):
            self.inner = FusedLion(own, defaults, self.parameters, how)
        else:
            self.inner = _Lion(own, defaults)
            if how == "stochastic":
                self.inner.numbers = {parameter: number_of(name) for name, parameter in self.parameters.items()}
        for parameter in self.parameters.values():
            moment = torch.zeros_like(parameter, dtype=state_dtype or parameter.dtype)
            self.inner.state[parameter] = {"exp_avg": moment} | masters(parameter, master)


class _Lion(torch.optim.Optimizer):
    """numbers: of parameters, for the draws of stochastic rounding; rounded to the nearest without them."""

    numbers: Mapping[nn.Parameter, int] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "closures are not supported"
        seed = draw_seed() if self.numbers is not None else 0
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, lr, decay = self.state[parameter], group["lr"], group["weight_decay"]
                moment = state["exp_avg"]
                if self.numbers is None and "master" not in state:
                    _update(parameter, parameter.grad, moment, lr, decay, first, second)
                    continue
                # Updated in float32, and rounded once.
                value, mean = state.get("master", parameter).float(), moment.float()
                _update(value, parameter.grad.float(), mean, lr, decay, first, second)
                draw = Draw(seed, 1, self.numbers[parameter]) if self.numbers is not None else None
                assign_parameter(parameter, value, state, draw)
                assign(moment, mean, MEAN, draw)


def _update(
    parameter: Tensor, grad: Tensor, moment: Tensor, lr: float, decay: float, first: float, second: float
) -> None:
    if moment.dtype != grad.dtype:
        grad = grad.to(moment.dtype)
    parameter.mul_(1 - lr * decay)
    direction = moment.mul(first).add_(grad, alpha=1 - first).sign_()
    parameter.add_(direction.to(parameter.dtype), alpha=-lr)
    moment.mul_(second).add_(grad, alpha=1 - second)
