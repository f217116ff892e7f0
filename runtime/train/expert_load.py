"""How evenly experts are given work."""

from __future__ import annotations

import inspect
from functools import partial

import torch
from torch import Tensor, nn

from ..modules import GroupedLinear
from ..reference.routing import expert_counts

CHOSEN = "chosen"  # how the argument of generated experts begins that has the choices, `chosen_BSK`


class ExpertLoad:
    """The busiest expert's share of choices as a multiple of an even one, of the layer where that is largest: 1 is even
    (MaxVio of arXiv:2408.15664, plus 1). Counted while training, where choices reach the experts, and read once a step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._counts: dict[int, Tensor] = {}
        for number, module in enumerate(model.modules()):
            experts = next((child.experts for child in module.children() if isinstance(child, GroupedLinear)), None)
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            chosen = next((name for name in names if name.startswith(CHOSEN)), None)
            if experts is not None and chosen is not None:
                count = partial(self._count, number, experts, names.index(chosen), chosen)
                module.register_forward_pre_hook(count, with_kwargs=True)

    def take(self) -> float | None:
        """Since it was last taken; None without experts. Waits for the device."""
        if not self._counts:
            return None
        loads = [count.max() * count.shape[0] / count.sum().clamp(min=1) for count in self._counts.values()]
        self._counts.clear()
        return float(torch.stack(loads).max())

    def _count(
        self, number: int, experts: int, at: int, name: str, module: nn.Module, inputs: tuple[Tensor, ...],
        named: dict[str, Tensor],
    ) -> None:  # fmt: skip
        if module.training:  # a layer that backward computes again counts all of its own twice
            counted = expert_counts(named[name] if name in named else inputs[at], experts)
            self._counts[number] = self._counts[number] + counted if number in self._counts else counted
