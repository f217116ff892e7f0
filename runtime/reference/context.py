"""What the gradients of custom operations get from torch: its own annotations leave these out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """The `ctx` of an autograd function or custom operator."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None: ...
