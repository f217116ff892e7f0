"""Choices of experts sorted by expert: a counting sort, stable, without waiting for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..gpu import require_gpu
from ..language import tl, triton
from ..row_kernel import KernelError
from ..tuning import Tile, Way, run_best, tile

PROGRAMS = 256  # of one pass over the choices: two for each multiprocessor of a large GPU
ELEMENTS = 8192  # of a table of choices by experts that one program holds at a time
MOST_EXPERTS = 4096
SCANNED = 4096


class Routing(NamedTuple):
    """Rows sorted by expert, by position within one; R = T * K. All int32: no call has 2**31 rows."""

    offsets_X: Tensor  # where the rows of each expert end
    order_R: Tensor  # row r is choice order_R[r] of [T, K], flattened
    home_R: Tensor  # the inverse: where each choice's row is


def sort_by_expert(chosen_TK: Tensor, experts: int) -> Routing:
    """How the choices chosen_TK (int64 or int32, any shape, indices below `experts`) lie when sorted by expert.

    The order of `reference.dispatch`. No number leaves the device. Raises KernelError for other dtypes, and for more
    than 4096 experts.
    """
    if chosen_TK.dtype not in (torch.int64, torch.int32):
        raise KernelError(f"sort_by_expert: choices are {chosen_TK.dtype}, and must be int64 or int32")
    if not 1 <= experts <= MOST_EXPERTS:
        raise KernelError(f"sort_by_expert: {experts} experts, and 1 to {MOST_EXPERTS} are supported")
    require_gpu("sort_by_expert", chosen_TK.device)
    chosen_R = chosen_TK.reshape(-1)
    rows = chosen_R.shape[0]
    if rows >= 1 << 31:
        raise KernelError(f"sort_by_expert: {rows} choices, and less than 2**31 are supported")
    if rows == 0:
        none = chosen_R.new_empty(0, dtype=torch.int32)
        return Routing(chosen_R.new_zeros(experts, dtype=torch.int32), none, none.clone())
    key = (triton.next_power_of_2(rows), experts)
    return run_best("experts.sort", key, _ways(rows, experts), lambda way: _sort(way, chosen_R, experts))


def _ways(rows: int, experts: int) -> list[Way]:
    length = max(1, ELEMENTS // triton.next_power_of_2(experts))
    share = max(length, triton.next_power_of_2(triton.cdiv(rows, PROGRAMS)))
    return [tile(4, 1, BLOCK_R=length, SHARE=share), tile(8, 1, BLOCK_R=length, SHARE=share), Way("torch sort")]


def _sort(way: Way, chosen_R: Tensor, experts: int) -> Routing:
    if not isinstance(way, Tile):
        return _sort_by_torch(chosen_R, experts)
    rows, device = chosen_R.shape[0], chosen_R.device
    programs, block = triton.cdiv(rows, way["SHARE"]), triton.next_power_of_2(experts)
    count_XP = torch.empty(experts, programs, dtype=torch.int32, device=device)
    offsets_X = torch.empty(experts, dtype=torch.int32, device=device)
    order_R, home_R = (torch.empty(rows, dtype=torch.int32, device=device) for _ in range(2))
    chosen_R = chosen_R.contiguous()
    count_kernel[(programs,)](chosen_R, count_XP, rows, experts, programs, BLOCK_X=block, **way.options)
    scan_kernel[(1,)](count_XP, offsets_X, experts * programs, programs, SCANNED, num_warps=8)
    place_kernel[(programs,)](
        chosen_R, count_XP, order_R, home_R, rows, experts, programs, BLOCK_X=block, **way.options
    )
    return Routing(offsets_X, order_R, home_R)


def _sort_by_torch(chosen_R: Tensor, experts: int) -> Routing:
    number_R = torch.arange(chosen_R.shape[0], dtype=torch.int32, device=chosen_R.device)
    sorted_R, order_R = torch.sort(chosen_R, stable=True)
    home_R = torch.empty_like(number_R).scatter_(0, order_R, number_R)
    expert_X = torch.arange(experts, dtype=sorted_R.dtype, device=chosen_R.device)
    offsets_X = torch.searchsorted(sorted_R, expert_X, right=True, out_int32=True)
    return Routing(offsets_X, order_R.to(torch.int32), home_R)


@triton.jit
def count_kernel(  # type: ignore[no-untyped-def]
    chosen_ptr, count_ptr, R, X, P, BLOCK_R: tl.constexpr, SHARE: tl.constexpr, BLOCK_X: tl.constexpr
):
    """count[x, p]: how many of the SHARE choices of program p are expert x."""
    program = tl.program_id(0)
    expert_X = tl.arange(0, BLOCK_X)[None, :]
    count_X = tl.zeros((1, BLOCK_X), tl.int32)
    for start in range(0, SHARE, BLOCK_R):
        row_R = program * SHARE + start + tl.arange(0, BLOCK_R)[:, None]
        chosen_R = tl.load(chosen_ptr + row_R, row_R < R, other=-1)
        count_X += tl.sum((chosen_R == expert_X).to(tl.int32), 0, keep_dims=True)
    tl.store(count_ptr + expert_X * P + program, count_X, expert_X < X)


@triton.jit
def scan_kernel(count_ptr, offsets_ptr, N, P, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Replaces each count by the sum of those before it, the experts' ends written aside. One program: N is small."""
    before = tl.zeros((), tl.int32)
    for start in range(0, N, BLOCK):
        place_N = start + tl.arange(0, BLOCK)
        count_N = tl.load(count_ptr + place_N, place_N < N, other=0)
        until_N = before + tl.cumsum(count_N, 0)
        tl.store(count_ptr + place_N, until_N - count_N, place_N < N)
        tl.store(offsets_ptr + place_N // P, until_N, (place_N < N) & (place_N % P == P - 1))
        before += tl.sum(count_N, 0)


@triton.jit
def place_kernel(  # type: ignore[no-untyped-def]
    chosen_ptr, before_ptr, order_ptr, home_ptr, R, X, P,
    BLOCK_R: tl.constexpr, SHARE: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Sets each choice behind those of its expert in earlier programs, and in this one."""
    program = tl.program_id(0)
    expert_X = tl.arange(0, BLOCK_X)[None, :]
    before_X = tl.load(before_ptr + expert_X * P + program, expert_X < X, other=0)
    for start in range(0, SHARE, BLOCK_R):
        row_R = program * SHARE + start + tl.arange(0, BLOCK_R)[:, None]
        chosen_R = tl.load(chosen_ptr + row_R, row_R < R, other=-1)
        here_RX = (chosen_R == expert_X).to(tl.int32)
        place_RX = before_X + tl.cumsum(here_RX, 0) - 1
        place_R = tl.sum(place_RX * here_RX, 1, keep_dims=True)
        tl.store(home_ptr + row_R, place_R, row_R < R)
        tl.store(order_ptr + place_R, row_R, row_R < R)
        before_X += tl.sum(here_RX, 0, keep_dims=True)
