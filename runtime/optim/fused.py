"""Steps of kernels over all parameters at once, in the place of torch's optimizers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from ..kernels import kernels_in_use, use_kernels
from ..kernels.optimizer import steps
from .clip import guarded
from .rounding import draw_seed, number_of


class Told(TypedDict):
    """What every kernel of a step is told."""

    step: int
    lr: float
    betas: tuple[float, float]
    decay: list[float]
    factor: Tensor | None
    rounding: steps.Rounding
    seed: int
    numbers: list[int]


@dataclass(frozen=True)
class Settings:
    """What parameters must have in common to be updated by one call. step: counted from 1."""

    lr: float
    betas: tuple[float, float]
    eps: float
    step: int
    master: bool


class Fused(torch.optim.Optimizer):
    """A torch optimizer whose step is one launch for each set of dtypes. Nothing in it waits for the device.

    factor: what gradients are multiplied by in the step, a scalar on the device; where it is not a number the step
    changes nothing. None is 1.
    """

    def __init__(
        self,
        groups: list[dict[str, list[nn.Parameter] | float]],
        defaults: dict[str, object],
        names: Mapping[str, nn.Parameter],
        rounding: steps.Rounding,
    ) -> None:
        super().__init__(groups, defaults)
        self.factor: Tensor | None = None
        self.rounding = rounding
        self._numbers = {parameter: number_of(name) for name, parameter in names.items()}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "closures are not supported"
        seed = draw_seed() if self.rounding == "stochastic" else 0
        with use_kernels("triton"):  # that they run was settled when states were made
            self._launch_all(seed)

    def measure(
        self, grads: Sequence[Tensor], most: float | None, guard: Tensor | None = None, times: float = 1.0
    ) -> Tensor:
        """The norm of gradients that are `times` too large, not a number when `guard` is not finite; `factor` becomes
        what makes it at most `most`, None for no bound.
        """
        with use_kernels("triton"):
            norm = guarded(steps.gradient_norm(grads), guard) / times
        self.factor = steps.clip_factor(norm, math.inf if most is None else most) / times
        return norm

    def _launch_all(self, seed: int) -> None:
        alike: dict[Settings, list[tuple[nn.Parameter, Tensor, float]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    found = Settings(
                        float(group["lr"]),
                        group["betas"],
                        group.get("eps", 0.0),
                        self.count(parameter) + 1,
                        "master" in self.state[parameter],
                    )
                    alike.setdefault(found, []).append((parameter, parameter.grad, group["weight_decay"]))
        for settings, members in alike.items():
            parameters = [parameter for parameter, _, _ in members]
            told = Told(
                step=settings.step,
                lr=settings.lr,
                betas=settings.betas,
                decay=[decay for _, _, decay in members],
                factor=self.factor,
                rounding=self.rounding,
                seed=seed,
                numbers=[self._numbers[parameter] for parameter in parameters],
            )
            self.launch(parameters, [grad for _, grad, _ in members], settings, told)

    def take_back(self) -> None:
        """Counts the last step as none, whose factor was found to be not a number."""

    def count(self, parameter: nn.Parameter) -> int:
        """Steps that a parameter has taken."""
        raise NotImplementedError

    def launch(
        self, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor], settings: Settings, told: Told
    ) -> None:
        """The step of some parameters."""
        raise NotImplementedError

    def states(self, name: str, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """The state of this name of each parameter."""
        return [self.state[parameter][name] for parameter in parameters]

    def masters(self, parameters: Sequence[nn.Parameter]) -> list[Tensor] | None:
        """Those of parameters that are updated by one call, which all have one or none."""
        return self.states("master", parameters) if "master" in self.state[parameters[0]] else None


class FusedAdamW(Fused):
    """States are those of `torch.optim.AdamW`, with steps counted on the CPU."""

    def take_back(self) -> None:
        counts = [self.state[p]["step"] for group in self.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_sub_(counts, 1)

    def count(self, parameter: nn.Parameter) -> int:
        return int(self.state[parameter]["step"])

    def launch(
        self, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor], settings: Settings, told: Told
    ) -> None:
        means, squares = self.states("exp_avg", parameters), self.states("exp_avg_sq", parameters)
        steps.adamw_step(parameters, grads, means, squares, eps=settings.eps, masters=self.masters(parameters), **told)
        torch._foreach_add_(self.states("step", parameters), 1)


class FusedLion(Fused):
    """Lion counts no steps: all of its draws differ by their seeds alone."""

    def count(self, parameter: nn.Parameter) -> int:
        return 0

    def launch(
        self, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor], settings: Settings, told: Told
    ) -> None:
        means = self.states("exp_avg", parameters)
        steps.lion_step(parameters, grads, means, masters=self.masters(parameters), **told)


def fits(parameters: Sequence[nn.Parameter], state_dtype: torch.dtype | None) -> bool:
    """Whether kernels run and can step these: plain and contiguous, on one device, none in float64."""
    if not parameters or parameters[0].device.type == "meta" or not kernels_in_use(parameters[0].device):
        return False
    return state_dtype in (None, *steps.DTYPES) and all(
        type(parameter.data) is Tensor
        and parameter.is_contiguous()
        and parameter.device == parameters[0].device
        and parameter.dtype in steps.DTYPES
        for parameter in parameters
    )
