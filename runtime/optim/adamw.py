"""AdamW: Adam with decoupled weight decay (arXiv:1711.05101, algorithm 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import check
from .optimizer import Optimizer, groups, trainable


class AdamW(Optimizer):
    """AdamW with bias correction, through torch's own (fused where it can be: CUDA, and float32 on a CPU).

    state_dtype: of the two moments; that of each parameter when None. Where it differs from the parameters' the
    update is computed in float32 by a loop over parameters, with torch's formula.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        decay: float = 0.1,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        check.rate(lr)
        check.coefficients(betas)
        check.between(eps, 0, 1, "eps")
        self.parameters = trainable(model)
        own = groups(self.parameters, decay)
        parameters = list(self.parameters.values())
        if all(state_dtype in (None, parameter.dtype) for parameter in parameters):
            fused = all(_fusable(parameter) for parameter in parameters)
            self.inner = torch.optim.AdamW(own, lr=lr, betas=betas, eps=eps, fused=fused)
        else:
            self.inner = _MixedAdamW(own, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        for parameter in parameters:
            dtype = state_dtype or parameter.dtype
            # torch keeps the step of a fused update where the parameter is, and of any other on the CPU.
            at = parameter.device if self.inner.defaults.get("fused") else torch.device("cpu")
            self.inner.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=at),
                "exp_avg": torch.zeros_like(parameter, dtype=dtype),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
            }


def _fusable(parameter: Tensor) -> bool:
    return parameter.device.type == "cuda" or (parameter.device.type == "cpu" and parameter.dtype == torch.float32)


class _MixedAdamW(torch.optim.Optimizer):
    """AdamW for moments in another dtype than their parameters: read, updated in float32, and rounded back."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    betas, eps, lr, decay = (group[name] for name in ("betas", "eps", "lr", "weight_decay"))
                    _update(parameter, parameter.grad.float(), self.state[parameter], lr, betas, eps, decay)


def _update(
    parameter: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    first, second = betas
    mean, square = state["exp_avg"].float(), state["exp_avg_sq"].float()
    mean = mean.lerp(grad, 1 - first)
    square = square.mul(second).addcmul(grad, grad, value=1 - second)
    state["step"] += 1
    step = state["step"].item()
    root = square.sqrt().div_((1 - second**step) ** 0.5).add_(eps)
    value = parameter.float().mul(1 - lr * decay)
    value = value.addcdiv(mean, root, value=-lr / (1 - first**step))
    parameter.copy_(value)
    state["exp_avg"].copy_(mean)
    state["exp_avg_sq"].copy_(square)
