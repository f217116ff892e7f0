"""Products of one to sixteen rows with a weight in 16, 8 or 4 bits, as decoding has them: bound by reading it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F_
from torch import Tensor

from ...reference.activation import gelu_tanh, silu
from ...reference.norm import rms_norm
from ...reference.quantized import Int8Rows, Weight, dequantize
from .. import flops
from ..choice import kernels_in_use
from ..gpu import require_gpu
from ..row_kernel import KernelError, _plain
from ..tuning import Tile, Way, run_best, tile
from .matvec_kernels import (
    AFTER,
    BEFORE,
    FLOAT,
    INT4,
    INT8,
    MAGIC,
    PLAIN,
    finish_kernel,
    gelu_tanh_gate,
    multiply_add_kernel,
    silu_gate,
    tensor_core_kernel,
)

MOST_ROWS = 16
PROGRAMS = 264  # two for each multiprocessor of an H100; a constant, so that results do not depend on the GPU
LEAST_SPAN = 512  # columns of a part
FINISH_BLOCK = 256
FLOATING = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Norm:
    """RMSNorm of x before the product: weight_D [D], `x / sqrt(mean(x²) + eps) * (offset + weight)`."""

    weight_D: Tensor
    eps: float = 1e-6
    offset: float = 0.0


@dataclass(frozen=True)
class Gate:
    """What joins a gate and its values: as Triton's `kernel(gate, up)` of float32 numbers, and in PyTorch."""

    name: str
    kernel: Callable[..., Any]
    reference: Callable[[Tensor, Tensor], Tensor]


SILU_GATE = Gate("silu", silu_gate, lambda gate, up: silu(gate) * up)
GELU_TANH_GATE = Gate("gelu_tanh", gelu_tanh_gate, lambda gate, up: gelu_tanh(gate) * up)
_gates: dict[str, Gate] = {}


def matvec(
    x: Tensor,
    weight: Weight,
    *,
    bias_F: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    up: Weight | None = None,
    gate: Gate | None = None,
    dtype: torch.dtype | None = None,
    invariant: bool = False,
    early: bool = False,
) -> Tensor:
    """`gate(norm(x) @ weight.T + bias, norm(x) @ up.T) + residual` [..., F] in one launch, of at most 16 rows.

    x: [..., D] bf16, fp16 or fp32. weight, and up where there is a gate: [F, D] in the dtype of x, or `Int8Rows`,
    `Int4Groups`, whose values never leave registers in full. bias_F [F], residual [..., F]: any floating dtype.
    dtype: of the result, x's if None. Sums are in float32, and nothing is rounded in between where rows are few.
    invariant: a row's result has the same bits whatever the number of rows, 1 to 16, and whatever is in the others.
    early: the kernel may begin to fetch its weights while the kernel before it still runs (programmatic dependent
    launch; Hopper and later). The weights must then have been written before that one began.
    Where kernels are not in use, the same in PyTorch. There is no gradient. Raises KernelError for other tensors.
    """
    _check(x, weight, bias_F, residual, norm, up, gate)
    if dtype is not None and not dtype.is_floating_point:
        raise _error(f"its result is floating, not {dtype}")
    x_ND = x.reshape(-1, x.shape[-1])
    F = weight.shape[0]
    kind = dtype or x.dtype
    residual_NF = None if residual is None else residual.reshape(-1, F)
    if not kernels_in_use(x.device):
        y_NF = _reference(x_ND, weight, bias_F, residual_NF, norm, up, gate, kind)
        return y_NF.reshape(*x.shape[:-1], F)
    values, scale, zero, group = _flat(weight)
    up_values, up_scale, up_zero, _ = (None, None, None, 0) if up is None else _flat(up)
    tensors = (x_ND, values, scale, zero, up_values, up_scale, up_zero, bias_F, residual_NF)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise _error("it has no gradient: call it under torch.no_grad()")
    if gate is not None:
        _gates[gate.name] = gate
    norm_D, eps, offset = (None, 0.0, 0.0) if norm is None else (norm.weight_D, norm.eps, norm.offset)
    call = (*tensors, norm_D, group, eps, offset, gate.name if gate else "", kind, invariant, early)
    run = _run if _plain([t for t in tensors if t is not None]) else _operation
    return run(*call).reshape(*x.shape[:-1], F)


# --- as an operation of torch


def _run(
    x_ND: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    up: Tensor | None,
    up_scale: Tensor | None,
    up_zero: Tensor | None,
    bias_F: Tensor | None,
    residual_NF: Tensor | None,
    norm_D: Tensor | None,
    group: int,
    eps: float,
    offset: float,
    gate: str,
    dtype: torch.dtype,
    invariant: bool,
    early: bool,
) -> Tensor:
    N, D = x_ND.shape
    F = weight.shape[0]
    if N == 0:
        return x_ND.new_empty(0, F, dtype=dtype)
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    if residual_NF is not None and residual_NF.stride(-1) != 1:
        residual_NF = residual_NF.contiguous()
    kind = FLOAT if scale is None else (INT4 if group else INT8)
    call = _Call(
        (x_ND, norm_D, weight, scale, zero, up, up_scale, up_zero, bias_F, residual_NF),
        (N, F, D), kind, group, eps, offset, _gates.get(gate), dtype, invariant,
        early and x_ND.is_cuda and torch.cuda.get_device_capability(x_ND.device) >= (9, 0),
    )  # fmt: skip
    bucket = 1 << (N - 1).bit_length()
    key = (bucket, F, D, kind, group, str(x_ND.dtype), gate, norm_D is not None, invariant)
    return run_best("matvec.forward", key, call.ways(), call.run)


@cache
def _register() -> Callable[..., Tensor]:
    operation = torch.library.custom_op("dskc::matvec", _run, mutates_args=())

    def fake(x_ND: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        dtype: torch.dtype = rest[-3]
        return x_ND.new_empty(x_ND.shape[0], weight.shape[0], dtype=dtype)

    operation.register_fake(fake)
    flops.register_flops("dskc::matvec", flops.matvec)
    return operation


_operation = _register()


@dataclass(frozen=True)
class _Call:
    """One product: its tensors in the order of the kernels' parameters, and what it is."""

    tensors: tuple[Tensor | None, ...]
    sizes: tuple[int, int, int]
    kind: int
    group: int
    eps: float
    offset: float
    gate: Gate | None
    dtype: torch.dtype
    invariant: bool
    early: bool

    def ways(self) -> Sequence[Way]:
        N, _, D = self.sizes
        if self.invariant:
            return [_dot_tile(self.kind, self.group)]
        dots = _dot_tiles(self.kind, self.group)
        ways: list[Way] = [*dots]
        if N == 1:
            widest = max(1024, 1 << (D - 1).bit_length())
            ways = [*(t for t in _sum_tiles(self.kind) if t["BLOCK_D"] <= widest), *dots[:2]]
        return [*ways, Way("torch linear")] if self.kind == FLOAT else ways

    def run(self, way: Way) -> Tensor:
        if not isinstance(way, Tile):
            return self._torch()
        N, F, _ = self.sizes
        y_NF = torch.empty(N, F, dtype=self.dtype, device=self._x.device)
        if way.name.startswith("sums"):
            self._multiply_add(way, y_NF)
        else:
            self._tensor_cores(way, y_NF)
        return y_NF

    @property
    def _x(self) -> Tensor:
        x = self.tensors[0]
        assert x is not None
        return x

    def _torch(self) -> Tensor:
        x, norm_D, weight, _, _, up, _, _, bias, residual = self.tensors
        assert x is not None and weight is not None
        norm = None if norm_D is None else Norm(norm_D, self.eps, self.offset)
        return _reference(x, weight, bias, residual, norm, up, self.gate, self.dtype)

    def _multiply_add(self, way: Tile, y_NF: Tensor) -> None:
        tensors = list(self.tensors)
        if self.kind == INT4:
            tensors[2], tensors[5] = (None if t is None else t.view(torch.int32) for t in (tensors[2], tensors[5]))
        norm = PLAIN if self.tensors[1] is None else AFTER
        D = self.sizes[2]
        grid = (-(-self.sizes[1] // way["BLOCK_F"]),)
        multiply_add_kernel[grid](  # type: ignore[index]
            *tensors, y_NF, *_strides(tensors)[1:3], *self.sizes[1:], D // 8, D // (self.group or 1), MAGIC, self.eps,
            self.offset, **self._constants(norm),
            STAGES=way.stages, **way.options, **self._launch(),
        )  # fmt: skip

    def _tensor_cores(self, way: Tile, y_NF: Tensor) -> None:
        N, F, D = self.sizes
        programs, parts, span = -(-F // way["BLOCK_F"]), 1, D
        while programs * parts * 2 <= PROGRAMS and D // (parts * 2) >= LEAST_SPAN:
            parts *= 2
        if parts > 1:
            span = -(-D // (parts * way["BLOCK_D"])) * way["BLOCK_D"]
            parts = -(-D // span)
        weights = 1 if self.gate is None else 2
        norm = PLAIN
        if self.tensors[1] is not None:
            # The factor of the sums is taken out of them only where x times its weight cannot overflow.
            norm = BEFORE if parts > 1 or self.invariant or self._x.dtype == torch.float16 else AFTER
        partial = None
        if parts > 1:
            partial = torch.empty(parts, weights, MOST_ROWS, F, dtype=torch.float32, device=y_NF.device)
        tensor_core_kernel[programs, parts](  # type: ignore[index]
            *self.tensors, y_NF, *_strides(self.tensors), *self.sizes, self.eps, self.offset, partial, span,
            **self._constants(norm), ROWS=MOST_ROWS, STAGES=way.stages, **way.options, **self._launch(),
        )  # fmt: skip
        if partial is not None:
            bias, residual = self.tensors[8], self.tensors[9]
            finish_kernel[-(-F // FINISH_BLOCK), N](  # type: ignore[index]
                partial, bias, residual, y_NF, _strides(self.tensors)[-1], F,
                PARTS=parts, ACTIVATION=self.gate.kernel if self.gate else None, EARLY=self.early, ROWS=MOST_ROWS,
                BLOCK_F=FINISH_BLOCK, **self._launch(),
            )  # fmt: skip

    def _constants(self, norm: int) -> dict[str, Any]:
        activation = self.gate.kernel if self.gate else None
        return {
            "KIND": self.kind,
            "GROUP": self.group or 1,
            "NORM": norm,
            "ACTIVATION": activation,
            "EARLY": self.early,
        }

    def _launch(self) -> dict[str, bool]:
        return {"launch_pdl": True} if self.early else {}


def _strides(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.stride(0) for t in (tensors[0], tensors[2], tensors[5], tensors[9])]


# --- tiles


def _sum_tiles(kind: int) -> list[Tile]:
    """Of multiply_add_kernel: 16 bytes of a row for each thread, and several rows, on their way at once."""
    shapes = {
        FLOAT: [(4, 1, 2, 4096), (16, 1, 2, 4096), (8, 1, 4, 4096), (8, 4, 4, 2048), (4, 1, 4, 2048), (8, 1, 4, 2048),
                (8, 1, 1, 4096), (4, 1, 8, 1024), (8, 1, 8, 2048), (2, 1, 2, 2048)],
        INT8: [(4, 4, 4, 2048), (4, 1, 2, 2048), (4, 1, 4, 2048), (4, 1, 2, 4096), (8, 1, 4, 4096), (4, 1, 8, 2048),
               (4, 1, 8, 1024), (8, 1, 1, 4096)],
        INT4: [(4, 1, 16, 2048), (2, 1, 8, 2048), (4, 1, 8, 4096), (4, 1, 4, 4096), (8, 1, 8, 8192), (4, 3, 8, 4096),
               (8, 1, 8, 4096), (4, 1, 2, 4096)],
    }[kind]  # fmt: skip
    tiles = [tile(warps, stages, BLOCK_F=f, BLOCK_D=d) for warps, stages, f, d in shapes]
    return [replace(t, name=t.name.replace("triton", "sums")) for t in tiles]


def _dot_tiles(kind: int, group: int) -> list[Tile]:
    shapes = {
        FLOAT: [(4, 4, 64, 128), (4, 5, 32, 128), (4, 4, 16, 256), (8, 4, 128, 64), (4, 3, 64, 256)],
        INT8: [(4, 5, 64, 128), (4, 5, 32, 256), (4, 4, 64, 256), (8, 4, 128, 128)],
        INT4: [(4, 6, 64, group), (4, 8, 32, group), (4, 6, 128, group), (8, 6, 128, group)],
    }[kind]
    return [tile(warps, stages, BLOCK_F=f, BLOCK_D=d) for warps, stages, f, d in shapes]


def _dot_tile(kind: int, group: int) -> Tile:
    """The one whose order of sums every number of rows has."""
    return _dot_tiles(kind, group)[0]


# --- what it means, and what it takes


def _reference(
    x_ND: Tensor, weight: Weight, bias_F: Tensor | None, residual_NF: Tensor | None, norm: Norm | None,
    up: Weight | None, gate: Gate | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    if norm is not None:
        x_ND = rms_norm(x_ND, norm.weight_D, norm.eps, norm.offset)
    y_NF = F_.linear(x_ND, dequantize(weight, x_ND.dtype), None if bias_F is None else bias_F.to(x_ND.dtype))
    if gate is not None:
        assert up is not None
        y_NF = gate.reference(y_NF, F_.linear(x_ND, dequantize(up, x_ND.dtype)))
    return (y_NF if residual_NF is None else y_NF + residual_NF).to(dtype)


def _flat(weight: Weight) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """Values, scales, zero points and the group's width, 0 where there are no groups."""
    if isinstance(weight, Tensor):
        return weight, None, None, 0
    if isinstance(weight, Int8Rows):
        return weight.values_FD, weight.scale_F, None, 0
    return weight.packed_FC, weight.scale_FJ, weight.zero_FJ, weight.group


def _check(
    x: Tensor, weight: Weight, bias_F: Tensor | None, residual: Tensor | None, norm: Norm | None,
    up: Weight | None, gate: Gate | None,
) -> None:  # fmt: skip
    if not x.ndim or not x.shape[-1]:
        raise _error(f"x is {list(x.shape)}, and it takes rows of one column at least")
    require_gpu("matvec", x.device)
    rows, D = x.numel() // x.shape[-1], x.shape[-1]
    F = weight.shape[0]
    floating = FLOATING if kernels_in_use(x.device) else (*FLOATING, torch.float64)
    if x.dtype not in floating:
        raise _error(f"x is {x.dtype}, and it takes bfloat16, float16 and float32")
    if rows > MOST_ROWS:
        raise _error(f"x has {rows} rows, and it takes at most {MOST_ROWS}")
    if (up is None) != (gate is None):
        raise _error("a gate needs a second weight, `up`, and the other way round")
    for name, given in (("weight", weight), ("up", up)):
        if given is not None:
            _check_weight(name, given, x, (F, D))
    if up is not None and (type(up) is not type(weight) or _flat(up)[3] != _flat(weight)[3]):
        raise _error("`weight` and `up` must be of one format")
    if up is not None and (_flat(up)[2] is None) != (_flat(weight)[2] is None):
        raise _error("either both of `weight` and `up` have zero points or neither")
    wanted = {
        "bias": (bias_F, (F,)),
        "norm": (norm.weight_D if norm else None, (D,)),
        "residual": (residual, (*x.shape[:-1], F)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.device != x.device):
            raise _error(f"{name} is {list(tensor.shape)} on {tensor.device}, not {list(shape)} on {x.device}")
        if tensor is not None and not tensor.is_floating_point():
            raise _error(f"{name} is {tensor.dtype}, and it takes floating ones")
        if tensor is not None and name != "residual" and not tensor.is_contiguous():
            raise _error(f"{name} must be contiguous")


def _check_weight(name: str, weight: Weight, x: Tensor, shape: tuple[int, int]) -> None:
    if tuple(weight.shape) != shape:
        raise _error(f"`{name}` is {list(weight.shape)}, and x has {shape[1]} columns")
    values, scale, zero, group = _flat(weight)
    if values.device != x.device:
        raise _error(f"`{name}` is on {values.device}, and x is on {x.device}")
    kind = x.dtype if isinstance(weight, Tensor) else (torch.uint8 if group else torch.int8)
    if values.dtype != kind:
        raise _error(f"`{name}` is {values.dtype}, not {kind}")
    if values.stride(-1) != 1 and values.shape[1] > 1:
        raise _error(f"`{name}` must have the numbers of a row side by side")
    if group and (shape[1] % group or group not in (32, 64, 128) or not values.is_contiguous()):
        raise _error(f"`{name}` must be contiguous, in groups of 32, 64 or 128 that divide {shape[1]}")
    parts = (scale, (shape[0], shape[1] // group) if group else shape[:1]), (zero, (shape[0], shape[1] // (group or 1)))
    for tensor, wanted in parts:
        if tensor is not None and (tuple(tensor.shape) != wanted or not tensor.is_contiguous()):
            raise _error(f"scales and zero points of `{name}` must be contiguous {list(wanted)}")
        if tensor is not None and tensor.device != x.device:
            raise _error(f"scales and zero points of `{name}` are on {tensor.device}, and x is on {x.device}")


def _error(message: str) -> KernelError:
    return KernelError(f"matvec: {message}")
