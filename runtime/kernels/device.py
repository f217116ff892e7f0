"""Kernels of tensors that are not on torch's current GPU: Triton launches on the current one whatever it is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Within, kernels are launched on this device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def on_its_device(run: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """A function whose kernels are launched where its first tensor is."""

    @wraps(run)
    def call(first: Tensor, *others: P.args, **named: P.kwargs) -> R:
        with launching_on(first.device):
            return run(first, *others, **named)

    return call
