"""AdamW: Adam with decoupled weight decay (arXiv:1711.05101, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from . import check
from .fused import FusedAdamW, fits
from .groups import Group, parameter_groups
from .optimizer import Optimizer, masters, trainable
from .rounding import MEAN, SQUARE, Draw, assign, assign_parameter, check_rounding, draw_seed, number_of


class AdamW(Optimizer):
    """AdamW with bias correction, by kernels where they run and take such tensors.

    Elsewhere through torch's own (fused where it can be: CUDA, and float32 on a CPU). state_dtype: of the two moments;
    that of each parameter when None. Where it differs from the parameters' the update is computed in float32 by a loop
    over parameters, with torch's formula. rounding: of bf16 parameters and moments; "stochastic" rounds up as often as
    what is cut is large, drawn from torch's generator (one number a step), and is computed in float32 too. groups: what
    has another rate or decay. master: keep each parameter in float32 among its states as well; that is what is updated,
    and the parameter is what it rounds to.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay: float = 0.1,
        state_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        groups: Sequence[Group] = (),
        master: bool = False,
    ) -> None:
        check.rate(lr)
        check.coefficients(betas)
        check.between(eps, 0, 1, "eps")
        self.parameters = trainable(model)
        own = parameter_groups(self.parameters, decay, groups)
        parameters = list(self.parameters.values())
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        how = check_rounding(rounding)
        if fits(parameters, state_dtype):
            self.inner = FusedAdamW(own, defaults, self.parameters, how)
        elif (
            how == "nearest" and not master and all(state_dtype in (None, parameter.dtype) for parameter in parameters)
        ):
            fused = all(_fusable(parameter) for parameter in parameters)
            self.inner = torch.optim.AdamW(own, lr=lr, betas=betas, eps=eps, fused=fused)
        else:
            self.inner = _MixedAdamW(own, defaults)
            if how == "stochastic":
                self.inner.numbers = {parameter: number_of(name) for name, parameter in self.parameters.items()}
        for parameter in parameters:
            dtype = state_dtype or parameter.dtype
            # torch keeps the step of a fused update where the parameter is, and of any other on the CPU.
            at = parameter.device if self.inner.defaults.get("fused") else torch.device("cpu")
            self.inner.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=at),
                "exp_avg": torch.zeros_like(parameter, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
            } | masters(parameter, master)


def _fusable(parameter: Tensor) -> bool:
    return parameter.device.type == "cuda" or (parameter.device.type == "cpu" and parameter.dtype == torch.float32)


class _MixedAdamW(torch.optim.Optimizer):
    """AdamW for masters, and moments in another dtype than their parameters: read, updated in float32, rounded back.

    numbers: of parameters, for the draws of stochastic rounding; rounded to the nearest without them.
    """

    numbers: Mapping[nn.Parameter, int] | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "closures are not supported"
        seed = draw_seed() if self.numbers is not None else 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    betas, eps, lr, decay = (group[name] for name in ("betas", "eps", "lr", "weight_decay"))
                    state = self.state[parameter]
                    state["step"] += 1
                    step = int(state["step"])
                    draw = Draw(seed, step, self.numbers[parameter]) if self.numbers is not None else None
                    _update(parameter, parameter.grad.float(), state, step, lr, betas, eps, decay, draw)


def _update(
    parameter: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    draw: Draw | None,
) -> None:
    first, second = betas
    mean, square = state["exp_avg"].float(), state["exp_avg_sq"].float()
    mean = mean.lerp(grad, 1 - first)
    square = square.mul(second).addcmul(grad, grad, value=1 - second)
    root = square.sqrt().div_((1 - second**step) ** 0.5).add_(eps)
    value = state.get("master", parameter).float().mul(1 - lr * decay)
    value = value.addcdiv(mean, root, value=-lr / (1 - first**step))
    assign_parameter(parameter, value, state, draw)
    assign(state["exp_avg"], mean, MEAN, draw)
    assign(state["exp_avg_sq"], square, SQUARE, draw)
