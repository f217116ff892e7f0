"""Core ATen forms of operations that compilers elsewhere lack, or get wrong: what `to_aten` writes in their place.

Each takes what the operation takes. NotImplemented leaves the operation as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reference import grouped as grouped  # defines the operator
from ..reference.precision import wide


def grouped_linear(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor) -> Tensor:
    """Each row times the weight of its expert, [R, F]: see `reference.grouped_linear`.

    All rows meet all experts, and each keeps its own product: X times the work, in exchange for sizes that do not hang
    on data.
    """
    row_R = torch.arange(x_RD.shape[0], dtype=offsets_X.dtype, device=x_RD.device)
    expert_R = (offsets_X <= row_R.unsqueeze(-1)).sum(-1)
    own_XR = expert_R == torch.arange(offsets_X.shape[0], device=x_RD.device).unsqueeze(-1)
    y_XRF = torch.matmul(x_RD, weight_XFD.transpose(-2, -1))
    return torch.where(own_XR.unsqueeze(-1), y_XRF, 0.0).sum(0)


def searchsorted(
    sorted_sequence: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Where in sorted_sequence [N] each of `values`, of any shape, belongs: the count of those before it."""
    if sorted_sequence.ndim != 1 or sorter is not None:
        return NotImplemented
    values = values.unsqueeze(-1)
    before = sorted_sequence <= values if right or side == "right" else sorted_sequence < values
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def stable_sort(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Values and indices along `dim`, equals in the order they had, by counting for each what goes before it.

    N * N comparisons for N elements, none of which waits for another; NaN has no place. Sorts elsewhere leave the order
    of equals open, which decides what expert a token goes to.
    """
    x = x.transpose(dim, -1)
    one, other = x.unsqueeze(-1), x.unsqueeze(-2)
    place = torch.arange(x.shape[-1], device=x.device)
    ahead = other > one if descending else other < one
    rank = (ahead | ((other == one) & (place < place.unsqueeze(-1)))).sum(-1)
    index = torch.zeros_like(rank).scatter(rank.ndim - 1, rank, place.expand_as(rank))  # IREE 3.13 crashes at -1
    return x.gather(-1, index).transpose(dim, -1), index.transpose(dim, -1)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """The tanh approximation (`reference.gelu_tanh`) written out: torch-mlir's constants are 5e-5 off."""
    if approximate != "tanh":
        return NotImplemented
    y = wide(x)
    return (0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y * y * y)))).to(x.dtype)


def cos(x: Tensor) -> Tensor:
    """That of a float64 goes by float32 once whole turns are off, and is right to 2e-7.

    IREE has it in float32 only. A large angle itself, as that of `reference.rope_table`, must not be rounded so.
    """
    return torch.cos(_within_a_turn(x)).double() if x.dtype == torch.float64 else NotImplemented


def sin(x: Tensor) -> Tensor:
    """As `cos`."""
    return torch.sin(_within_a_turn(x)).double() if x.dtype == torch.float64 else NotImplemented


def _within_a_turn(x: Tensor) -> Tensor:
    turn = 2.0 * math.pi
    return (x - turn * torch.floor(x / turn + 0.5)).float()


def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """x with `a x = b` for a [..., M, M] that is lower triangular with ones in its diagonal, a row after another."""
    if upper or not left or not unitriangular:
        return NotImplemented
    rows = [b[..., :1, :]]
    for m in range(1, b.shape[-2]):
        rows.append(b[..., m : m + 1, :] - torch.matmul(a[..., m : m + 1, :m], torch.cat(rows, dim=-2)))
    return torch.cat(rows, dim=-2)


def squeeze(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x without those of the axes whose size is 1: torch-mlir knows it for one axis only."""
    gone = {dim % x.ndim for dim in dims}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone or size != 1])


def empty(size: Sequence[int], physical_layout: Sequence[int], **options: Any) -> Tensor:
    """What lies there is overwritten, so it may be zeros."""
    return torch.zeros(size, **options)


def nothing(*arguments: object, **options: object) -> None:
    """For checks of what was known when exporting."""


ATEN = torch.ops.aten
FORMS = {
    torch.ops.dskc.grouped_linear.default: grouped_linear,
    ATEN.searchsorted.Tensor: searchsorted,
    ATEN.sort.stable: stable_sort,
    ATEN.gelu.default: gelu,
    ATEN.cos.default: cos,
    ATEN.sin.default: sin,
    ATEN.linalg_solve_triangular.default: solve_triangular,
    ATEN.squeeze.dims: squeeze,
    ATEN.empty_permuted.default: empty,
    ATEN._assert_tensor_metadata.default: nothing,
}
