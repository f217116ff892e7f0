"""One row of a benchmark: what is done, what it must cost at least, and everyone who does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor

Run = Callable[[], object]
Unit = Literal["TFLOP/s", "GB/s"]
Ceiling = Literal["copy", "bf16", "fp8", "int8"]
OURS = "dskc"


@dataclass(frozen=True)
class Case:
    """`build` allocates random inputs and gives what to time by name: this project's `dskc` first, then its peers.

    kernel: "attention forward". shape: "causal B2 S4096 H32 E128". flops: that it must do. bytes: that it must move
    through the GPU's memory, each input read and each output written once. unit: which of both its rate is of.
    ceiling: the measured rate that bounds it: of copying, or of products in a dtype. A peer that raises is not there.
    """

    kernel: str
    shape: str
    flops: float
    bytes: float
    build: Callable[[], Mapping[str, Run]]
    unit: Unit = "TFLOP/s"
    ceiling: Ceiling = "bf16"

    @property
    def title(self) -> str:
        return f"{self.kernel} {self.shape}"


@dataclass(frozen=True)
class Source:
    """A module whose `cases(*given)` are cases. Unlike these it can be sent to another process."""

    module: str
    given: tuple[object, ...] = ()

    def cases(self) -> Iterator[Case]:
        yield from import_module(self.module).cases(*self.given)


def wanted(case: Case, only: Sequence[str]) -> bool:
    """Whether a case has one of these texts in its kernel and shape; all have where there are none."""
    return not only or any(text in case.title for text in only)


def later(make: Callable[[], Run]) -> Run:
    """What `make` gives, made when it is first run, so that what cannot be made is missed alone."""
    made: list[Run] = []

    def run() -> object:
        if not made:
            made.append(make())
        return made[0]()

    return run


def gradients(run: Run, into: Sequence[Tensor], *directions: Tensor) -> Run:
    """Backward alone, of the results of `run` that have gradients, which is run once before.

    directions: the gradients of these results; drawn at random where none are given.
    """
    results: list[Tensor] = []
    given = list(directions)

    def backward() -> object:
        if not results:
            made = run()
            results.extend(t for t in (made if isinstance(made, tuple) else (made,)) if t.requires_grad)
            given.extend(torch.randn_like(t) for t in results[len(given) :])
        return torch.autograd.grad(results, into, given, retain_graph=True, allow_unused=True)

    return backward
