"""How parameters start."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..modules import BlockLinear, GroupedLinear
from ..problem import Problem
from . import check
from .groups import find, is_under


@dataclass(frozen=True)
class Normal:
    """Matrices from the normal distribution with this standard deviation, norms as the identity, biases 0.

    width: the deviation is that of matrices with so many inputs; a linear map of others has sqrt(width / inputs) times
    it, so that what it gives is as large at any width (arXiv:2203.03466, table 8). None: of all the same.
    """

    std: float
    width: int | None = None

    def __post_init__(self) -> None:
        check.rate(self.std, "standard deviation of the initial weights")
        if self.width is not None and self.width < 1:
            raise Problem(f"the width that initial weights are told for is {self.width}: it is at least 1")

    def set(self, parameter: Tensor, name: str, owner: nn.Module, generator: torch.Generator) -> None:
        start = getattr(owner, "start", None)
        if name == "bias" or start == "zeros":
            parameter.zero_()
        elif start == "normal" or (start is None and parameter.ndim >= 2):
            parameter.normal_(0.0, self.std * self._scale(parameter, owner), generator=generator)
        else:
            parameter.fill_(1.0 - float(getattr(owner, "offset", 0.0)))  # a norm that scales by offset + weight

    def _scale(self, parameter: Tensor, owner: nn.Module) -> float:
        if self.width is None or not isinstance(owner, nn.Linear | BlockLinear | GroupedLinear):
            return 1.0
        return math.sqrt(self.width / parameter.shape[-1])


@dataclass(frozen=True)
class Zeros:
    """All of it 0, norms too."""

    def set(self, parameter: Tensor, name: str, owner: nn.Module, generator: torch.Generator) -> None:
        parameter.zero_()


Start = Normal | Zeros


def normal(std: float, width: int | None = None, groups: Mapping[str, Start] | None = None) -> Initialiser:
    """`Normal(std, width)` for all parameters, but for what is under a path of `groups`; buffers 0.

    A learned tensor that stands alone begins as its `start` says. groups: by a path of the model as `optim.Group` has
    it; the longest counts.

    Each parameter has its own random numbers, made from the seed and its name on the device where it lies: adding a
    layer changes no other one. Every value is set, so a model may come from `to_empty`. A module that has buffers
    with another beginning than 0 says so in a method `reset_buffers()`. Raises Problem for a path that leads nowhere.
    """
    return Initialiser(Normal(std, width), dict(groups or {}))


@dataclass(frozen=True)
class Initialiser:
    """Called with a model and a seed, sets every parameter and buffer. rest: for what is under no path of `groups`."""

    rest: Normal
    groups: Mapping[str, Start]

    @torch.no_grad()
    def __call__(self, model: nn.Module, seed: int) -> None:
        owners, paths = dict(model.named_modules()), list(self.groups)
        named = list(model.named_parameters())
        for path in paths:
            if not any(is_under(name, path) for name, _ in named):
                raise Problem(f"the model has no parameter under {path}", "a group names a part of the model")
        for name, parameter in named:
            path, _, own = name.rpartition(".")
            place = find(name, paths)
            start: Start = self.rest if place is None else self.groups[paths[place]]
            start.set(parameter, own, owners[path], seeded(seed, name, parameter.device))
        for module in model.modules():
            reset = getattr(module, "reset_buffers", None)
            if reset is not None:
                reset()
                continue
            for buffer in module.buffers(recurse=False):
                buffer.zero_()


def seeded(seed: int, name: str, device: torch.device) -> torch.Generator:
    """Random numbers of a parameter's own, by a run's seed and its name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=False) >> 1)
