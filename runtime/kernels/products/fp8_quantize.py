"""To 8-bit floats with scales: by rows, by columns, by tiles of 1 x 128 and by blocks of 128 x 128."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reference import quantized as reference
from ...reference.quantized import BLOCK, LARGEST
from ..choice import kernels_in_use
from ..language import tl, triton
from ..operation import operation
from ..row_kernel import KernelError
from ..tuning import Tile, Way, run_best, tile
from .product import has_fp8

FLOATING = (torch.bfloat16, torch.float16, torch.float32)
_LEAST = tl.constexpr(reference.LEAST_FP8_SCALE)
_ROW_TILES = [tile(4, 1, BLOCK_D=4096), tile(8, 1, BLOCK_D=8192), tile(4, 1, BLOCK_D=2048), tile(8, 1, BLOCK_D=4096)]
_COLUMN_TILES = [
    tile(4, 1, BLOCK_N=64, BLOCK_D=64),
    tile(8, 1, BLOCK_N=128, BLOCK_D=64),
    tile(8, 1, BLOCK_N=64, BLOCK_D=128),
]
_PARTS = 64  # of the rows, whose largest numbers are found apart


def quantize_rows(x_ND: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [N, D] as values [N, D] in float8_e4m3fn or float8_e5m2 and float32 scales [N]: x is about `values * scale`.

    `scale = max(|row|) / largest`, at least 2 ** -100; values are rounded to the nearest even. Infinite numbers and
    what is not a number make the scale infinite, so that a product with that row shows them. No gradient flows. Raises
    KernelError for other dtypes and where the GPU has none.
    """
    if not _uses_kernels("quantize_rows", x_ND, dtype):
        return reference.quantize_fp8_rows(x_ND, dtype)
    return _rows(x_ND, dtype)


def quantize_columns(x_ND: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of the transpose: values [D, N] and scales [D]."""
    if not _uses_kernels("quantize_columns", x_ND, dtype):
        return reference.quantize_fp8_rows(x_ND.t(), dtype)
    return _columns(x_ND, dtype)


def quantize_tiles(x_ND: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [N, D] with a scale for 128 columns of a row: values [N, D], scales [N, ceil(D / 128)], which lie by columns
    (DeepSeek-V3, arXiv:2412.19437, section 3.3.2)."""
    if not _uses_kernels("quantize_tiles", x_ND, dtype):
        return reference.quantize_fp8_tiles(x_ND, dtype)
    values, scale_JN = _blocks(x_ND, dtype, 1)
    return values, scale_JN.t()


def quantize_blocks(w_FD: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """w [F, D] with a scale for a block of 128 x 128: values [F, D], scales [ceil(F / 128), ceil(D / 128)]."""
    if not _uses_kernels("quantize_blocks", w_FD, dtype):
        return reference.quantize_fp8_blocks(w_FD, dtype)
    return _blocks(w_FD, dtype, BLOCK)


def _uses_kernels(name: str, x: Tensor, dtype: torch.dtype) -> bool:
    if dtype not in LARGEST:
        raise KernelError(f"{name}: to float8_e4m3fn or float8_e5m2, not {dtype}")
    if x.ndim != 2 or 0 in x.shape[1:]:
        raise KernelError(f"{name}: x is {list(x.shape)}, and it takes [rows, columns]")
    if not kernels_in_use(x.device):
        return False
    if x.dtype not in FLOATING:
        raise KernelError(f"{name}: x is {x.dtype}, and it takes bfloat16, float16 and float32")
    if not has_fp8(x.device):
        raise KernelError(
            f"{name}: {torch.cuda.get_device_name(x.device)} has no 8-bit floats (compute capability 8.9)"
        )
    return True


# --- rows


def _rows_fake(x_ND: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(x_ND.shape, dtype=dtype, device=x_ND.device), x_ND.new_empty(x_ND.shape[0], dtype=torch.float32)


@operation("quantize_rows", _rows_fake)
def _rows(x_ND: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    N, D = x_ND.shape
    values_ND = torch.empty(N, D, dtype=dtype, device=x_ND.device)
    scale_N = torch.empty(N, dtype=torch.float32, device=x_ND.device)

    def run(way: Way) -> None:
        assert isinstance(way, Tile)
        if N:
            rows_kernel[(N,)](  # type: ignore[index]
                x_ND, values_ND, scale_N, x_ND.stride(0), D, LARGEST=LARGEST[dtype],
                **{**way.options, "BLOCK_D": min(way["BLOCK_D"], triton.next_power_of_2(D))},
            )  # fmt: skip

    run_best("quantize_rows", (1 << max(0, N - 1).bit_length(), D, str(x_ND.dtype), str(dtype)), _ROW_TILES, run)
    return values_ND, scale_N


@triton.jit
def _magnitude(x):  # type: ignore[no-untyped-def]
    """|x| in float32, infinite where x is not a number, which a maximum would pass over."""
    x = x.to(tl.float32)
    return tl.where(x == x, tl.abs(x), float("inf"))


@triton.jit
def _to_fp8(x, scale, LARGEST: tl.constexpr):  # type: ignore[no-untyped-def]
    """x over scale, kept within what the dtype can hold."""
    return tl.minimum(tl.maximum(tl.div_rn(x, scale), -LARGEST), LARGEST)


@triton.jit
def rows_kernel(x_ptr, y_ptr, scale_ptr, stride, D, LARGEST: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row a program. A row of one block is read once: the second load of the same addresses is the first's."""
    n = tl.program_id(0).to(tl.int64)
    most_D = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, D, BLOCK_D):
        d_D = start + tl.arange(0, BLOCK_D)
        most_D = tl.maximum(most_D, _magnitude(tl.load(x_ptr + n * stride + d_D, d_D < D, other=0.0)))
    scale = tl.maximum(tl.div_rn(tl.max(most_D, 0), LARGEST), _LEAST)
    tl.store(scale_ptr + n, scale)
    for start in range(0, D, BLOCK_D):
        d_D = start + tl.arange(0, BLOCK_D)
        x_D = tl.load(x_ptr + n * stride + d_D, d_D < D, other=0.0).to(tl.float32)
        tl.store(y_ptr + n * D + d_D, _to_fp8(x_D, scale, LARGEST).to(y_ptr.dtype.element_ty), d_D < D)


# --- columns


def _columns_fake(x_ND: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    N, D = x_ND.shape
    return torch.empty(D, N, dtype=dtype, device=x_ND.device), x_ND.new_empty(D, dtype=torch.float32)


@operation("quantize_columns", _columns_fake)
def _columns(x_ND: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    N, D = x_ND.shape
    values_DN = torch.empty(D, N, dtype=dtype, device=x_ND.device)
    scale_D = torch.empty(D, dtype=torch.float32, device=x_ND.device)

    def run(way: Way) -> None:
        assert isinstance(way, Tile)
        across, down = -(-D // way["BLOCK_D"]), -(-N // way["BLOCK_N"])
        parts = min(max(1, down), _PARTS)
        most_PD = torch.empty(parts, D, dtype=torch.float32, device=x_ND.device)
        most_kernel[across, parts](x_ND, most_PD, x_ND.stride(0), N, D, parts, **way.options)  # type: ignore[index]
        transpose_kernel[across, max(1, down)](  # type: ignore[index]
            x_ND, most_PD, values_DN, scale_D, x_ND.stride(0), N, D, parts,
            LARGEST=LARGEST[dtype], PARTS=triton.next_power_of_2(parts), **way.options,
        )  # fmt: skip

    run_best("quantize_columns", (1 << max(0, N - 1).bit_length(), D, str(x_ND.dtype), str(dtype)), _COLUMN_TILES, run)
    return values_DN, scale_D


@triton.jit
def most_kernel(x_ptr, most_ptr, stride, N, D, parts, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest magnitude of each column over every `parts`-th block of rows: [parts, D]."""
    d_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    most_ND = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(tl.program_id(1) * BLOCK_N, N, parts * BLOCK_N):
        n_N = start + tl.arange(0, BLOCK_N)
        mask_ND = (n_N[:, None] < N) & (d_D[None, :] < D)
        x_ND = tl.load(x_ptr + n_N.to(tl.int64)[:, None] * stride + d_D[None, :], mask_ND, other=0.0)
        most_ND = tl.maximum(most_ND, _magnitude(x_ND))
    tl.store(most_ptr + tl.program_id(1) * D + d_D, tl.max(most_ND, 0), d_D < D)


@triton.jit
def transpose_kernel(  # type: ignore[no-untyped-def]
    x_ptr, most_ptr, y_ptr, scale_ptr, stride, N, D, parts,
    LARGEST: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """y [D, N] of x [N, D], a block a program, each of which finds its columns' scales again."""
    d_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    n_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    p_P = tl.arange(0, PARTS)
    most_PD = tl.load(
        most_ptr + p_P[:, None] * D + d_D[None, :], (p_P[:, None] < parts) & (d_D[None, :] < D), other=0.0
    )
    scale_D = tl.maximum(tl.div_rn(tl.max(most_PD, 0), LARGEST), _LEAST)
    if tl.program_id(1) == 0:
        tl.store(scale_ptr + d_D, scale_D, d_D < D)
    mask_ND = (n_N[:, None] < N) & (d_D[None, :] < D)
    x_ND = tl.load(x_ptr + n_N.to(tl.int64)[:, None] * stride + d_D[None, :], mask_ND, other=0.0).to(tl.float32)
    y_ND = _to_fp8(x_ND, scale_D[None, :], LARGEST).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + d_D.to(tl.int64)[None, :] * N + n_N[:, None], y_ND, mask_ND)


# --- tiles and blocks


def _blocks_fake(x_ND: Tensor, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor]:
    N, D = x_ND.shape
    J = -(-D // BLOCK)
    shape = (J, N) if rows == 1 else (-(-N // BLOCK), J)
    return torch.empty(N, D, dtype=dtype, device=x_ND.device), x_ND.new_empty(shape, dtype=torch.float32)


@operation("quantize_blocks", _blocks_fake)
def _blocks(x_ND: Tensor, dtype: torch.dtype, rows: int) -> tuple[Tensor, Tensor]:
    """Values [N, D] and scales: [J, N] of tiles of one row, [I, J] of square blocks."""
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    N, D = x_ND.shape
    values_ND, scale = torch.empty(N, D, dtype=dtype, device=x_ND.device), _blocks_fake(x_ND, dtype, rows)[1]
    block = 32 if rows == 1 else BLOCK
    if N:
        blocks_kernel[-(-D // BLOCK), -(-N // block)](  # type: ignore[index]
            x_ND, values_ND, scale, x_ND.stride(0), N, D, LARGEST=LARGEST[dtype], SQUARE=rows != 1,
            BLOCK_N=block, BLOCK_D=BLOCK, num_warps=4 if rows == 1 else 8,
        )  # fmt: skip
    return values_ND, scale


@triton.jit
def blocks_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, scale_ptr, stride, N, D,
    LARGEST: tl.constexpr, SQUARE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    d_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_ND = (n_N[:, None] < N) & (d_D[None, :] < D)
    x_ND = tl.load(x_ptr + n_N.to(tl.int64)[:, None] * stride + d_D[None, :], mask_ND, other=0.0).to(tl.float32)
    most_N = tl.max(_magnitude(x_ND), 1)
    if SQUARE:
        scale = tl.maximum(tl.div_rn(tl.max(most_N, 0), LARGEST), _LEAST)
        tl.store(scale_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), scale)
        y_ND = _to_fp8(x_ND, scale, LARGEST)
    else:
        scale_N = tl.maximum(tl.div_rn(most_N, LARGEST), _LEAST)
        tl.store(scale_ptr + tl.program_id(0).to(tl.int64) * N + n_N, scale_N, n_N < N)
        y_ND = _to_fp8(x_ND, scale_N[:, None], LARGEST)
    tl.store(y_ptr + n_N.to(tl.int64)[:, None] * D + d_D[None, :], y_ND.to(y_ptr.dtype.element_ty), mask_ND)
