"""Products of int8 weights and uint8 activations with a zero point, and how activations are quantized."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import quantized as reference
from ...reference.quantized import Int8Rows
from ..choice import kernels_in_use
from ..flops import product as product_flops
from ..gpu import require_gpu
from ..language import tl, triton
from ..operation import operation
from ..row_kernel import KernelError
from ..tuning import Tile, Way, run_best, tile
from .product import Product
from .product_kernel import INT8

MOST_COLUMNS = 1 << 16  # of which sums of products of 8 and 9 bits fit 32 bits
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
_ROUNDS = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: added and taken away, it rounds to the nearest even whole number
_TILES = [tile(4, 1, BLOCK=2048), tile(8, 1, BLOCK=4096), tile(4, 1, BLOCK=1024)]


def weight_sums(weight: Int8Rows) -> Tensor:
    """The sum of each row of an int8 weight [F, D] as int32 [F]: what zero points are multiplied by."""
    return weight.values_FD.sum(-1, dtype=torch.int32)


def quantize_activations(x: Tensor, scale: Tensor, zero_point: Tensor, shifted: bool = False) -> Tensor:
    """`clamp(round(x / scale) + zero_point, 0, 255)` as uint8, or less 128 as int8, which `int8_linear` reads at once.

    x: floating, of any shape. scale: float32, zero_point: int32 from 0 to 255, scalars on the device of x, so that
    nothing waits for them. Not a number becomes 0. Raises KernelError for others.
    """
    if scale.numel() != 1 or zero_point.numel() != 1 or scale.dtype != torch.float32 or zero_point.dtype != torch.int32:
        raise KernelError("quantize_activations: it takes one scale in float32 and one zero point in int32")
    if {scale.device, zero_point.device} != {x.device}:
        raise KernelError(f"quantize_activations: x is on {x.device}, scale or zero point is not")
    if not kernels_in_use(x.device):
        values = reference.quantize_uint8(x, scale, zero_point)
        return (values ^ 128).view(torch.int8) if shifted else values
    require_gpu("quantize_activations", x.device)
    if x.dtype not in OUTPUTS:
        raise KernelError(f"quantize_activations: x is {x.dtype}, and it takes bfloat16, float16 and float32")
    return _quantize(x.contiguous(), scale, zero_point, shifted)


def _quantize_fake(x: Tensor, scale: Tensor, zero_point: Tensor, shifted: bool) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8 if shifted else torch.uint8)


@operation("quantize_activations", _quantize_fake)
def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, shifted: bool) -> Tensor:
    values = torch.empty(x.shape, dtype=torch.int8 if shifted else torch.uint8, device=x.device)
    count = x.numel()

    def run(way: Way) -> Tensor:
        assert isinstance(way, Tile)
        if count:
            grid = (-(-count // way["BLOCK"]),)
            quantize_kernel[grid](x, values, scale, zero_point, count, SHIFTED=shifted, **way.options)  # type: ignore[index]
        return values

    return run_best("quantize_activations", (1 << max(0, count - 1).bit_length(), str(x.dtype)), _TILES, run)


@triton.jit
def quantize_kernel(x_ptr, y_ptr, scale_ptr, zero_ptr, count, SHIFTED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < count, other=0.0).to(tl.float32)
    # Kept small first, for rounding: what lies beyond is clamped in the end anyway.
    y = tl.minimum(tl.maximum(tl.div_rn(x, tl.load(scale_ptr)), -512.0), 512.0)
    y = ((y + _ROUNDS) - _ROUNDS) + tl.load(zero_ptr).to(tl.float32)
    y = tl.minimum(tl.maximum(y, 0.0), 255.0)
    if SHIFTED:
        y -= 128.0
    tl.store(y_ptr + i, y.to(tl.int32).to(y_ptr.dtype.element_ty), i < count)


def int8_linear(
    x_ND: Tensor,
    weight: Int8Rows,
    x_scale: Tensor,
    zero_point: Tensor,
    sums_F: Tensor | None = None,
    *,
    bias_F: Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """`x_scale * scale_F * (x @ values.T - zero_point * sums_F) + bias` in `dtype`, [N, F]; the sums are exact.

    x_ND: uint8 [N, D], or int8 as `quantize_activations(..., shifted=True)` makes it, which saves a pass over it.
    weight: its scales in float32. x_scale float32, zero_point int32, scalars on the device; zero_point is of uint8 x.
    sums_F: `weight_sums(weight)`, made anew when it is None. dtype: bf16, fp16 or fp32. Asymmetric activations and
    symmetric weights (arXiv:1712.05877, section 2.3). There is no gradient. Raises KernelError for other tensors.
    """
    _check(x_ND, weight, x_scale, zero_point, sums_F, bias_F, dtype)
    if not kernels_in_use(x_ND.device):
        x_ND = x_ND if x_ND.dtype == torch.uint8 else x_ND.view(torch.uint8) ^ 128
        return reference.int8_linear(x_ND, weight, x_scale, zero_point, bias_F, dtype)
    if x_ND.dtype == torch.uint8:
        x_ND = (x_ND ^ 128).view(torch.int8)
    sums_F = weight_sums(weight) if sums_F is None else sums_F
    return _linear(x_ND, weight.values_FD, x_scale, weight.scale_F, zero_point, sums_F, bias_F, dtype)


def _linear_fake(
    x_ND: Tensor, w_FD: Tensor, x_scale: Tensor, w_scale_F: Tensor, zero: Tensor, sums_F: Tensor,
    bias_F: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return x_ND.new_empty(x_ND.shape[0], w_FD.shape[0], dtype=dtype)


@operation("int8_linear", _linear_fake, product_flops)
def _linear(
    x_ND: Tensor, w_FD: Tensor, x_scale: Tensor, w_scale_F: Tensor, zero: Tensor, sums_F: Tensor,
    bias_F: Tensor | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    product = Product(INT8, x_ND, w_FD, x_scale, w_scale_F, dtype, zero, sums_F, bias_F)

    def run_torch() -> Tensor:
        sums_NF = torch._int_mm(x_ND.contiguous(), w_FD.t()) - (zero - 128) * sums_F
        y_NF = sums_NF * (x_scale * w_scale_F)
        return (y_NF if bias_F is None else y_NF + bias_F).to(dtype)

    N, D = x_ND.shape
    fits = x_ND.is_cuda and N > 16 and D % 8 == 0 and w_FD.shape[0] % 8 == 0
    return product.run("int8_linear.forward", Way("torch _int_mm") if fits else None, run_torch)


def _check(
    x_ND: Tensor, weight: Int8Rows, x_scale: Tensor, zero_point: Tensor, sums_F: Tensor | None,
    bias_F: Tensor | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    require_gpu("int8_linear", x_ND.device)
    F, D = weight.shape
    if x_ND.dtype not in (torch.uint8, torch.int8) or x_ND.ndim != 2 or x_ND.shape[1] != D:
        raise _error(f"x is {x_ND.dtype} {list(x_ND.shape)}, and it takes uint8 or int8 [N, {D}]")
    if not 0 < D <= MOST_COLUMNS:
        raise _error(f"rows of {D}: it takes 1 to {MOST_COLUMNS}, whose sums fit 32 bits")
    if dtype not in OUTPUTS:
        raise _error(f"its result is bfloat16, float16 or float32, not {dtype}")
    wanted = {
        "the weight": (weight.values_FD, torch.int8, (F, D)), "its scale": (weight.scale_F, torch.float32, (F,)),
        "sums": (sums_F, torch.int32, (F,)), "x_scale": (x_scale, torch.float32, tuple(x_scale.shape)),
        "zero_point": (zero_point, torch.int32, tuple(zero_point.shape)),
    }  # fmt: skip
    for name, (tensor, kind, shape) in wanted.items():
        if tensor is not None and (
            tensor.dtype != kind or tuple(tensor.shape) != shape or tensor.device != x_ND.device
        ):
            raise _error(f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}, not {kind} {list(shape)}")
        if tensor is not None and name != "the weight" and not tensor.is_contiguous():
            raise _error(f"{name} must be contiguous")
    if x_scale.numel() != 1 or zero_point.numel() != 1:
        raise _error("x has one scale and one zero point")
    if bias_F is not None and (
        tuple(bias_F.shape) != (F,) or not bias_F.is_contiguous() or not bias_F.is_floating_point()
        or bias_F.device != x_ND.device
    ):  # fmt: skip
        raise _error(f"bias is {bias_F.dtype} on {bias_F.device}, not contiguous floating [{F}] on {x_ND.device}")


def _error(message: str) -> KernelError:
    return KernelError(f"int8_linear: {message}")
