"""Stochastic rounding to bf16 where no kernel does it: the draws are those of `kernels/optimizer/steps.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar, cast, get_args

import torch
from torch import Tensor

from ..kernels.optimizer.steps import Rounding, mixed_seed
from ..kernels.optimizer.tensor_table import PIECE
from ..problem import Problem

CHUNK = 128 * PIECE  # elements that bits are drawn for at a time, in int64
WORD = 0xFFFFFFFF
PARAMETER, MEAN, SQUARE = 0, 1, 2
Whole = TypeVar("Whole", int, Tensor)


def check_rounding(rounding: str) -> Rounding:
    """One of the two, or a Problem."""
    if rounding not in get_args(Rounding):
        raise Problem(f"rounding is {rounding!r}", "it is `nearest` or `stochastic`")
    return cast(Rounding, rounding)


def number_of(name: str) -> int:
    """31 bits of a parameter's name: its draws stay as they are when other parameters come or go."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") >> 1


def draw_seed() -> int:
    """Of one step, from torch's generator: a trainer seeds that for each step, so a resumed run draws the same."""
    return int(torch.randint(1 << 62, (), device="cpu"))


@dataclass(frozen=True)
class Draw:
    """What is drawn for one parameter in one step. seed: of the step, as `draw_seed` has it. number: of the parameter.

    step: as the kernels' `step`.
    """

    seed: int
    step: int
    number: int

    def rounded(self, value: Tensor, kind: int) -> Tensor:
        """fp32 as fp32 that bf16 holds: up as often as what is cut is large.

        kind: PARAMETER, MEAN or SQUARE, which draw apart.
        """
        parts = value.contiguous().view(-1).split(CHUNK)
        return torch.cat([self._part(part, i * CHUNK, kind) for i, part in enumerate(parts)]).view(value.shape)

    def _part(self, value: Tensor, start: int, kind: int) -> Tensor:
        at = torch.arange(start, start + len(value), device=value.device)
        key = _mixed(_mixed(self.number ^ mixed_seed(self.seed, self.step)) + at // PIECE & WORD)
        bits = _mixed(_mixed(at % PIECE ^ key) + key & WORD)
        if kind == SQUARE:
            bits = _mixed(bits)
        bits = bits & 0xFFFF if kind == MEAN else bits >> 16
        cut = (value.view(torch.int32) + bits.int() & -65536).view(torch.float32)
        return torch.where(value.isfinite(), cut, value)


def _mixed(x: Whole) -> Whole:
    """The kernels' permutation of 32 bits, in integers of 64."""
    x = x ^ x >> 16
    x = x * 0x7FEB352D & WORD
    x = x ^ x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def assign(target: Tensor, value: Tensor, kind: int, draw: Draw | None) -> None:
    """`target = value`, which is fp32: stochastically to bf16 with a draw, else to the nearest."""
    stochastic = draw is not None and target.dtype == torch.bfloat16 and target.numel() > 0
    target.copy_(draw.rounded(value, kind) if draw is not None and stochastic else value)


def assign_parameter(parameter: Tensor, value: Tensor, state: Mapping[str, Tensor], draw: Draw | None) -> None:
    """`parameter = value`, which is fp32. A parameter with a `master` is what that rounds to, to the nearest."""
    if "master" in state:
        state["master"].copy_(value)
        draw = None
    assign(parameter, value, PARAMETER, draw)
