"""The selection bias of routers, moved against the load of their experts (arXiv:2412.19437, section 2.1.2)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ..modules import BalanceBias
from . import check


class Balance:
    """After each optimizer step, `bias_i += speed * sign(mean(load) - load_i)` in every `BalanceBias` of a model.

    The load is that of the global batch: of all forward passes since the last step, and of all ranks where
    torch.distributed is initialised. Nothing here waits for the device.
    """

    def __init__(self, model: nn.Module, speed: float) -> None:
        self.speed = check.rate(speed, "speed of the balance")
        self.routers = [module for module in model.modules() if isinstance(module, BalanceBias)]
        self._restart()

    @torch.no_grad()
    def step(self, taken: bool = True) -> None:
        """Move all biases, and count anew. taken: whether the optimizer's step was; if not, no bias moves either."""
        if not self.routers or not taken:
            self._restart()
            return
        loads = [router.load for router in self.routers]
        if dist.is_available() and dist.is_initialized():
            every = torch.cat(loads)
            dist.all_reduce(every)
            loads = list(every.split([load.shape[0] for load in loads]))
        for router, load in zip(self.routers, loads, strict=True):
            under = load.sum() - load * load.shape[0]  # X times the mean less the load: the sign is exact
            router.bias += self.speed * under.sign()
        self._restart()

    def _restart(self) -> None:
        for router in self.routers:
            router.load.zero_()
