"""Means and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score. stderr: its standard error over questions; None where there are too few."""

    value: float
    stderr: float | None
    higher_is_better: bool = True


def mean(values: Sequence[float], higher_is_better: bool = True) -> Metric:
    """The mean, and its standard error from the sample's standard deviation, as lm-eval has both."""
    return ratio(values, [1.0] * len(values), higher_is_better)


def ratio(values: Sequence[float], weights: Sequence[float], higher_is_better: bool = False) -> Metric:
    """sum(values) / sum(weights), and its standard error as that of a ratio estimator (Cochran, Sampling Techniques,
    3rd edition, equation 6.13): each pair is one draw, such as the loss and the length of a text.

    With equal weights it is the standard error of the mean.
    """
    count, total = len(values), math.fsum(weights)
    value = math.fsum(values) / total
    if count < 2:
        return Metric(value, None, higher_is_better)
    squares = math.fsum((v - value * w) ** 2 for v, w in zip(values, weights, strict=True))
    return Metric(value, math.sqrt(squares / (count - 1) / count) / (total / count), higher_is_better)


def paired(before: Sequence[float], after: Sequence[float]) -> float | None:
    """The standard error of the mean difference between two scores of the same questions."""
    return mean([b - a for a, b in zip(before, after, strict=True)]).stderr
