"""The next token from logits: greedy, or drawn after temperature, top-k and top-p. Pure functions on logits [B, V]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problem import Problem
from ..reference.precision import wide


def greedy(logits_BV: Tensor) -> Tensor:
    """The likeliest token of each sequence, of equals the one with the lowest id: int64 [B]."""
    best_B1 = logits_BV.amax(-1, keepdim=True)
    return (logits_BV == best_B1).int().argmax(-1)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Logits outside the k largest set to -inf; those equal to the k-th stay."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k, dim=-1).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Logits outside the smallest set of likeliest tokens whose probability reaches p set to -inf (arXiv:1904.09751).

    p is above 0, so the likeliest always stays.
    """
    sorted_BV, index_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
    probability_BV = torch.softmax(wide(sorted_BV), dim=-1)
    before_BV = probability_BV.cumsum(-1) - probability_BV  # the mass of the tokens ahead of this one
    dropped_BV = before_BV >= p
    return logits_BV.masked_fill(dropped_BV.scatter(-1, index_BV, dropped_BV), -math.inf)


def sample(
    logits_BV: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A token for each sequence, int64 [B], drawn from softmax(logits / temperature) within top-k, then top-p.

    Temperature 0 is greedy. In float32 at least.
    """
    if temperature == 0:
        return greedy(logits_BV)
    logits_BV = wide(logits_BV) / temperature
    if top_k is not None:
        logits_BV = keep_top_k(logits_BV, top_k)
    if top_p is not None and top_p < 1:
        logits_BV = keep_top_p(logits_BV, top_p)
    return torch.multinomial(torch.softmax(logits_BV, dim=-1), 1, generator=generator).squeeze(-1)


@dataclass
class Sampler:
    """The way to choose tokens, and where its random numbers stand. Problem for values that mean nothing."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    _generator: torch.Generator | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise Problem(
                f"a temperature of {self.temperature} means nothing", help="0 is greedy, 1 the model's own odds"
            )
        if self.top_k is not None and self.top_k < 1:
            raise Problem(f"top-k of {self.top_k} leaves no token", help="give 1 or more, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise Problem(f"top-p is a probability, and {self.top_p} is not above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise Problem(f"the seed {self.seed} is not a number from 0 to 2^63 - 1")

    def __call__(self, logits_BV: Tensor) -> Tensor:
        if self._generator is None or self._generator.device != logits_BV.device:
            self._generator = torch.Generator(logits_BV.device).manual_seed(self.seed)
        return sample(logits_BV, self.temperature, self.top_k, self.top_p, self._generator)
