"""Choosing how many sequences go through the model at once, and how many layers are recomputed, so that it fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..problem import Problem
from .ledger import Ledger, Row, rows, table, total
from .recipe import Plan, Precision, Recipe

# More tokens than this in one forward pass gain no speed; fewer than LEAST cost more than recomputing does.
MOST = {"cpu": 4_096, "cuda": 65_536, "mps": 16_384}
LEAST = {"cpu": 1_024, "cuda": 4_096, "mps": 1_024}


@dataclass(frozen=True)
class Fit:
    """microbatch: sequences in a forward pass. recompute: layers, from the first. rows: the ledger of that."""

    microbatch: int
    recompute: int
    rows: tuple[Row, ...]


def choose(
    ledger: Ledger,
    recipe: Recipe,
    precision: Precision,
    plan: Plan,
    available: int,
    device_type: str,
    unit: int | None = None,
) -> Fit | None:
    """The fastest choice that needs no more than `available` bytes, or None when none does. What the plan sets stays.
    unit: the rows that a microbatch must divide, in a run of several sources that goes on.

    Large microbatches first, and nothing recomputed; once they are so small that a device is not kept busy,
    recomputing as few layers as needed comes before making them smaller still.
    """
    microbatches = [n for n in candidates(recipe, plan, device_type) if unit is None or unit % n == 0]
    least = LEAST[device_type] / recipe.length
    layers = range(ledger.layers + 1)
    if plan.recompute != "auto":
        layers = range(int(plan.recompute), int(plan.recompute) + 1)
    order = [(microbatch, layers[0]) for microbatch in microbatches if microbatch >= least]
    order += [(microbatch, n) for microbatch in reversed(microbatches) if microbatch >= least for n in layers]
    order += [(microbatch, n) for microbatch in microbatches if microbatch < least for n in layers]
    for microbatch, recompute in order:
        found = _fit(ledger, recipe, precision, microbatch, recompute)
        if total(found.rows) <= available:
            return found
    return None


def smallest(ledger: Ledger, recipe: Recipe, precision: Precision, plan: Plan, device_type: str) -> Fit:
    """The choice that needs the least memory: what a refusal shows."""
    recompute = ledger.layers if plan.recompute == "auto" else int(plan.recompute)
    # Not always one sequence: if that is more than one forward pass, gradients are there all the time.
    every = [_fit(ledger, recipe, precision, each, recompute) for each in candidates(recipe, plan, device_type)]
    return min(every, key=lambda fit: total(fit.rows))


def candidates(recipe: Recipe, plan: Plan, device_type: str) -> list[int]:
    """The microbatches to try, large to small: divisors of the batch, so that all passes of a step are equal."""
    if plan.microbatch is not None:
        if plan.microbatch < 1 or recipe.divisor % plan.microbatch:
            fitting = ", ".join(str(n) for n in _divisors(recipe.divisor))
            raise Problem(
                f"a microbatch of {plan.microbatch} does not divide the batch of {recipe.sequences} sequences",
                f"it can be {fitting}",
            )
        return [plan.microbatch]
    most = max(1, MOST[device_type] // recipe.length)
    return [n for n in reversed(_divisors(recipe.divisor)) if n <= most]


def refusal(fit: Fit, available: int, where: str, others: list[str]) -> Problem:
    """The Problem of a run that cannot fit: its ledger, and which other plans would."""
    ways = [f"--plan {name} fits here"] if (name := next(iter(others), None)) else []
    ways.append("a plan with bf16 parameters and optimizer, fewer or shorter sequences, or a device with more memory")
    return Problem(
        f"this run does not fit in memory, even with a microbatch of {fit.microbatch}:\n"
        + table(fit.rows, available, where),
        "; or ".join(ways),
    )


def _fit(ledger: Ledger, recipe: Recipe, precision: Precision, microbatch: int, recompute: int) -> Fit:
    accumulated = microbatch < recipe.sequences
    return Fit(microbatch, recompute, tuple(rows(ledger, precision, microbatch, recompute, accumulated)))


def _divisors(number: int) -> list[int]:
    low = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*low, *(number // n for n in low)})
