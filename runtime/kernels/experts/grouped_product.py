"""The kernel of grouped products, with what may be fused into it, and its tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..choice import interpreted, kernels_in_use
from ..gpu import require_gpu
from ..language import tl, triton
from ..row_kernel import KernelError
from ..tuning import Key, Tile, Way, tile
from .grouped_loop import accumulate, find_tile, list_tiles_kernel, rows_to_read

SUPPORTED = (torch.bfloat16, torch.float16, torch.float32)


def blocks(warps: int, stages: int, shape: tuple[int, int, int], tma: bool, flat: bool = False) -> Tile:
    """A tile of `shape` rows, columns and inner indices. tma: copied by the TMA unit, of Hopper and later. flat: a
    program for each multiprocessor, which goes on with loads of its next tile while it writes one.

    None has warps that only load: Triton 3.6 then halves a tile's rows, but not the box of a descriptor made on the
    CPU, and the TMA unit writes twice what there is room for.
    """
    m, n, k = shape
    options = {"GROUP": 8, "TMA": int(tma), "FLAT": int(flat)}
    return tile(warps, stages, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, **options)


MANY_ROWS = 96  # of an expert, in the mean

# Tiles by the rows that an expert has, the likeliest best first.
MANY = (
    blocks(8, 3, (128, 256, 64), tma=True, flat=True),
    blocks(8, 4, (128, 256, 64), tma=True),
    blocks(8, 3, (128, 256, 64), tma=True),
    blocks(8, 3, (256, 128, 64), tma=True),
    blocks(8, 2, (128, 256, 128), tma=True),
    blocks(4, 3, (128, 128, 64), tma=True),
    blocks(8, 4, (128, 128, 64), tma=True, flat=True),
    blocks(8, 3, (128, 256, 64), tma=False),
    blocks(4, 3, (128, 128, 64), tma=False),
    blocks(8, 3, (128, 128, 32), tma=False),
)
SOME = (
    blocks(4, 4, (64, 128, 64), tma=True),
    blocks(4, 3, (64, 256, 64), tma=True),
    blocks(4, 4, (64, 128, 64), tma=False),
)
FEW = (
    blocks(4, 5, (16, 64, 128), tma=True),
    blocks(4, 4, (16, 128, 128), tma=True),
    blocks(4, 4, (32, 128, 64), tma=True),
    blocks(4, 4, (16, 64, 128), tma=False),
    blocks(4, 4, (16, 128, 64), tma=False),
)
SINGLE = (blocks(8, 3, (128, 128, 32), tma=False), blocks(4, 2, (64, 64, 32), tma=False))  # of fp32
ODD = (blocks(8, 2, (128, 64, 32), tma=False), blocks(4, 2, (64, 64, 32), tma=False))  # rows that lie unaligned


def product_tiles(rows: int, experts: int) -> tuple[Tile, ...]:
    """Tiles for `rows` among `experts`, those that fit the mean first."""
    mean = rows / experts
    return MANY + SOME[:1] if mean > MANY_ROWS else SOME + FEW + MANY[5:6] if mean > 24 else FEW + SOME


def gather_rows(x_TD: Tensor, order_R: Tensor, choices: int) -> Tensor:
    """Each choice's token, [R, D]."""
    return x_TD.index_select(0, order_R // choices)


def rows_first(x_TD: Tensor, rows: int, experts: int) -> bool:
    """Whether tokens are copied to their rows before products over rows: experts have many, and the TMA unit loads
    those faster than it takes to copy them. Products over tokens and columns alone gather as they load."""
    return rows > MANY_ROWS * experts and x_TD.dtype != torch.float32 and aligned(x_TD) and has_tma(x_TD.device)


def fitting(tiles: Sequence[Tile], copied: Sequence[Tensor], gathered: Sequence[Tensor] = ()) -> list[Way]:
    """Those of some tiles that can be taken for such operands. The TMA unit copies whole tiles, and gathers nothing."""
    if copied[0].dtype == torch.float32:
        return list(SINGLE)
    if not all(map(aligned, (*copied, *gathered))):
        return list(ODD)
    tma = has_tma(copied[0].device)
    return [way for way in tiles if tma or not way["TMA"]]


@dataclass(frozen=True)
class Gathered(Way):
    """Tokens are copied to where their choices are first, so that the TMA unit can load the product's rows."""

    tile: Tile = MANY[0]


@dataclass(frozen=True, eq=False)
class Product:
    """Each row of x times its expert's weight: [R, N]. All that is not None is part of the same kernel.

    x: [R, K], sorted by expert; or with `choices` [T, K], and row r is token order_R[r] // choices. weight: [X, N, K],
    or flipped [X, K, N]. more: a second pair of the same shapes, whose product is added. bias: [X, N]. factor: [R], by
    choice: row r is multiplied with factor[order_R[r]]. placed: row r is written to row order_R[r]. x_scale: by row of
    x, and weight_scale [X, N]: of quantised operands. dtype: of the result, that of x when None. inexact: how many
    products of fp8 numbers the tensor cores sum by themselves, None for all.
    """

    x: Tensor
    weight: Tensor
    offsets_X: Tensor
    order_R: Tensor | None = None
    choices: int = 0
    flipped: bool = False
    more: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    factor: Tensor | None = None
    placed: bool = False
    x_scale: Tensor | None = None
    weight_scale: Tensor | None = None
    dtype: torch.dtype | None = None
    inexact: int | None = None

    @property
    def rows(self) -> int:
        return self.order_R.shape[0] if self.choices and self.order_R is not None else self.x.shape[0]

    @property
    def columns(self) -> int:
        return self.weight.shape[2 if self.flipped else 1]

    @property
    def key(self) -> Key:
        options = (self.flipped, self.choices > 0, self.placed, self.factor is not None, self.more is not None)
        return product_key(self.x, self.rows, self.weight.shape[0], self.columns, *options)

    def ways(self) -> list[Way]:
        copied = [self.weight, *(self.more or ())]
        tiles = product_tiles(self.rows, self.weight.shape[0])
        if not self.choices:
            return fitting(tiles, [*copied, self.x])
        ways = fitting(tiles, copied, [self.x])
        return ways + [Gathered(f"gathered, {t.name}", t) for t in ways[:3] if isinstance(t, Tile) and t["TMA"]]

    def gathered(self) -> Product:
        """The same with a row of x for each choice."""
        assert self.order_R is not None
        return replace(self, x=gather_rows(self.x, self.order_R, self.choices), choices=0)


def product_key(x: Tensor, rows: int, experts: int, columns: int, *options: bool) -> Key:
    """What the choice of a tile depends on: rows to a power of two, the other sizes, dtypes, what is fused."""
    dtype = str(x.dtype).removeprefix("torch.")
    return (triton.next_power_of_2(rows), experts, columns, x.shape[-1], dtype, precision(x.dtype), *options)


def launch_product(way: Tile | Gathered, call: Product) -> Tensor:
    """[R, N] by the kernel, with tiles of this kind."""
    if isinstance(way, Gathered):
        return launch_product(way.tile, call.gathered())
    rows, columns, inner = call.rows, call.columns, call.x.shape[1]
    y_RN = torch.empty(rows, columns, dtype=call.dtype or call.x.dtype, device=call.x.device)
    if not rows:
        return y_RN
    x2, weight2 = call.more or (None, None)
    tma_x = bool(way["TMA"]) and not call.choices
    tiles, slots = list_tiles(call.offsets_X, rows, way)
    product_kernel[grid(way, slots, columns, call.x.device)](
        rows_operand(call.x, way, tma_x), weight_operand(call.weight, way, call.flipped),
        x2 if x2 is None else rows_operand(x2, way, tma_x),
        weight2 if weight2 is None else weight_operand(weight2, way, call.flipped),
        y_RN, call.bias, tiles, call.order_R, call.factor, call.x_scale, call.weight_scale,
        slots, columns, inner, call.choices,
        call.x.stride(0), *call.weight.stride()[:2],
        0 if x2 is None else x2.stride(0), *((0, 0) if weight2 is None else weight2.stride()[:2]),
        FLIPPED=call.flipped, GATHER=call.choices > 0, PLACED=call.placed, TMA_X=tma_x,
        EVEN_K=inner % way["BLOCK_K"] == 0, PRECISION=precision(call.x.dtype),
        INEXACT=call.inexact and min(call.inexact, way["BLOCK_K"]),
        **way.options,
    )  # fmt: skip
    return y_RN


@triton.jit
def product_kernel(  # type: ignore[no-untyped-def]
    x, weight, x2, weight2, y_ptr, bias_ptr, tiles_ptr, order_ptr, factor_ptr, x_scale_ptr, weight_scale_ptr,
    S, N, K, choices, x_stride, stride_X, stride, x2_stride, stride2_X, stride2,
    FLIPPED: tl.constexpr, GATHER: tl.constexpr, PLACED: tl.constexpr, TMA_X: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, INEXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """See `Product`."""
    columns = tl.cdiv(N, BLOCK_N)
    count = tl.load(tiles_ptr + 3 * S) * columns
    for number in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=FLAT):
        expert, row, end, column = find_tile(number, tiles_ptr, S, columns, GROUP)
        column *= BLOCK_N
        read_M = rows_to_read(row, end, order_ptr, choices, GATHER, BLOCK_M)
        sum_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        sum_MN = accumulate(
            sum_MN, x, row, read_M, x_stride, weight, expert, column, N, K, stride_X, stride,
            FLIPPED, TMA_X, TMA, EVEN_K, BLOCK_N, BLOCK_K, PRECISION, INEXACT,
        )  # fmt: skip
        if x2 is not None:
            sum_MN = accumulate(
                sum_MN, x2, row, read_M, x2_stride, weight2, expert, column, N, K, stride2_X, stride2,
                FLIPPED, TMA_X, TMA, EVEN_K, BLOCK_N, BLOCK_K, PRECISION, INEXACT,
            )  # fmt: skip
        row_M, column_N = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
        of_expert_N = expert.to(tl.int64) * N + column_N
        if x_scale_ptr is not None:
            sum_MN *= tl.load(x_scale_ptr + read_M)[:, None]
            sum_MN *= tl.load(weight_scale_ptr + of_expert_N, column_N < N, other=0.0)[None, :]
        if bias_ptr is not None:
            sum_MN += tl.load(bias_ptr + of_expert_N, column_N < N, other=0.0).to(tl.float32)[None, :]
        to_M = row_M
        if order_ptr is not None:
            choice_M = tl.load(order_ptr + row_M, row_M < end, other=0)
            if factor_ptr is not None:
                sum_MN *= tl.load(factor_ptr + choice_M).to(tl.float32)[:, None]
            if PLACED:
                to_M = choice_M
        place_MN = y_ptr + to_M.to(tl.int64)[:, None] * N + column_N[None, :]
        tl.store(place_MN, sum_MN.to(y_ptr.dtype.element_ty), (row_M < end)[:, None] & (column_N < N)[None, :])


# --- what launches share


def list_tiles(offsets_X: Tensor, rows: int, way: Tile) -> tuple[Tensor, int]:
    """The tiles of so many rows, as `find_tile` reads them, and as many slots as there can be tiles, wherever the
    experts' rows end."""
    experts, height = offsets_X.shape[0], way["BLOCK_M"]
    slots = rows // height + min(experts, rows)
    tiles = torch.empty(3 * slots + 1, dtype=torch.int32, device=offsets_X.device)
    block_x = triton.next_power_of_2(experts)
    block_s = max(1, min(128, 8192 // block_x))
    list_tiles_kernel[(triton.cdiv(slots, block_s),)](
        offsets_X, tiles, experts, slots, BLOCK_X=block_x, BLOCK_S=block_s, BLOCK_M=height
    )
    return tiles, slots


def grid(way: Tile, slots: int, columns: int, device: torch.device) -> tuple[int]:
    """A program for each tile that there can be; those without one leave at once."""
    tiles = slots * triton.cdiv(columns, way["BLOCK_N"])
    return (min(tiles, multiprocessors(device)) if way["FLAT"] else tiles,)


def rows_operand(x_RK: Tensor, way: Tile, tma: bool) -> object:
    """What a kernel is given to load rows from."""
    return descriptor(x_RK, (way["BLOCK_M"], way["BLOCK_K"])) if tma else x_RK


def weight_operand(weight: Tensor, way: Tile, flipped: bool = False) -> object:
    """What a kernel is given to load an expert's weight from."""
    block = (way["BLOCK_K"], way["BLOCK_N"]) if flipped else (way["BLOCK_N"], way["BLOCK_K"])
    return descriptor(weight, (1, *block)) if way["TMA"] else weight


def descriptor(tensor: Tensor, block: Sequence[int]) -> object:
    """The same tensor for the TMA unit, copied in blocks of this shape."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def aligned(tensor: Tensor) -> bool:
    """Whether its rows lie in one piece each, and begin at multiples of 16 bytes."""
    size = tensor.element_size()
    even = all(stride > 0 and stride * size % 16 == 0 for stride in tensor.stride()[:-1])
    return even and tensor.stride(-1) == 1 and tensor.data_ptr() % 16 == 0


def has_tma(device: torch.device) -> bool:
    """Whether there is a TMA unit; there is where Triton interprets."""
    return _capability(device.index or 0) >= 9 if device.type == "cuda" else interpreted()


@cache
def _capability(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]


def multiprocessors(device: torch.device) -> int:
    """How many programs run at once, at least; few where Triton interprets, so that they take several tiles."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def precision(dtype: torch.dtype) -> str:
    """How products of float32 are computed: as torch has been told to."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


def in_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied where its last axis does not lie in one piece."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def takes(x: Tensor) -> bool:
    """Whether kernels multiply such rows: they are in use, and know the dtype."""
    known = (
        SUPPORTED if not interpreted() else (torch.float16, torch.float32)
    )  # interpreted, products of bf16 are wrong
    return x.dtype in known and kernels_in_use(x.device)


def takes_grouped_mm(*tensors: Tensor) -> bool:
    """Whether torch's own kernel is a candidate: bf16 on Hopper and later, every row a multiple of 16 bytes."""
    return all(
        t.is_cuda and t.dtype == torch.bfloat16 and t.shape[-1] % 8 == 0 and aligned(t) and has_tma(t.device)
        for t in tensors
    )


def torch_product(x_RK: Tensor, weight: Tensor, offsets_X: Tensor, flipped: bool = False) -> Tensor:
    """The product alone, by torch."""
    return F.grouped_mm(x_RK, weight if flipped else weight.transpose(-2, -1), offs=offsets_X)


def check_product(operation: str, x: Tensor, weight: Tensor, offsets_X: Tensor) -> None:
    """Raises KernelError unless x is [rows, D], weight [X, F, D] of the same dtype, offsets_X int32 [X]."""
    require_gpu(operation, x.device)
    if x.dtype not in SUPPORTED:
        kinds = ", ".join(str(d).removeprefix("torch.") for d in SUPPORTED)
        raise KernelError(f"{operation}: rows are {x.dtype}, and the kernels take {kinds}")
    if weight.ndim != 3 or x.ndim != 2 or weight.shape[2] != x.shape[1] or 0 in weight.shape:
        raise KernelError(f"{operation}: rows {list(x.shape)} do not fit a weight {list(weight.shape)}: [X, F, D]")
    if offsets_X.shape != weight.shape[:1] or offsets_X.dtype != torch.int32:
        raise KernelError(f"{operation}: offsets are {offsets_X.dtype} {list(offsets_X.shape)}, not int32 [X]")
    if not x.device == weight.device == offsets_X.device:
        raise KernelError(f"{operation}: tensors are on {x.device}, {weight.device} and {offsets_X.device}")
