"""Which GPUs kernels run on."""

from __future__ import annotations

from functools import cache

import torch

from .row_kernel import KernelError

OLDEST = (8, 0)  # compute capability: asynchronous copies and products of bf16


def require_gpu(operation: str, device: torch.device) -> None:
    """Raises KernelError where a device is a GPU that is too old."""
    if device.type != "cuda":
        return
    capability, name = _properties(device.index or 0)
    if capability < OLDEST:
        raise KernelError(
            f"{operation}: {name} has compute capability {capability[0]}.{capability[1]}, and kernels take "
            f"{OLDEST[0]}.{OLDEST[1]} and later"
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile cannot follow the driver
def _properties(index: int) -> tuple[tuple[int, int], str]:
    return _asked(index)


@cache
def _asked(index: int) -> tuple[tuple[int, int], str]:
    return torch.cuda.get_device_capability(index), torch.cuda.get_device_name(index)
