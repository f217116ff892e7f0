"""Whether generated kernels run, or the plain PyTorch that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..problem import Problem

CHOICES = ("auto", "triton", "reference")

_choice = "auto"


def choose_kernels(choice: str) -> None:
    """From now on: "triton" for kernels, "reference" for plain PyTorch, "auto" for kernels where they can run.

    Raises Problem for kernels on a machine that can neither run nor interpret them.
    """
    global _choice
    assert choice in CHOICES, choice
    if choice == "triton" and not can_run():
        raise Problem(
            "Triton kernels need a GPU, and there is none here",
            "use --kernels reference, or set TRITON_INTERPRET=1 to interpret them on the CPU, which is slow",
        )
    _choice = choice


@contextmanager
def use_kernels(choice: str) -> Iterator[None]:
    """`choose_kernels` for as long as the context lasts."""
    before = _choice
    choose_kernels(choice)
    try:
        yield
    finally:
        choose_kernels(before)


def kernels_in_use(device: torch.device) -> bool:
    """Whether kernels run for tensors of this device: "auto" has them on GPUs, and where Triton interprets."""
    if _choice == "reference":
        return False
    if device.type == "cuda":
        return True
    return device.type in ("cpu", "meta") and interpreted()


def can_run() -> bool:
    """Whether kernels can run on this machine."""
    return torch.cuda.is_available() or interpreted()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch.compile cannot follow Triton's knobs
def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU (TRITON_INTERPRET=1)."""
    try:
        import triton
    except ImportError:
        return False
    return bool(triton.knobs.runtime.interpret)
