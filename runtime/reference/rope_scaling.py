"""How rotary frequencies are stretched to positions beyond those that a model was trained on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Every frequency divided by `factor` (position interpolation, arXiv:2306.15595, section 2.3)."""

    factor: float

    def stretch(self, frequency_E: Tensor, theta: float) -> Tensor:
        return frequency_E / self.factor

    def attention_factor(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's scaling: wavelengths over `original / low` tokens are divided by `factor`, those under
    `original / high` stay, those between are blended linearly in `original / wavelength` (arXiv:2407.21783, section
    3.4.2; the formula is that of github.com/meta-llama/llama-models, models/llama3/model.py, `apply_scaling`)."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192

    def stretch(self, frequency_E: Tensor, theta: float) -> Tensor:
        turns_E = self.original * frequency_E / (2 * math.pi)  # full turns within the original context
        kept_E = ((turns_E - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return frequency_E * (kept_E + (1.0 - kept_E) / self.factor)

    def attention_factor(self) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071, sections 3.2 and 3.4): pairs that turn over `beta_fast` times within `original` positions
    keep their frequency, those under `beta_slow` turns have it divided by `factor`, a ramp over the pair's index
    between.

    Attention logits are scaled by the square of `attention_factor()`, which multiplies both cos and sin: `attention`
    when given; else `m(mscale) / m(mscale_all)` when both are given (DeepSeek), `m(1)` when not, where `m(s) = 0.1 * s
    * ln(factor) + 1`. `truncate` rounds the ends of the ramp outwards to whole pairs.
    """

    factor: float
    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all: float | None = None
    attention: float | None = None
    truncate: bool = True

    def stretch(self, frequency_E: Tensor, theta: float) -> Tensor:
        pairs = frequency_E.shape[-1]
        low, high = self._pair_with(self.beta_fast, pairs, theta), self._pair_with(self.beta_slow, pairs, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # The upper clamp is the rotated width, not the count of pairs: so do the paper's code and every model since.
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        index_E = torch.arange(pairs, dtype=frequency_E.dtype, device=frequency_E.device)
        divided_E = ((index_E - low) / (max(high - low, 0.001))).clamp(0.0, 1.0)
        return frequency_E * (1.0 - divided_E + divided_E / self.factor)

    def attention_factor(self) -> float:
        if self.attention is not None:
            return self.attention
        if self.mscale and self.mscale_all:
            return self._magnitude(self.mscale) / self._magnitude(self.mscale_all)
        return self._magnitude(1.0)

    def _pair_with(self, turns: float, pairs: int, theta: float) -> float:
        """The (fractional) index of the pair that makes `turns` full turns within `original` positions."""
        return pairs * math.log(self.original / (turns * 2 * math.pi)) / math.log(theta)

    def _magnitude(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1.0 else 0.1 * mscale * math.log(self.factor) + 1.0


Scaling = LinearScaling | Llama3Scaling | YarnScaling
