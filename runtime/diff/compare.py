"""Where the values of two models part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .trace import Operation


@dataclass(frozen=True)
class Difference:
    """Of two tensors. largest: absolute, of an element; relative: the norm of the difference to that of the second.
    Of integers and booleans the first is how many elements differ, the second their share. Infinite where shapes
    differ, or only one is finite.
    """

    largest: float
    relative: float

    def __str__(self) -> str:
        return f"by {self.largest:.3g} at most, {self.relative:.3g} of its norm"


NONE, UNLIKE = Difference(0.0, 0.0), Difference(math.inf, math.inf)


@dataclass(frozen=True)
class Found:
    """One operation, or the gradient of one parameter, in both models."""

    name: str
    difference: Difference
    code: str = ""
    spec: str = ""


@dataclass(frozen=True)
class Compared:
    """In order. only: what just one of the models has, and so was not compared."""

    found: tuple[Found, ...]
    only: tuple[str, ...]
    tolerance: float

    @property
    def differing(self) -> list[Found]:
        return [each for each in self.found if each.difference.relative > self.tolerance]

    @property
    def first(self) -> Found | None:
        return next(iter(self.differing), None)


def difference(one: Tensor, other: Tensor) -> Difference:
    """Computed in float64. What is not a number in both, at the same place, is no difference."""
    if one.shape != other.shape:
        return UNLIKE
    one, other = one.detach().cpu(), other.detach().cpu()
    if not (one.is_floating_point() and other.is_floating_point()):
        count = int((one != other).sum())
        return Difference(count, count / max(1, one.numel()))
    a, b = one.double(), other.double()
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    if not bool(apart.isfinite().all()):
        return UNLIKE
    largest = float(apart.max()) if apart.numel() else 0.0
    if not largest:
        return NONE
    norm = float(b[b.isfinite()].norm())
    return Difference(largest, float(apart.norm()) / norm if norm else math.inf)


def compare_operations(ours: Sequence[Operation], theirs: Sequence[Operation], tolerance: float) -> Compared:
    """Operations with the same module, name and number, in the order of the first model."""
    there = {operation.key: operation for operation in theirs}
    here = {operation.key for operation in ours}
    found = [
        Found(str(one), difference(one.value, there[one.key].value), _codes(one, there[one.key]), one.spec)
        for one in ours
        if one.key in there
    ]
    only = [str(one) for one in ours if one.key not in there] + [str(one) for one in theirs if one.key not in here]
    return Compared(tuple(found), tuple(only), tolerance)


def _codes(one: Operation, other: Operation) -> str:
    return one.code if one.code == other.code else f"{one.code}  (there: {other.code})"


def compare_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float) -> Compared:
    """Tensors of the same name, in the order of the first."""
    found = [Found(name, difference(value, theirs[name])) for name, value in ours.items() if name in theirs]
    only = [name for name in ours if name not in theirs] + [name for name in theirs if name not in ours]
    return Compared(tuple(found), tuple(only), tolerance)
