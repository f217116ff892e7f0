"""What an operation carries from one pass of decoding to the next."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class State(Protocol):
    """A tensor of constant size. What is written counts once the pass is over: until then `read` gives the old one."""

    def read(self) -> Tensor | None:
        """What the last pass left; None at the beginning of a text."""

    def write(self, value: Tensor) -> None:
        """What the next pass begins with."""
