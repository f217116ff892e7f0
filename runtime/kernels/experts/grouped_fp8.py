"""Grouped products of 8-bit floats (e4m3), forward only: a scale for each row, and for each row of each weight."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import flops
from ..gpu import require_gpu
from ..language import tl, triton
from ..operation import operation
from ..row_kernel import KernelError
from ..tuning import Tile, Way, run_best
from .grouped_product import Product, aligned, blocks, fitting, has_tma, in_rows, launch_product

GREATEST = 448.0  # of float8_e4m3fn (arXiv:2209.05433, table 1)
OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
PROMOTED = 128  # products summed within the tensor cores, which keep 14 bits, before the sum goes on in float32

EXACT = (  # with room for two sums in registers
    blocks(8, 4, (128, 128, 128), tma=True),
    blocks(8, 3, (128, 128, 128), tma=True, flat=True),
    blocks(4, 4, (64, 128, 128), tma=True),
    blocks(8, 3, (128, 128, 128), tma=False),
)
FAST = (
    blocks(8, 4, (128, 256, 128), tma=True),
    blocks(8, 3, (128, 256, 128), tma=True, flat=True),
    blocks(8, 4, (128, 128, 128), tma=True),
    blocks(8, 3, (128, 256, 128), tma=False),
)
FEW = (blocks(4, 4, (16, 128, 128), tma=True), blocks(4, 4, (16, 64, 128), tma=False))


def grouped_linear_fp8(
    x_RD: Tensor,
    x_scale_R: Tensor,
    weight_XFD: Tensor,
    weight_scale_XF: Tensor,
    offsets_X: Tensor,
    order_R: Tensor | None = None,
    choices: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    exact: bool = True,
) -> Tensor:
    """Each row times the weight of its expert, both times their scales: [R, F] in `dtype`. No gradient flows.

    x_RD, weight_XFD: float8_e4m3fn; x_scale_R [R], weight_scale_XF [X, F]: float32, as `quantize_rows` gives them.
    offsets_X: int32, where the rows of each expert end. With `choices` x_RD and its scales are [T, D] and [T], and row
    r is token order_R[r] // choices. exact: sums leave the tensor cores, whose own have 14 bits, every 128 products
    (arXiv:2412.19437, section 3.3.2). Raises KernelError for other dtypes and shapes, and for GPUs without fp8.
    """
    _check(x_RD, x_scale_R, weight_XFD, weight_scale_XF, offsets_X)
    if dtype not in OUTPUTS:
        raise KernelError(f"grouped_linear_fp8: its result is bfloat16, float16 or float32, not {dtype}")
    if choices and (order_R is None or order_R.dtype != torch.int32 or order_R.device != x_RD.device):
        raise KernelError(f"grouped_linear_fp8: rows of {choices} choices need their order, int32 on {x_RD.device}")
    return _run(
        x_RD, x_scale_R, weight_XFD, weight_scale_XF, offsets_X, order_R if choices else None, choices, dtype, exact
    )


def _fake(
    x_RD: Tensor, x_scale_R: Tensor, weight_XFD: Tensor, weight_scale_XF: Tensor, offsets_X: Tensor,
    order_R: Tensor | None, choices: int, dtype: torch.dtype, exact: bool,
) -> Tensor:  # fmt: skip
    rows = x_RD.shape[0] if order_R is None else order_R.shape[0]
    return x_RD.new_empty(rows, weight_XFD.shape[1], dtype=dtype)


@operation("grouped_linear_fp8", _fake, flops.grouped_linear_fp8)
def _run(
    x_RD: Tensor, x_scale_R: Tensor, weight_XFD: Tensor, weight_scale_XF: Tensor, offsets_X: Tensor,
    order_R: Tensor | None, choices: int, dtype: torch.dtype, exact: bool,
) -> Tensor:  # fmt: skip
    call = Product(
        in_rows(x_RD), in_rows(weight_XFD), offsets_X, order_R, choices, dtype=dtype,
        inexact=PROMOTED if exact else None,
        x_scale=x_scale_R.contiguous(), weight_scale=weight_scale_XF.contiguous(),
    )  # fmt: skip
    key = (*call.key, str(dtype).removeprefix("torch."), exact)
    return run_best("grouped.fp8", key, _ways(call, exact), lambda way: _product(way, call, exact))


def _ways(call: Product, exact: bool) -> list[Way]:
    many, few = EXACT if exact else FAST, call.rows <= 32 * call.weight.shape[0]
    tiles = FEW + many if few else many + FEW
    ways = fitting(tiles, [call.weight], [call.x]) if call.choices else fitting(tiles, [call.weight, call.x])
    whole = all(size % 16 == 0 for size in call.weight.shape[1:]) and aligned(call.x) and has_tma(call.x.device)
    if call.x.is_cuda and whole and call.dtype == torch.bfloat16 and hasattr(torch, "_scaled_grouped_mm"):
        ways.append(Way("torch _scaled_grouped_mm"))
    return ways


def _product(way: Way, call: Product, exact: bool) -> Tensor:
    if isinstance(way, Tile):
        return launch_product(way, call)
    x, scale = call.x, call.x_scale
    assert scale is not None and call.weight_scale is not None
    if call.choices and call.order_R is not None:
        token_R = call.order_R // call.choices
        x, scale = x.view(torch.uint8).index_select(0, token_R).view(x.dtype), scale.index_select(0, token_R)
    return torch._scaled_grouped_mm(  # type: ignore[attr-defined, no-any-return]
        x, call.weight.transpose(-2, -1), scale, call.weight_scale, offs=call.offsets_X, out_dtype=call.dtype,
        use_fast_accum=not exact,
    )  # fmt: skip


def _check(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, offsets: Tensor) -> None:
    if x.dtype != torch.float8_e4m3fn or weight.dtype != torch.float8_e4m3fn:
        raise KernelError(f"grouped_linear_fp8: operands are {x.dtype} and {weight.dtype}, not float8_e4m3fn")
    if x_scale.dtype != torch.float32 or weight_scale.dtype != torch.float32 or offsets.dtype != torch.int32:
        raise KernelError("grouped_linear_fp8: scales must be float32, and offsets int32")
    if x.ndim != 2 or weight.ndim != 3 or weight.shape[2] != x.shape[1] or 0 in weight.shape:
        raise KernelError(
            f"grouped_linear_fp8: rows {list(x.shape)} do not fit a weight {list(weight.shape)}: [X, F, D]"
        )
    if x_scale.shape != x.shape[:1] or weight_scale.shape != weight.shape[:2] or offsets.shape != weight.shape[:1]:
        raise KernelError(
            f"grouped_linear_fp8: scales {list(x_scale.shape)} and {list(weight_scale.shape)}, offsets "
            f"{list(offsets.shape)} for rows {list(x.shape)} and a weight {list(weight.shape)}"
        )
    if len({t.device for t in (x, x_scale, weight, weight_scale, offsets)}) > 1:
        raise KernelError(f"grouped_linear_fp8: some tensors are not on {x.device}, where the rows are")
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (8, 9):
        raise KernelError("grouped_linear_fp8: this GPU has no products of 8-bit floats")


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] as float8_e4m3fn of the same shape, and scales [...] in float32: what `reference.quantize` gives.

    Raises KernelError for what is not bf16, fp16 or fp32.
    """
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise KernelError(f"quantize_rows: {x.dtype}, and bfloat16, float16 and float32 are supported")
    require_gpu("quantize_rows", x.device)
    x = x.contiguous()
    values = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    if x.numel():
        width = x.shape[-1]
        block = min(4096, triton.next_power_of_2(width))
        quantize_kernel[(scale.numel(),)](x, values, scale, width, GREATEST, block, num_warps=max(1, block // 512))
    return values, scale


@triton.jit
def quantize_kernel(  # type: ignore[no-untyped-def]
    x_ptr, values_ptr, scale_ptr, D, GREATEST: tl.constexpr, BLOCK_D: tl.constexpr
):
    """See `quantize_rows`: a program has one row, which it reads twice, the second time from a cache."""
    row = tl.program_id(0).to(tl.int64)
    most_D = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        column_D = start + tl.arange(0, BLOCK_D)
        x_D = tl.load(x_ptr + row * D + column_D, column_D < D, other=0.0).to(tl.float32)
        most_D = tl.maximum(most_D, tl.abs(x_D))
    scale = tl.maximum(tl.div_rn(tl.max(most_D, 0), GREATEST), 1e-12)
    tl.store(scale_ptr + row, scale)
    for start in range(0, D, BLOCK_D):
        column_D = start + tl.arange(0, BLOCK_D)
        x_D = tl.load(x_ptr + row * D + column_D, column_D < D, other=0.0).to(tl.float32)
        x_D = tl.minimum(tl.maximum(tl.div_rn(x_D, scale), -GREATEST), GREATEST)
        tl.store(values_ptr + row * D + column_D, x_D.to(values_ptr.dtype.element_ty), column_D < D)
