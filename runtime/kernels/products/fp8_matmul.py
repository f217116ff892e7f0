"""Products of 8-bit floats with scales by rows or by blocks, and a linear layer that trains with them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F_
from torch import Tensor

from ...reference import quantized as reference
from ...reference.quantized import BLOCK, LARGEST
from ..choice import kernels_in_use
from ..flops import fp8_product
from ..operation import operation
from ..row_kernel import KernelError
from ..tuning import Unfit, Way
from .fp8_quantize import quantize_blocks, quantize_columns, quantize_rows, quantize_tiles
from .product import Product, has_fp8
from .product_kernel import BLOCKS, ROWS

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
Scaling = Literal["rows", "blocks"]
GRADIENTS = {"e4m3": E4M3, "e5m2": E5M2}


def fp8_rows_matmul(
    x_ND: Tensor, x_scale_N: Tensor, w_FD: Tensor, w_scale_F: Tensor,
    dtype: torch.dtype = torch.bfloat16, fast: bool = False,
) -> Tensor:  # fmt: skip
    """`x_scale_N * w_scale_F * (x @ w.T)` in `dtype`, [N, F]: x and w in float8_e4m3fn or e5m2, scales in float32.

    fast: sums stay in the tensor cores, which keep some 14 bits of them (arXiv:2412.19437, section 3.3.2); otherwise
    they go to float32 every 128 columns. Raises KernelError for other tensors, and where the GPU has no 8-bit floats.
    """
    if not _uses_kernels("fp8_rows_matmul", x_ND, w_FD, dtype):
        return reference.fp8_rows_linear(x_ND, x_scale_N, w_FD, w_scale_F, dtype)
    _check_scales("fp8_rows_matmul", x_ND, (x_scale_N, x_ND.shape[:1]), (w_scale_F, w_FD.shape[:1]))
    return _rows(x_ND, x_scale_N.contiguous(), w_FD, w_scale_F.contiguous(), dtype, fast)


def fp8_blocks_matmul(
    x_ND: Tensor, x_scale_NJ: Tensor, w_FD: Tensor, w_scale_IJ: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The product [N, F] of x in tiles of 1 x 128 and w in blocks of 128 x 128, as `quantize_tiles` and
    `quantize_blocks` make them; blocks are scaled and added up in float32 (arXiv:2412.19437, section 3.3).

    Raises KernelError as `fp8_rows_matmul` does.
    """
    if not _uses_kernels("fp8_blocks_matmul", x_ND, w_FD, dtype):
        return reference.fp8_blocks_linear(x_ND, x_scale_NJ, w_FD, w_scale_IJ, dtype)
    (N, D), F = x_ND.shape, w_FD.shape[0]
    J = -(-D // BLOCK)
    _check_scales("fp8_blocks_matmul", x_ND, (x_scale_NJ, (N, J)), (w_scale_IJ, (-(-F // BLOCK), J)))
    return _blocks(x_ND, x_scale_NJ.t().contiguous(), w_FD, w_scale_IJ.contiguous(), dtype)


def fp8_linear(
    x: Tensor,
    weight_FD: Tensor,
    *,
    scaling: Scaling = "rows",
    gradient: Literal["e4m3", "e5m2"] = "e5m2",
    fast: bool = False,
    fallback: bool = False,
) -> Tensor:
    """`x @ weight.T` [..., F] in the dtype of x with 8-bit products forward and backward; differentiable in both.

    x [..., D], weight [F, D]: bf16, fp16 or fp32. Everything is scaled anew in each step by its largest numbers: of
    each row along which it is summed, or with scaling "blocks" of tiles of 1 x 128 of x and of gradients, and of
    blocks of 128 x 128 of the weight (arXiv:2412.19437, section 3.3); for the weight's gradient by rows in both. x and
    weight are float8_e4m3fn, gradients e4m3 or e5m2 (arXiv:2209.05433). `fast` is of the forward product by rows only.
    What backward keeps of x is 8 bits wide. Where the GPU has no 8-bit floats: the product in the dtype of x if
    `fallback`, else KernelError.
    """
    if gradient not in GRADIENTS:
        raise KernelError(f"fp8_linear: gradients are e4m3 or e5m2, not {gradient}")
    if scaling not in get_args(Scaling):
        raise KernelError(f"fp8_linear: it scales by rows or blocks, not {scaling}")
    if x.shape[-1] != weight_FD.shape[-1] or weight_FD.ndim != 2:
        raise KernelError(f"fp8_linear: x is {list(x.shape)}, and the weight is {list(weight_FD.shape)}")
    if x.device != weight_FD.device:
        raise KernelError(f"fp8_linear: x is on {x.device}, and the weight is on {weight_FD.device}")
    if kernels_in_use(x.device) and not {x.dtype, weight_FD.dtype} <= {*OUTPUTS}:
        raise KernelError(f"fp8_linear: x is {x.dtype}, the weight {weight_FD.dtype}: bfloat16, float16 and float32")
    if kernels_in_use(x.device) and not has_fp8(x.device):
        if not fallback:
            raise KernelError(f"fp8_linear: {torch.cuda.get_device_name(x.device)} has no 8-bit floats (from 8.9 on)")
        return F_.linear(x, weight_FD.to(x.dtype))
    x_ND = x.reshape(-1, x.shape[-1])
    y_NF: Tensor = _Linear.apply(x_ND, weight_FD, scaling, GRADIENTS[gradient], fast)
    return y_NF.reshape(*x.shape[:-1], weight_FD.shape[0])


class _Linear(torch.autograd.Function):
    """The three products. By rows what is summed over has one scale in each row of both operands."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_FD: Tensor, scaling: Scaling, gradient: torch.dtype, fast: bool
    ) -> Tensor:
        kept = quantize_columns(x_ND) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(weight_FD, *kept)
        ctx.gradient, ctx.dtype, ctx.scaling = gradient, x_ND.dtype, scaling
        if scaling == "blocks":
            return fp8_blocks_matmul(*quantize_tiles(x_ND), *quantize_blocks(weight_FD), x_ND.dtype)
        return fp8_rows_matmul(*quantize_rows(x_ND), *quantize_rows(weight_FD), x_ND.dtype, fast)

    @staticmethod
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        weight_FD, *kept = ctx.saved_tensors
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            if ctx.scaling == "blocks":
                w_FD, w_scale_IJ = quantize_blocks(weight_FD)  # as in forward: its transpose has the same blocks
                tiles = quantize_tiles(grad_NF, ctx.gradient)
                grad_x = fp8_blocks_matmul(*tiles, w_FD.t().contiguous(), w_scale_IJ.t(), ctx.dtype)
            else:
                rows = quantize_rows(grad_NF, ctx.gradient)
                grad_x = fp8_rows_matmul(*rows, *quantize_columns(weight_FD), ctx.dtype)
        if ctx.needs_input_grad[1]:
            x_DN, x_scale_D = kept
            grad_FN, scale_F = quantize_columns(grad_NF, ctx.gradient)
            grad_w = fp8_rows_matmul(grad_FN, scale_F, x_DN, x_scale_D, weight_FD.dtype)
        return grad_x, grad_w, None, None, None


# --- as operations of torch


def _rows_fake(
    x_ND: Tensor, x_scale_N: Tensor, w_FD: Tensor, w_scale_F: Tensor, dtype: torch.dtype, fast: bool
) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_FD.shape[0], dtype=dtype)


@operation("fp8_rows_matmul", _rows_fake, fp8_product)
def _rows(x_ND: Tensor, x_scale_N: Tensor, w_FD: Tensor, w_scale_F: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    product = Product(ROWS, x_ND, w_FD, x_scale_N, w_scale_F, dtype, fast=fast)

    def run_torch() -> Tensor:
        return torch._scaled_mm(
            x_ND.contiguous(), w_FD.contiguous().t(), x_scale_N.unsqueeze(1), w_scale_F.unsqueeze(0),
            out_dtype=dtype, use_fast_accum=fast,
        )  # fmt: skip

    aligned = x_ND.shape[1] % 16 == 0 and w_FD.shape[0] % 16 == 0
    fits = aligned and x_ND.is_cuda and dtype == torch.bfloat16 and w_FD.dtype == E4M3
    return product.run("fp8_rows_matmul.forward", Way("torch _scaled_mm") if fits else None, run_torch)


def _blocks_fake(x_ND: Tensor, x_scale_JN: Tensor, w_FD: Tensor, w_scale_IJ: Tensor, dtype: torch.dtype) -> Tensor:
    return x_ND.new_empty(x_ND.shape[0], w_FD.shape[0], dtype=dtype)


@operation("fp8_blocks_matmul", _blocks_fake, fp8_product)
def _blocks(x_ND: Tensor, x_scale_JN: Tensor, w_FD: Tensor, w_scale_IJ: Tensor, dtype: torch.dtype) -> Tensor:
    product = Product(BLOCKS, x_ND, w_FD, x_scale_JN, w_scale_IJ, dtype)

    def run_torch() -> Tensor:
        try:
            return torch._scaled_mm(
                x_ND.contiguous(), w_FD.contiguous().t(), x_scale_JN.t(), w_scale_IJ.t(), out_dtype=dtype
            )
        except (RuntimeError, ValueError) as error:  # which layouts it takes differs between versions of torch
            raise Unfit(str(error)) from None

    whole = x_ND.shape[1] % BLOCK == 0 and w_FD.shape[0] % BLOCK == 0 and x_ND.shape[0] % 16 == 0
    fits = whole and x_ND.is_cuda and dtype == torch.bfloat16 and (x_ND.dtype, w_FD.dtype) == (E4M3, E4M3)
    return product.run("fp8_blocks_matmul.forward", Way("torch _scaled_mm") if fits else None, run_torch)


def _uses_kernels(name: str, x_ND: Tensor, w_FD: Tensor, dtype: torch.dtype) -> bool:
    for tensor in (x_ND, w_FD):
        if tensor.dtype not in LARGEST or tensor.ndim != 2:
            raise KernelError(
                f"{name}: {tensor.dtype} {list(tensor.shape)}: it takes matrices of float8_e4m3fn or e5m2"
            )
    if x_ND.shape[1] != w_FD.shape[1] or x_ND.device != w_FD.device:
        raise KernelError(
            f"{name}: x is {list(x_ND.shape)} on {x_ND.device}, w is {list(w_FD.shape)} on {w_FD.device}: they must "
            "have the same columns and device"
        )
    if dtype not in OUTPUTS:
        raise KernelError(f"{name}: its result is bfloat16, float16 or float32, not {dtype}")
    if kernels_in_use(x_ND.device) and not has_fp8(x_ND.device):
        raise KernelError(f"{name}: {torch.cuda.get_device_name(x_ND.device)} has no 8-bit floats (from 8.9 on)")
    return kernels_in_use(x_ND.device)


def _check_scales(name: str, x_ND: Tensor, *scales: tuple[Tensor, tuple[int, ...]]) -> None:
    for scale, shape in scales:
        if tuple(scale.shape) != tuple(shape) or scale.dtype != torch.float32:
            raise KernelError(f"{name}: a scale is {scale.dtype} {list(scale.shape)}, not float32 {list(shape)}")
        if scale.device != x_ND.device:
            raise KernelError(f"{name}: a scale is on {scale.device}, and x is on {x_ND.device}")
