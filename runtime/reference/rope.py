"""Rotary position embedding (arXiv:2104.09864, section 3.4.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .precision import wide
from .rope_scaling import Scaling


def rope_table(
    position_S: Tensor,
    width: int,
    theta: float,
    scaling: Scaling | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `position * theta^(-2i / width)` for the pairs i < width / 2: two tensors [S, width / 2].

    position_S holds integers (or fractions). Frequencies and angles are computed in float64 (float32 on devices without
    it) and only then rounded to `dtype`: at position 100,000 a float32 angle is already off by 0.005 radian.
    """
    assert width % 2 == 0, f"the rotated width is {width}, and must be even"
    precise = torch.float32 if position_S.device.type == "mps" else torch.float64
    index_E = torch.arange(0, width, 2, dtype=precise, device=position_S.device)
    frequency_E = theta ** (-index_E / width)
    magnitude = 1.0
    if scaling is not None:
        frequency_E = scaling.stretch(frequency_E, theta)
        magnitude = scaling.attention_factor()
    angle_SE = position_S.to(precise).unsqueeze(-1) * frequency_E
    return (angle_SE.cos() * magnitude).to(dtype), (angle_SE.sin() * magnitude).to(dtype)


def rope(x: Tensor, cos_SE: Tensor, sin_SE: Tensor, pairs: Literal["half", "interleaved"] = "half") -> Tensor:
    """x [B, S, H, E] or [B, S, E] with the first `2 * cos_SE.shape[-1]` of its last axis rotated; the rest passes.

    cos_SE and sin_SE are those of `rope_table`. Pair i is `(x[i], x[i + width / 2])` for `pairs="half"` (as in GPT-NeoX
    and transformers' Llama), `(x[2 * i], x[2 * i + 1])` for `"interleaved"` (as in the paper and DeepSeek). Computed in
    float32 at least; the result has the shape and dtype of x.
    """
    half = cos_SE.shape[-1]
    rest = x.shape[-1] - 2 * half
    assert rest >= 0, f"cannot rotate {2 * half} of a last axis of {x.shape[-1]}"
    shape = (cos_SE.shape[0], *[1] * (x.ndim - 3), half)  # one angle for all heads
    cos, sin = cos_SE.view(shape), sin_SE.view(shape)
    if pairs == "half":
        a, b, passed = torch.split(x, [half, half, rest], dim=-1)
    else:
        assert pairs == "interleaved", pairs
        turned, passed = torch.split(x, [2 * half, rest], dim=-1)
        a, b = turned.unflatten(-1, (half, 2)).unbind(-1)
    a, b = wide(a), wide(b)
    a, b = (a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype)
    if pairs == "half":
        return torch.cat((a, b, passed) if rest else (a, b), dim=-1)
    turned = torch.stack((a, b), dim=-1).flatten(-2)
    return torch.cat((turned, passed), dim=-1) if rest else turned
