"""What the optimizers share: parameter groups, a rate for each step, states that are named as the parameters are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..problem import Problem
from . import check

States = dict[str, dict[str, Tensor]]  # parameter name -> state name -> tensor


class Optimizer:
    """An optimizer over a torch one: `step(rate)` sets the rate, steps, and drops the gradients.

    Weight decay is for matrices (two axes or more): norms and biases have none. States exist from the beginning, so
    that memory is known before the first step and a checkpoint has somewhere to be read into.
    """

    inner: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]

    def step(self, rate: float) -> None:
        """Update all parameters at this learning rate. Raises Problem when it is not finite or negative."""
        check.rate(rate)
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)

    def state_dict(self) -> States:
        """The states themselves (not copies) by the names of their parameters."""
        return {name: dict(self.inner.state[parameter]) for name, parameter in self.parameters.items()}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy these states into those here, which must have the same names and shapes. Raises Problem otherwise."""
        own = self.state_dict()
        if own.keys() != states.keys():
            raise Problem("these optimizer states are of other parameters: " + _differ(own.keys(), states.keys()))
        for name, tensors in own.items():
            if tensors.keys() != states[name].keys():
                raise Problem(
                    f"these states of {name} are of another optimizer: " + _differ(tensors.keys(), states[name].keys())
                )
            for key, tensor in tensors.items():
                if tensor.shape != states[name][key].shape:
                    raise Problem(f"{key} of {name} is {list(states[name][key].shape)}, not {list(tensor.shape)}")
                tensor.copy_(states[name][key])


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters to train by name, a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def groups(parameters: Mapping[str, nn.Parameter], decay: float) -> list[dict[str, list[nn.Parameter] | float]]:
    """Parameter groups for torch: matrices with weight decay, norms and biases without."""
    check.between(decay, 0, 1e4, "weight decay")
    matrices = [parameter for name, parameter in parameters.items() if _decays(name, parameter)]
    others = [parameter for name, parameter in parameters.items() if not _decays(name, parameter)]
    found = ((matrices, decay), (others, 0.0))
    return [{"params": params, "weight_decay": weight_decay} for params, weight_decay in found if params]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and name.rpartition(".")[2] != "bias"  # biases of stacked experts have two axes


def _differ(own: object, given: object) -> str:
    missing, extra = sorted(set(own) - set(given)), sorted(set(given) - set(own))  # type: ignore[call-overload]
    parts = []
    if missing:
        parts.append(
            "missing " + ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    if extra:
        parts.append("unknown " + ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else ""))
    return "; ".join(parts)
