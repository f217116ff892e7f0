"""How a product of 8-bit numbers is launched: descriptors or pointers, tiles, persistent programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..tuning import Tile, Way, run_best, tile
from .product_kernel import BLOCKS, ROWS, product_kernel

# Warps, stages, rows of x, rows of w, columns; rows of tiles that go together; whether programs stay for more tiles.
TILES = [
    tile(8, 3, BLOCK_N=128, BLOCK_F=256, BLOCK_D=128, GROUP=8, FLAT=1),
    tile(8, 4, BLOCK_N=128, BLOCK_F=256, BLOCK_D=128, GROUP=8, FLAT=1),
    tile(8, 4, BLOCK_N=128, BLOCK_F=256, BLOCK_D=128, GROUP=8, FLAT=0),
    tile(8, 3, BLOCK_N=256, BLOCK_F=128, BLOCK_D=128, GROUP=8, FLAT=1),
    tile(8, 4, BLOCK_N=128, BLOCK_F=128, BLOCK_D=128, GROUP=8, FLAT=1),
    tile(8, 4, BLOCK_N=128, BLOCK_F=128, BLOCK_D=128, GROUP=8, FLAT=0),
    tile(4, 4, BLOCK_N=128, BLOCK_F=128, BLOCK_D=128, GROUP=8, FLAT=0),
    tile(8, 3, BLOCK_N=128, BLOCK_F=256, BLOCK_D=128, GROUP=16, FLAT=0),
    tile(4, 4, BLOCK_N=64, BLOCK_F=128, BLOCK_D=128, GROUP=8, FLAT=0),
    tile(4, 4, BLOCK_N=64, BLOCK_F=64, BLOCK_D=128, GROUP=8, FLAT=0),
]


@dataclass(frozen=True)
class Product:
    """`x @ w.T` of x [N, D] and w [F, D] with its scales, as `product_kernel` has them."""

    kind: int
    x: Tensor
    w: Tensor
    x_scale: Tensor
    w_scale: Tensor
    dtype: torch.dtype
    zero: Tensor | None = None
    sums_F: Tensor | None = None
    bias_F: Tensor | None = None
    fast: bool = False

    def run(
        self, operation: str, library: Way | None = None, run_library: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """By the best of the kernel's tiles and, where it is given, the way of a library."""
        (N, D), F = self.x.shape, self.w.shape[0]
        if N == 0:
            return self.x.new_empty(0, F, dtype=self.dtype)
        key = (1 << (N - 1).bit_length(), F, D, str(self.x.dtype), str(self.w.dtype), str(self.dtype), self.fast)

        def run(way: Way) -> Tensor:
            if isinstance(way, Tile):
                return self._launch(way)
            assert run_library is not None
            return run_library()

        ways: list[Way] = [*self._tiles()]
        if library is not None:
            # Of 8-bit floats it is the likelier: Triton waits for each product before float32 takes it over.
            ways.insert(0 if self.kind in (ROWS, BLOCKS) else len(ways), library)
        return run_best(operation, key, ways, run)

    def _tiles(self) -> Sequence[Tile]:
        N, F = self.x.shape[0], self.w.shape[0]
        if N <= 64 or F <= 64:
            return TILES[-2:]
        large = [t for t in TILES if -(-N // t["BLOCK_N"]) * -(-F // t["BLOCK_F"]) >= 66]
        chosen = large or TILES[-2:]
        if self.kind == BLOCKS:  # a second tile of sums has to fit into registers
            return [t for t in chosen if t["BLOCK_N"] * t["BLOCK_F"] <= 128 * 128] or chosen
        return chosen

    def _launch(self, way: Tile) -> Tensor:
        (N, D), F = self.x.shape, self.w.shape[0]
        y_NF = torch.empty(N, F, dtype=self.dtype, device=self.x.device)
        x, w = (t if t.stride(-1) == 1 else t.contiguous() for t in (self.x, self.w))
        tma = _fits_tma(x) and _fits_tma(w)
        tiles = -(-N // way["BLOCK_N"]), -(-F // way["BLOCK_F"])
        grid = tiles[0] * tiles[1]
        if way["FLAT"]:
            grid = min(grid, _programs(x.device, way))
        operands: tuple[object, object] = (x, w)
        if tma:
            from triton.tools.tensor_descriptor import TensorDescriptor

            operands = (
                TensorDescriptor.from_tensor(x, [way["BLOCK_N"], way["BLOCK_D"]]),
                TensorDescriptor.from_tensor(w, [way["BLOCK_F"], way["BLOCK_D"]]),
            )
        product_kernel[(grid,)](  # type: ignore[index]
            *operands, y_NF, self.x_scale, self.w_scale, self.zero, self.sums_F, self.bias_F, x.stride(0), w.stride(0),
            N, F, D, *tiles, -(-D // 128), KIND=self.kind,
            IMPRECISE=0 if self.fast else min(128, way["BLOCK_D"]),
            UPCAST=not x.is_cuda and x.is_floating_point(), TMA=tma, STAGES=way.stages, **way.options,
        )  # fmt: skip
        return y_NF


def has_tensor_memory_access(device: torch.device) -> bool:
    """Whether blocks can be fetched by descriptors: on Hopper and later, and in Triton's interpreter."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def has_fp8(device: torch.device) -> bool:
    """Whether tensor cores take 8-bit floats: from compute capability 8.9 on. Triton's interpreter computes wider."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def _fits_tma(x: Tensor) -> bool:
    aligned = x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0
    return aligned and min(x.shape) > 0 and has_tensor_memory_access(x.device)


def _programs(device: torch.device, way: Tile) -> int:
    each = 1 if way["BLOCK_N"] * way["BLOCK_F"] > 128 * 128 else 2
    return each * _multiprocessors(device.index or 0) if device.type == "cuda" else 3


@cache
def _multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
