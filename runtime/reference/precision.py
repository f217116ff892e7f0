"""In which floating-point type a reduction runs."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is when it is float64: what sums, exponentials and rotations are computed in."""
    return x if x.dtype == torch.float64 else x.float()


def over(x: Tensor, number: float) -> Tensor:
    """`x / number` to the nearest. On a GPU torch multiplies with the reciprocal of a number that lies on the CPU."""
    return x / x.new_full((), number)
