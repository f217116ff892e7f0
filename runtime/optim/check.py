"""Numbers that a user chose, checked where they arrive."""

from __future__ import annotations

import math

from ..problem import Problem


def rate(value: float, name: str = "learning rate") -> float:
    """A learning rate: finite and not negative, or a Problem."""
    if not math.isfinite(value) or value < 0:
        raise Problem(f"the {name} is {value}: it must be a number, zero or more")
    return value


def between(value: float, low: float, high: float, name: str) -> float:
    """`low <= value <= high`, or a Problem."""
    if not low <= value <= high:
        raise Problem(f"{name} is {value}: it must lie between {low:g} and {high:g}")
    return value


def most(value: float | None) -> None:
    """What a norm is clipped to: more than 0, or None; else a Problem."""
    if value is not None and not value > 0:
        raise Problem(f"gradients are clipped to a norm of {value}: it must be more than 0")


def coefficients(betas: tuple[float, float]) -> tuple[float, float]:
    """The two decay rates of an optimizer's moments, each in [0, 1), or a Problem."""
    first, second = betas
    for value in (first, second):
        if not 0 <= value < 1:
            raise Problem(f"betas are ({first}, {second}): each must be at least 0 and less than 1")
    return first, second
