"""Learning rates: each function returns another, from a step (counted from 0) to its rate.

The first `warmup` steps rise linearly to the peak, which step `warmup - 1` reaches: step 0 already learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..problem import Problem
from . import check

Schedule = Callable[[int], float]


def cosine(peak: float, warmup: int, steps: int, floor: float = 0.1) -> Schedule:
    """Down half a cosine to `floor` times the peak, which the last step has (arXiv:1608.03983, equation 5, no
    restarts).
    """
    check.between(floor, 0, 1, "the floor of the schedule")

    def after(step: int) -> float:
        share = min(1.0, (step + 1 - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))

    return _warmed(peak, warmup, steps, after)


def steps(
    peak: float,
    warmup: int,
    steps: int,
    at: Sequence[float] = (0.8, 0.9),
    factor: Sequence[float] = (0.316, 0.1),
) -> Schedule:
    """`factor[i]` times the peak from the share `at[i]` of all steps on (DeepSeek LLM, arXiv:2401.02954, section
    2.3).
    """
    if len(at) != len(factor):
        raise Problem(f"the schedule has {len(at)} places to step at and {len(factor)} factors: they go in pairs")
    if list(at) != sorted(at) or any(not 0 <= share <= 1 for share in at):
        raise Problem(f"the schedule steps at {list(at)}: shares of all steps, growing, from 0 to 1")
    for each in factor:
        check.rate(each, "factor of the schedule")
    # 0.9 * 300 is 270.00000000000006 or the like: a hair must not move the boundary by a step.
    boundaries = [math.ceil(share * steps - 1e-9) for share in at]

    def after(step: int) -> float:
        return next((f for b, f in zip(reversed(boundaries), reversed(factor), strict=True) if step >= b), 1.0)

    return _warmed(peak, warmup, steps, after)


def constant(
    peak: float, warmup: int, steps: int, decay: float = 0.0, shape: str = "linear", floor: float = 0.0
) -> Schedule:
    """The peak, then in the last `decay` share of all steps down to `floor` times it, which the step after the last
    would have (WSD: arXiv:2404.06395; its shapes: arXiv:2405.18392, section 4.2).

    shape: of the fall, over the share of it that has passed: "linear", or "root", which is 1 less its square root.
    """
    check.between(decay, 0, 1, "the decaying share of the schedule")
    check.between(floor, 0, 1, "the floor of the schedule")
    if shape not in ("linear", "root"):
        raise Problem(f"the schedule falls in the shape {shape!r}", "it is `linear` or `root`")
    falling = round(decay * steps)

    def after(step: int) -> float:
        if step < steps - falling:
            return 1.0
        passed = min(1.0, (step - (steps - falling) + 1) / (falling + 1))
        return floor + (1 - floor) * (1 - (passed if shape == "linear" else math.sqrt(passed)))

    return _warmed(peak, warmup, steps, after)


def _warmed(peak: float, warmup: int, steps: int, after: Schedule) -> Schedule:
    check.rate(peak, "peak learning rate")
    if warmup < 0 or steps < 1:
        raise Problem(
            f"the schedule has {warmup} steps of warmup and {steps} in all: neither can be negative, nor all 0"
        )

    def rate(step: int) -> float:
        return peak * ((step + 1) / warmup if step < warmup else after(step))

    return rate
