"""How parameters start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import check

Initialiser = Callable[[nn.Module, int], None]  # (model, seed)


def normal(std: float) -> Initialiser:
    """Matrices from the normal distribution with this standard deviation, norms as the identity, biases 0, buffers 0.

    A learned tensor that stands alone begins as its `start` says.

    Each parameter has its own random numbers, made from the seed and its name on the device where it lies: adding a
    layer changes no other one. Every value is set, so a model may come from `to_empty`. A module that has buffers
    with another beginning than 0 says so in a method `reset_buffers()`.
    """
    check.rate(std, "standard deviation of the initial weights")

    @torch.no_grad()
    def initialise(model: nn.Module, seed: int) -> None:
        owners = dict(model.named_modules())
        for name, parameter in model.named_parameters():
            path, _, own = name.rpartition(".")
            _start(parameter, own, owners[path], std, _generator(seed, name, parameter.device))
        for module in model.modules():
            reset = getattr(module, "reset_buffers", None)
            if reset is not None:
                reset()
                continue
            for buffer in module.buffers(recurse=False):
                buffer.zero_()

    return initialise


def _start(parameter: Tensor, name: str, owner: nn.Module, std: float, generator: torch.Generator) -> None:
    start = getattr(owner, "start", None)
    if name == "bias" or start == "zeros":
        parameter.zero_()
    elif start == "normal" or (start is None and parameter.ndim >= 2):
        parameter.normal_(0.0, std, generator=generator)
    else:
        parameter.fill_(1.0 - float(getattr(owner, "offset", 0.0)))  # a norm that scales by offset + weight


def _generator(seed: int, name: str, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=False) >> 1)
