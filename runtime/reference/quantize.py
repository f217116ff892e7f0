"""Activations as integers or 8-bit floats, a scale for every row."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .precision import over, wide

GREATEST = {"int8": 127.0, "fp8": 448.0}  # of int8, kept symmetric; of float8_e4m3fn (arXiv:2209.05433, table 1)
DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def quantize(x: Tensor, to: Literal["int8", "fp8"]) -> tuple[Tensor, Tensor]:
    """x [..., D] as values [..., D] of 8 bits and scales [...] in float32 at least: x is about `values * scale`.

    `scale = max(|x|) / greatest` over each row, at least 1e-12; int8 values are rounded to the nearest, of two equally
    near to the even one. No gradient flows.
    """
    y, greatest = wide(x.detach()), GREATEST[to]
    scale = over(y.abs().amax(-1), greatest).clamp(min=1e-12)
    values = y / scale.unsqueeze(-1)
    if to == "int8":
        values = values.round()
    return values.clamp(-greatest, greatest).to(DTYPES[to]), scale
