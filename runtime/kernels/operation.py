"""A function over tensors as an operation of torch, without torch's dispatcher where nobody looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from .flops import Formula, register_flops
from .row_kernel import _plain

P = ParamSpec("P")
R = TypeVar("R", bound=Tensor | tuple[Tensor, ...])


def operation(
    name: str, fake: Callable[P, R], flops: Formula | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Registers the function below as `dskc::name`, for fake tensors and torch.compile; `fake` has its results' shapes.

    flops: what it costs, where it has matrix products; see `flops.py`.

    Called with plain tensors it is called directly: torch's dispatcher takes longer than many kernels do.
    """

    def register(run: Callable[P, R]) -> Callable[P, R]:
        registered = torch.library.custom_op(f"dskc::{name}", run, mutates_args=())
        registered.register_fake(fake)
        if flops is not None:
            register_flops(f"dskc::{name}", flops)

        def call(*given: P.args, **named: P.kwargs) -> R:
            tensors = [t for t in (*given, *named.values()) if isinstance(t, Tensor)]
            made: R = run(*given, **named) if _plain(tensors) else registered(*given, **named)
            return made

        return call

    return register
