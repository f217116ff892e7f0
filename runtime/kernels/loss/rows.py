"""Cross entropy of rows of logits, and their gradient in their place.

Logits lie in parts, each some columns of all rows: [R, V] is the parts side by side. All but the last lie one behind
the other from one address on, the last lies elsewhere, so that some may use memory that is free for now. A part is
`stride` wide in memory, which is its width rounded up to ALIGNED elements; what is beyond its width is never used.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..device import on_its_device
from ..language import tl, triton
from ..tuning import Key, Tile, tile

ALIGNED = 16  # elements: rows that start so are read 16 bytes at a time, and are what cuBLAS is fast with

# One program a row. A row of 100k logits is read twice, the second time from the L2 cache if few rows are under way.
ROW_TILES = (
    tile(32, 1, BLOCK=16384),
    tile(16, 1, BLOCK=8192),
    tile(16, 2, BLOCK=8192),
    tile(16, 1, BLOCK=16384),
    tile(8, 1, BLOCK=4096),
    tile(8, 2, BLOCK=4096),
)
BLOCK_TILES = (tile(4, 1, BLOCK=2048), tile(8, 1, BLOCK=4096), tile(4, 1, BLOCK=1024))


@dataclass(frozen=True)
class LossOptions:
    """What `linear_losses` is told beside tensors. softcap: None for none."""

    z: float = 0.0
    smoothing: float = 0.0
    softcap: float | None = None
    scale: float = 1.0
    ignored: int = -100

    @property
    def constants(self) -> tuple[float, float, float, float]:
        """For kernels, which are compiled for them."""
        return float(self.z), float(self.smoothing), float(self.softcap or 0.0), float(self.scale)


@dataclass(frozen=True)
class Parts:
    """Logits of R rows. main: 1-D, holds all parts but the last, one behind the other; last: 1-D, holds the last.

    widths: of the parts in columns; all but the first are alike, and then multiples of ALIGNED. None is zero.
    """

    rows: int
    widths: tuple[int, ...]
    main: Tensor
    last: Tensor

    def __getitem__(self, i: int) -> Tensor:
        """The logits [R, width] of one part, a view."""
        stride = aligned(self.widths[i])
        at, flat = 0, self.last
        if i < len(self.widths) - 1:
            at, flat = self.rows * sum(map(aligned, self.widths[:i])), self.main
        return flat[at : at + self.rows * stride].view(self.rows, stride)[:, : self.widths[i]]


def aligned(width: int) -> int:
    """How wide a part of that many columns is in memory."""
    return -(-width // ALIGNED) * ALIGNED


def in_one_part(flat: Tensor, rows: int, width: int) -> Parts:
    """Logits [rows, width] in the memory of `flat`, which has rows * aligned(width) elements or more."""
    return Parts(rows, (width,), flat, flat)


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """The hyperbolic tangent, with a series near zero, where the quotient has no digits left."""
    small = tl.abs(x)
    grown = tl.exp(-2.0 * small)
    far = (1.0 - grown) / (1.0 + grown)
    square = x * x
    near = small * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0))))
    y = tl.where(small < 0.02, near, far)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def shaped(product, SOFTCAP: tl.constexpr, SCALE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The logit of a product, scaled and capped."""
    logit = product * SCALE
    if SOFTCAP != 0.0:
        logit = SOFTCAP * tanh(logit / SOFTCAP)
    return logit


@triton.jit
def gradient_of_product(  # type: ignore[no-untyped-def]
    logit, column, target, lse, V, Z: tl.constexpr, SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, SCALE: tl.constexpr
):
    """What a row's loss changes by with the product behind one of its logits."""
    p = tl.exp(logit - lse)
    if Z != 0.0:
        p *= 1.0 + 2.0 * Z * lse
    change = p - (1.0 - SMOOTHING) * (column == target).to(p.dtype)
    if SMOOTHING != 0.0:
        change -= SMOOTHING / tl.cast(V, p.dtype)
    if SOFTCAP != 0.0:
        capped = logit / SOFTCAP
        change *= 1.0 - capped * capped
    return change * SCALE


@triton.jit
def row_of_part(main_ptr, last_ptr, row, part, R, PARTS, first_stride, other_stride):  # type: ignore[no-untyped-def]
    """Where a row of a part begins."""
    before = R.to(tl.int64) * (first_stride + (part - 1) * other_stride.to(tl.int64))
    stride = tl.where(part == 0, first_stride, other_stride)
    start_ptr = tl.where(part == PARTS - 1, last_ptr, main_ptr + tl.where(part == 0, 0, before))
    return start_ptr + row.to(tl.int64) * stride


@triton.jit(do_not_specialize=["R", "PARTS"])
def loss_rows_kernel(  # type: ignore[no-untyped-def]
    main_ptr, last_ptr, target_ptr, factor_ptr, loss_ptr, lse_ptr,
    R, PARTS, V, first_width, first_stride, other_stride,
    GRADIENT: tl.constexpr, Z: tl.constexpr, SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, SCALE: tl.constexpr,
    IGNORED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A row's loss and logsumexp; with GRADIENT its logits become the loss's gradient times the factor."""
    row = tl.program_id(0)
    target = tl.load(target_ptr + row)
    counts = target != IGNORED
    # Read before the first reduction, whose barrier keeps it before all that is written below.
    part = tl.where(target < first_width, 0, 1 + (target - first_width) // other_stride).to(tl.int32)
    column = tl.where(part == 0, target, (target - first_width) % other_stride)
    start_ptr = row_of_part(main_ptr, last_ptr, row, part, R, PARTS, first_stride, other_stride)
    is_there = counts & (target >= 0) & (target < V)
    chosen = shaped(tl.load(start_ptr + column, is_there, other=float("nan")).to(WIDE), SOFTCAP, SCALE)
    parts = tl.where(counts, PARTS, 0)
    most = tl.full((), float("-inf"), WIDE)
    total_B = tl.zeros((BLOCK,), WIDE)
    logits_B = tl.zeros((BLOCK,), WIDE)
    for part in range(parts):
        start_ptr = row_of_part(main_ptr, last_ptr, row, part, R, PARTS, first_stride, other_stride)
        stride = tl.where(part == 0, first_stride, other_stride)
        width = tl.where(part == 0, first_width, other_stride)
        for first in tl.range(0, stride, BLOCK, num_stages=STAGES):
            column_B = first + tl.arange(0, BLOCK)
            product_B = tl.load(start_ptr + column_B, column_B < stride, other=0.0).to(WIDE)
            inside_B = column_B < width
            logit_B = tl.where(inside_B, shaped(product_B, SOFTCAP, SCALE), float("-inf"))
            if SMOOTHING != 0.0:
                logits_B += tl.where(inside_B, logit_B, 0.0)
            higher = tl.maximum(most, tl.max(logit_B, 0))
            shift = tl.where(higher == float("-inf"), 0.0, higher)
            total_B = total_B * tl.exp(most - shift) + tl.exp(logit_B - shift)
            most = higher
    lse = tl.where(most == float("-inf"), 0.0, most) + tl.log(tl.sum(total_B, 0))

    loss = lse - chosen
    if SMOOTHING != 0.0:
        loss = (1.0 - SMOOTHING) * loss + SMOOTHING * (lse - tl.sum(logits_B, 0) / V)
    if Z != 0.0:
        loss += Z * lse * lse
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0))
    # Of a target that is not a column all is NaN: a gradient that looks right would hide the mistake.
    lse = tl.where(is_there, lse, float("nan"))
    tl.store(lse_ptr + row, tl.where(counts, lse, 0.0))

    if GRADIENT:
        factor = tl.load(factor_ptr).to(WIDE)
        before = 0
        for part in range(PARTS):
            start_ptr = row_of_part(main_ptr, last_ptr, row, part, R, PARTS, first_stride, other_stride)
            stride = tl.where(part == 0, first_stride, other_stride)
            read = tl.where(counts, stride, 0)
            for first in tl.range(0, stride, BLOCK, num_stages=STAGES):
                column_B = first + tl.arange(0, BLOCK)
                product_B = tl.load(start_ptr + column_B, column_B < read, other=0.0).to(WIDE)
                logit_B = shaped(product_B, SOFTCAP, SCALE)
                change_B = gradient_of_product(logit_B, before + column_B, target, lse, V, Z, SMOOTHING, SOFTCAP, SCALE)
                change_B = tl.where(counts, change_B * factor, 0.0)
                tl.store(start_ptr + column_B, change_B, column_B < stride)
            before += tl.where(part == 0, first_width, other_stride)


@triton.jit(do_not_specialize=["before"])
def gradient_kernel(  # type: ignore[no-untyped-def]
    logits_ptr, target_ptr, factor_ptr, lse_ptr, V, before, stride,
    Z: tl.constexpr, SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, SCALE: tl.constexpr,
    IGNORED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some columns of logits, those from `before` on, become the gradient of each row's loss times its factor."""
    row = tl.program_id(0)
    column_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(target_ptr + row)
    counts = target != IGNORED
    lse, factor = tl.load(lse_ptr + row), tl.load(factor_ptr + row).to(WIDE)
    place_B = logits_ptr + row.to(tl.int64) * stride + column_B
    product_B = tl.load(place_B, column_B < tl.where(counts, stride, 0), other=0.0).to(WIDE)
    logit_B = shaped(product_B, SOFTCAP, SCALE)
    change_B = gradient_of_product(logit_B, before + column_B, target, lse, V, Z, SMOOTHING, SOFTCAP, SCALE)
    tl.store(place_B, tl.where(counts, change_B * factor, 0.0), column_B < stride)


@triton.jit
def scale_kernel(values_ptr, by_ptr, over_ptr, count, BLOCK: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values times `by / over`, in their place; nothing is read or written where that is 1."""
    factor = (tl.load(by_ptr).to(WIDE) / tl.load(over_ptr).to(WIDE)).to(WIDE)
    if factor != 1.0:
        for block in range(tl.program_id(0), tl.cdiv(count, BLOCK), tl.num_programs(0)):
            place_B = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
            value_B = tl.load(values_ptr + place_B, place_B < count, other=0.0).to(WIDE)
            tl.store(values_ptr + place_B, value_B * factor, place_B < count)


def loss_rows(
    parts: Parts, target_N: Tensor, factor: Tensor | None, options: LossOptions, way: Tile
) -> tuple[Tensor, Tensor]:
    """Losses and logsumexps of rows [R] (fp32, fp64 of fp64) at targets (int64). A row's are those of its logits alone.

    With a factor (one element) the logits become the gradient of the losses' sum times it.
    """
    made = torch.empty(2, parts.rows, dtype=wide_of(parts.last.dtype), device=target_N.device)
    loss_N, lse_N = made.unbind()
    if parts.rows:
        first, other = parts.widths[0], parts.widths[-1]
        loss_rows_kernel[(parts.rows,)](
            parts.main, parts.last, target_N, loss_N if factor is None else factor, loss_N, lse_N,
            parts.rows, len(parts.widths), sum(parts.widths), first, aligned(first), aligned(other),
            factor is not None, *options.constants, options.ignored, _triton_of(loss_N.dtype), way["BLOCK"], way.stages,
            num_warps=way.warps,
        )  # fmt: skip
    return loss_N, lse_N


def gradient_in_place(
    logits_NC: Tensor, before: int, vocabulary: int, target_N: Tensor, lse_N: Tensor, factor_N: Tensor,
    options: LossOptions, way: Tile,
) -> None:  # fmt: skip
    """Logits of columns `before` .. `before + C` become the gradient of each row's loss times the row's factor.

    Rows of logits are aligned(C) elements apart.
    """
    rows, columns = logits_NC.shape
    assert logits_NC.stride() == (aligned(columns), 1) or rows <= 1, logits_NC.stride()
    if rows:
        gradient_kernel[(rows, triton.cdiv(columns, way["BLOCK"]))](
            logits_NC, target_N, factor_N, lse_N, vocabulary, before, aligned(columns),
            *options.constants, options.ignored, _triton_of(lse_N.dtype), way["BLOCK"], num_warps=way.warps,
        )  # fmt: skip


@on_its_device
def scale_in_place(values: Tensor, by: Tensor, over: Tensor) -> None:
    """`values *= by / over`, which are scalars on the device; takes no time to speak of where they are equal."""
    if values.numel():
        programs = min(triton.cdiv(values.numel(), 4096), 1056 if values.is_cuda else 3)
        wide = _triton_of(wide_of(values.dtype))
        scale_kernel[(programs,)](values, by, over, values.numel(), 4096, wide, num_warps=8)


def row_key(vocabulary: int, dtype: torch.dtype, options: LossOptions, gradient: bool) -> Key:
    """What the best tile of rows depends on."""
    return (vocabulary, str(dtype), options.softcap is not None, gradient)


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """What losses of such logits are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _triton_of(dtype: torch.dtype) -> object:
    return tl.float64 if dtype == torch.float64 else tl.float32
