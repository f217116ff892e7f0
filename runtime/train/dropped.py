"""How many choices experts had no room for."""

from __future__ import annotations

import torch
from torch import nn

from ..modules import Capacity


class Dropped:
    """The share of choices that the experts of a model dropped, counted where they are made and read once a step."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [module for module in model.modules() if isinstance(module, Capacity)]

    def __bool__(self) -> bool:
        """Whether anything can be dropped: some experts have a capacity."""
        return bool(self.modules)

    def take(self) -> float:
        """The share since it was last taken, over all layers; 0 where nothing was chosen. Waits for the device."""
        dropped = torch.stack([module.dropped.sum() for module in self.modules]).sum()
        choices = torch.stack([module.choices for module in self.modules]).sum()
        share = float(dropped / choices.clamp(min=1))
        for module in self.modules:
            module.dropped.zero_()
            module.choices.zero_()
        return share
