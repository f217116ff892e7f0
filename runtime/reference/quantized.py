"""Weights in 8 and 4 bits and products of 8-bit numbers: formats, how numbers get into them, and what products mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .precision import over, wide

GROUPS = (32, 64, 128)
BLOCK = 128  # of scales in blocks (arXiv:2412.19437, section 3.3.2)
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}  # arXiv:2209.05433, table 1
LEAST_SCALE = 1e-12  # of int8
LEAST_FP8_SCALE = 2.0**-100  # gradients are small: what a product of two scales and their values can still hold
MIDDLE = 8  # the zero point of 4-bit values that have none of their own


@dataclass(frozen=True)
class Int8Rows:
    """A weight [F, D] as values_FD int8 and scale_F floating: `values * scale`."""

    values_FD: Tensor
    scale_F: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values_FD.shape[0], self.values_FD.shape[1]


@dataclass(frozen=True)
class Int4Groups:
    """A weight [F, D] in 4 bits, a scale for each group of columns: `(value - zero) * scale`, values 0 to 15.

    packed_FC uint8 [F, D / 2]: column 2c in the low half of byte c, column 2c + 1 in the high half. scale_FJ floating
    [F, D / group]. zero_FJ uint8 [F, D / group], or None where all are 8.
    """

    packed_FC: Tensor
    scale_FJ: Tensor
    zero_FJ: Tensor | None
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed_FC.shape[0], 2 * self.packed_FC.shape[1]


Weight = Tensor | Int8Rows | Int4Groups


# --- weights


def quantize_int8_rows(weight_FD: Tensor, scale_dtype: torch.dtype = torch.float32) -> Int8Rows:
    """Each row of a weight [F, D] as int8 from -127 to 127: `scale = max(|row|) / 127`, rounded to the nearest even."""
    w_FD = wide(weight_FD.detach())
    scale_F = over(w_FD.abs().amax(-1), 127).clamp(min=LEAST_SCALE).to(scale_dtype)
    values_FD = (w_FD / scale_F.to(w_FD.dtype).unsqueeze(-1)).round().clamp(-127, 127)
    return Int8Rows(values_FD.to(torch.int8), scale_F)


def quantize_int4_groups(
    weight_FD: Tensor, group: int = 128, symmetric: bool = False, scale_dtype: torch.dtype | None = None
) -> Int4Groups:
    """Groups of `group` columns of a weight [F, D] as 4 bits each.

    With zero points `scale = (max - min) / 15` over the group and 0, and `zero = round(-min / scale)`; symmetric, the
    scale is `max(|group|) / 7` and the zero point 8. Scales are rounded to `scale_dtype` (that of the weight) before
    values are. Raises ValueError where D is no multiple of `group`, or that is none of 32, 64, 128.
    """
    D = weight_FD.shape[1]
    if group not in GROUPS or D % group:
        raise ValueError(f"int4: groups of {group} in rows of {D}; groups are {GROUPS} wide and must divide the row")
    w_FJG = wide(weight_FD.detach()).unflatten(-1, (D // group, group))
    dtype, least = scale_dtype or weight_FD.dtype, torch.finfo(scale_dtype or weight_FD.dtype).tiny
    if symmetric:
        scale_FJ = over(w_FJG.abs().amax(-1), 7).clamp(min=least).to(dtype)
        zero_FJ = None
        offset_FJ1 = torch.full_like(w_FJG[..., :1], MIDDLE)
    else:
        low_FJ, high_FJ = w_FJG.amin(-1).clamp(max=0), w_FJG.amax(-1).clamp(min=0)
        scale_FJ = over(high_FJ - low_FJ, 15).clamp(min=least).to(dtype)
        offset_FJ1 = (-low_FJ / scale_FJ.to(w_FJG.dtype)).round().clamp(0, 15).unsqueeze(-1)
        zero_FJ = offset_FJ1.squeeze(-1).to(torch.uint8)
    values_FJG = ((w_FJG / scale_FJ.to(w_FJG.dtype).unsqueeze(-1)).round() + offset_FJ1).clamp(0, 15)
    return Int4Groups(pack_int4(values_FJG.flatten(-2).to(torch.uint8)), scale_FJ, zero_FJ, group)


def pack_int4(values_FD: Tensor) -> Tensor:
    """Values from 0 to 15 (uint8 [F, D]) as bytes [F, D / 2], even columns in the low halves."""
    return values_FD[:, 0::2] | (values_FD[:, 1::2] << 4)


def unpack_int4(packed_FC: Tensor) -> Tensor:
    """The inverse of `pack_int4`."""
    return torch.stack((packed_FC & 15, packed_FC >> 4), -1).flatten(-2)


def dequantize(weight: Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [F, D] that a format stands for, computed in `dtype`; a tensor is only cast."""
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    if isinstance(weight, Int8Rows):
        return weight.values_FD.to(dtype) * weight.scale_F.to(dtype).unsqueeze(-1)
    values_FJG = unpack_int4(weight.packed_FC).unflatten(-1, (-1, weight.group)).to(dtype)
    zero = MIDDLE if weight.zero_FJ is None else weight.zero_FJ.to(dtype).unsqueeze(-1)
    return ((values_FJG - zero) * weight.scale_FJ.to(dtype).unsqueeze(-1)).flatten(-2)


# --- activations


def quantize_uint8(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """`clamp(round(x / scale) + zero_point, 0, 255)` as uint8, of scalars scale (floating) and zero_point (integer)."""
    y = (wide(x.detach()) / scale.to(wide(x).dtype)).round() + zero_point.to(wide(x).dtype)
    return y.nan_to_num(nan=0.0).clamp(0, 255).to(torch.uint8)


def quantize_fp8_rows(x_ND: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [N, D] in 8-bit floats with a float32 scale [N], `max(|row|)` over the largest number of `dtype`."""
    x_ND = wide(x_ND.detach())
    scale_N = over(x_ND.abs().amax(-1), LARGEST[dtype]).clamp(min=LEAST_FP8_SCALE)
    return _fp8(x_ND / scale_N.unsqueeze(-1), dtype), scale_N.float()


def quantize_fp8_tiles(x_ND: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [N, D] in 8-bit floats with float32 scales [N, ceil(D / 128)], one for 128 columns of a row
    (DeepSeek-V3, arXiv:2412.19437, section 3.3.2)."""
    return _in_blocks(x_ND, 1, dtype)


def quantize_fp8_blocks(w_FD: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """w [F, D] in 8-bit floats with float32 scales [ceil(F / 128), ceil(D / 128)], one for a block of 128 x 128."""
    return _in_blocks(w_FD, BLOCK, dtype)


def spread_scales(scale: Tensor, rows: int, columns: int, block_rows: int) -> Tensor:
    """The scale [rows, columns] of each element, of scales of blocks of `block_rows` x 128."""
    return scale.repeat_interleave(block_rows, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]


def _in_blocks(x: Tensor, block_rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = wide(x.detach())
    rows, columns = x.shape
    padded = torch.nn.functional.pad(x, (0, -columns % BLOCK, 0, -rows % block_rows))
    blocks = padded.unflatten(0, (-1, block_rows)).unflatten(-1, (-1, BLOCK))
    scale = over(blocks.abs().amax((1, 3)), LARGEST[dtype]).clamp(min=LEAST_FP8_SCALE)
    return _fp8(x / spread_scales(scale, rows, columns, block_rows), dtype), scale.float()


def _fp8(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


# --- products


def int8_linear(
    x_ND: Tensor,
    weight: Int8Rows,
    x_scale: Tensor,
    zero_point: Tensor,
    bias_F: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`x_scale * scale_F * ((x - zero_point) @ values.T) + bias` [N, F], x uint8 [N, D]; the sums are exact.

    Asymmetric activations, symmetric weights by row (arXiv:1712.05877, section 2.3, with a zero point on one side).
    """
    sums_NF = (x_ND.double() - zero_point.double()) @ weight.values_FD.double().T
    y_NF = sums_NF * (x_scale.double() * weight.scale_F.double())
    return (y_NF if bias_F is None else y_NF + bias_F.double()).to(dtype)


def fp8_rows_linear(
    x_ND: Tensor, x_scale_N: Tensor, w_FD: Tensor, w_scale_F: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`x_scale_N * w_scale_F * (x @ w.T)` [N, F] of 8-bit floats, in float64 until the result is rounded to `dtype`."""
    y_NF = x_ND.double() @ w_FD.double().T
    return (y_NF * x_scale_N.double().unsqueeze(-1) * w_scale_F.double()).to(dtype)


def fp8_blocks_linear(
    x_ND: Tensor, x_scale_NJ: Tensor, w_FD: Tensor, w_scale_IJ: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The product [N, F] of x in tiles of 1 x 128 and w in blocks of 128 x 128, in float64 until the result is rounded
    (DeepSeek-V3, arXiv:2412.19437, section 3.3)."""
    x = x_ND.double() * spread_scales(x_scale_NJ.double(), x_ND.shape[0], x_ND.shape[1], 1)
    w = w_FD.double() * spread_scales(w_scale_IJ.double(), w_FD.shape[0], w_FD.shape[1], BLOCK)
    return (x @ w.T).to(dtype)
