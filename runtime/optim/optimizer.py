"""What the optimizers share: parameter groups, a rate for each step, states that are named as the parameters are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..problem import Problem
from . import check
from .clip import NotFinite, measure, not_finite, scale
from .fused import Fused

States = dict[str, dict[str, Tensor]]  # parameter name -> state name -> tensor


class Optimizer:
    """An optimizer over a torch one, or over kernels where they run when it is made; their states are the same.

    Weight decay is for matrices (two axes or more): norms and biases have none, unless a `Group` says otherwise. States
    exist from the beginning, so that memory is known before the first step and a checkpoint has somewhere to be read
    into.
    """

    inner: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    guard: Tensor | None = None  # a scalar on the device, such as the loss: the next step needs it to be finite, too
    scale: float = 1.0  # how many times too large gradients are, since the loss was: `clip` and `step` divide by it
    skipped: NotFinite | None = None  # why the last step changed nothing; None when it was taken
    _norm: Tensor | None = None  # of the gradients that the next step clips

    @torch.no_grad()
    def clip(self, most: float | None) -> Tensor:
        """The 2-norm of all gradients, which the next step scales so that it is at most `most` (None: does not).

        Where kernels step the gradients stay as they are: the step multiplies them as it reads them, in fp32. Where the
        norm or `guard` is not finite, what is returned is neither, and the next step changes nothing.
        """
        grads = self._gradients()
        check.most(most)
        if not grads:
            return torch.zeros(())
        if self._fused is not None:
            self._norm = self._fused.measure(list(grads.values()), most, self.guard, self.scale)
        else:
            self._norm = measure(grads, self.guard) / self.scale
            if self._norm.isfinite():  # waits for the device, as reporting the norm would
                scale(grads, self._norm, most, self.scale)
        return self._norm

    def step(self, rate: float) -> bool:
        """Update all parameters at this learning rate, and drop the gradients. Returns whether it did: when the norm
        that `clip` gave is not finite no parameter and no state changes, and `skipped` says why.

        Raises Problem when the rate is not finite or negative, and when a gradient is sparse.
        """
        check.rate(rate)
        grads = self._gradients()
        if self.scale != 1.0 and self._norm is None:
            self.clip(None)
        taken = self._take(rate, self._norm)
        self.skipped = None if taken else not_finite(grads)
        self._norm = self.guard = None
        for parameter in self.parameters.values():
            parameter.grad = None
        return taken

    def _take(self, rate: float, norm: Tensor | None) -> bool:
        """The step itself. Kernels are queued before the norm is looked at, which waits for the device as reporting it
        would.
        """
        if self._fused is None and norm is not None and not norm.isfinite():
            return False
        for group in self.inner.param_groups:
            group["lr"] = rate * group["share"]
        self.inner.step()
        if self._fused is None or norm is None:
            return True
        self._fused.factor = None
        if norm.isfinite():
            return True
        self._fused.take_back()
        return False

    @property
    def _fused(self) -> Fused | None:
        """What measures norms by kernels, where they run."""
        return self.inner if isinstance(self.inner, Fused) else None

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for name, grad in found.items():
            if grad.layout != torch.strided:
                raise Problem(f"the gradient of {name} is sparse", "optimizers here take dense gradients only")
        return found

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


def trainable(model: nn.Module | Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The parameters to train by name, a shared one once. model: or some of its parameters by name."""
    named = model.named_parameters() if isinstance(model, nn.Module) else model.items()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def masters(parameter: nn.Parameter, kept: bool) -> dict[str, Tensor]:
    """The state that a parameter has in float32 beside itself: none unless it is kept, or in float32 itself."""
    if not kept or parameter.dtype == torch.float32:
        return {}
    return {"master": parameter.detach().to(torch.float32, copy=True)}


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
