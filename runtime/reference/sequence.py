"""Several sequences as one: joined, cut apart again, told apart, pooled; and the inputs that a batch comes without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .precision import wide


def or_empty(*inputs: tuple[Tensor | None, Sequence[int], torch.dtype]) -> tuple[Tensor, ...]:
    """The inputs of a model, each (tensor or None, sizes behind the second axis, dtype): None becomes [B, 0, sizes].

    Batch and device of what is empty are those of the first input that is there. What is there is brought to its dtype.
    Raises ValueError when all are None.
    """
    there = next((x for x, _, _ in inputs if x is not None), None)
    if there is None:
        raise ValueError("a batch has at least one of the inputs of its model")
    return tuple(
        there.new_zeros((there.shape[0], 0, *sizes), dtype=dtype) if x is None else x.to(dtype)
        for x, sizes, dtype in inputs
    )


def join(*parts: Tensor) -> Tensor:
    """Sequences [B, N1, ...], [B, N2, ...], ... one behind the other: [B, N1 + N2 + ..., ...]."""
    return torch.cat(parts, dim=1)


def parts(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """x [B, sum(lengths), ...] cut along the second axis into [B, length, ...] each; views, not copies."""
    return torch.split(x, list(lengths), dim=1)


def part_ids(lengths: Sequence[int], device: torch.device) -> Tensor:
    """0 for the first `lengths[0]` positions, 1 for the next `lengths[1]`, and so on: int64 [sum(lengths)]."""
    return torch.cat([torch.full((n,), i, dtype=torch.int64, device=device) for i, n in enumerate(lengths)])


def pool(x: Tensor) -> Tensor:
    """The mean over the positions of x [B, N, ...]: [B, ...]. All of them count; of none the mean is zero."""
    return (wide(x).sum(1) / max(x.shape[1], 1)).to(x.dtype)
