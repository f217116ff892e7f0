"""Steps of optimizers over all parameters in one launch for each set of dtypes, and the norm of all gradients.

Everything is computed in fp32 and rounded once. What a step needs of the device, it reads there: nothing waits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..choice import kernels_in_use
from ..device import launching_on
from ..language import tl, triton
from ..row_kernel import KernelError
from ..tuning import Key, Tile, Way, chosen, measuring, run_best, tile
from .tensor_table import PIECE, Table, kept, offsets, piece_of, pointer_to, stream_of, tables, triton_dtypes

TILES = (tile(4, 1, BLOCK=2048), tile(4, 1, BLOCK=1024), tile(8, 1, BLOCK=4096), tile(8, 1, BLOCK=2048))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRADS = 1  # where gradients are among the kinds of tensors of a step
TRIED = 1 << 24  # elements that tiles are timed on, as a step must not be done twice

Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True)
class Draws:
    """How a step rounds. seed: 31 bits, of this step. numbers: of each parameter, 31 bits."""

    rounding: Rounding
    seed: int
    numbers: Sequence[int] | None


def adamw_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    decay: float | Sequence[float] = 0.0,
    masters: Sequence[Tensor] | None = None,
    factor: Tensor | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> None:
    """One step of AdamW (arXiv:1711.05101, algorithm 2) in place, as `torch.optim.AdamW` computes it.

    means, squares: the two moments, in any of fp32, bf16 and fp16, as parameters and gradients are. step: counts from
    1. decay: decoupled, of all or of each. masters: the parameters in fp32, which are then what is updated, and
    parameters are what they round to. factor: gradients are multiplied by this scalar on the device first; where it is
    not a number nothing changes. rounding: of bf16 moments, and of bf16 parameters without masters; "stochastic" rounds
    up as often as what is cut is large, drawn from seed, step, the parameter's number (31 bits; its place among those
    given when None) and the element's place. Raises KernelError for tensors that do not fit, and while a CUDA graph is
    captured, since a replay would repeat this step's rate and draws.
    """
    first, second = betas
    scalars = (
        float(lr), 1.0 - first, float(second), 1.0 - second, float(eps),
        lr / (1.0 - first**step), (1.0 - second**step) ** -0.5,
    )  # fmt: skip
    kinds = _kinds("adamw_step", parameters, grads, [means, squares], masters)
    draws = Draws(rounding, mixed_seed(seed, step), numbers)
    _step("adamw", adamw_kernel, kinds, masters is not None, scalars, decay, factor, draws)


def lion_step(
    parameters: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    decay: float | Sequence[float] = 0.0,
    masters: Sequence[Tensor] | None = None,
    factor: Tensor | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> None:
    """One step of Lion (arXiv:2302.06675, algorithm 2) in place; the arguments are those of `adamw_step`."""
    first, second = betas
    scalars = (float(lr), float(first), 1.0 - first, float(second), 1.0 - second)
    kinds = _kinds("lion_step", parameters, grads, [means], masters)
    draws = Draws(rounding, mixed_seed(seed, step), numbers)
    _step("lion", lion_kernel, kinds, masters is not None, scalars, decay, factor, draws)


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients together: a scalar in fp32 on their device, the same bits for the same gradients.

    Finite whenever fp32 holds it, however large or small the squares are; infinite or not a number where a gradient is.
    """
    if not grads:
        return torch.zeros(())
    (given,) = _kinds("gradient_norm", grads, None, [], None)
    with launching_on(given[0].device):
        return _norm(given)


def _norm(given: Sequence[Tensor]) -> Tensor:
    found, device = tables([given]), given[0].device
    partial = torch.zeros(max(1, sum(table.programs for table in found)), dtype=torch.float64, device=device)
    norm = torch.empty((), device=device)
    for before, table in offsets(found):

        def run(way: Way, before: int = before, table: Table = table) -> None:
            assert isinstance(way, Tile)
            squares_kernel[(table.programs,)](
                table.addresses_KT, table.sizes_T, table.pieces_P2, partial[before:], len(table.members),
                *triton_dtypes(table.dtypes), table.aligned, PIECE, way["BLOCK"], num_warps=way.warps,
            )  # fmt: skip

        run_best("gradient_norm", _key(table), TILES, run)
    norm_kernel[(1,)](partial, norm, len(partial), 1024, num_warps=8)
    return norm


def clip_factor(norm: Tensor, most: float) -> Tensor:
    """What gradients of this norm are multiplied by so that it is at most `most` (arXiv:1211.5063): a scalar, fp32.

    Not a number where the norm is not finite.
    """
    return (most / (norm + 1e-6)).clamp(max=1.0) + (norm - norm)


# --- kernels


@triton.jit
def mixed(x):  # type: ignore[no-untyped-def]
    """A permutation of uint32 that looks random: multiplications and shifts, each bit depending on every other."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def rounded(value, bits, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):  # type: ignore[no-untyped-def]
    """fp32 in another dtype. bits: 16 random ones that are added to the 16 which bf16 cuts."""
    if STOCHASTIC and tl.bfloat16 == DTYPE:
        whole = value.to(tl.int32, bitcast=True)
        is_finite = (whole & 0x7F800000) != 0x7F800000
        cut = ((whole + bits.to(tl.int32)) & -65536).to(tl.float32, bitcast=True)
        value = tl.where(is_finite, cut, value)
    return value.to(DTYPE)


@triton.jit(do_not_specialize=["T", "seed"])
def adamw_kernel(  # type: ignore[no-untyped-def]
    addresses_ptr, sizes_ptr, numbers_ptr, pieces_ptr, decays_ptr, factor_ptr, T, seed,
    lr, first_rest, second, second_rest, eps, rate, root,
    FACTOR: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr,
    PIECE: tl.constexpr, BLOCK: tl.constexpr,
    PARAMETER: tl.constexpr, GRAD: tl.constexpr, MEAN: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """AdamW of one piece. `rate` and `root` correct the bias of the moments, which begin at zero."""
    tensor, piece, start, count = piece_of(sizes_ptr, pieces_ptr, PIECE, ALIGNED)
    parameter_ptr = pointer_to(addresses_ptr, 0, T, tensor, start, PARAMETER, ALIGNED)
    grad_ptr = pointer_to(addresses_ptr, 1, T, tensor, start, GRAD, ALIGNED)
    mean_ptr = pointer_to(addresses_ptr, 2, T, tensor, start, MEAN, ALIGNED)
    square_ptr = pointer_to(addresses_ptr, 3, T, tensor, start, SQUARE, ALIGNED)
    value_ptr = parameter_ptr
    if MASTER:
        value_ptr = pointer_to(addresses_ptr, 4, T, tensor, start, tl.float32, ALIGNED)
    kept = 1.0 - lr * tl.load(decays_ptr + tensor)
    rounds: tl.constexpr = STOCHASTIC and not MASTER
    factor = 1.0
    if FACTOR:
        factor = tl.load(factor_ptr).to(tl.float32)
        count = tl.where(factor == factor, count, 0)
        if ALIGNED:
            count = tl.multiple_of(count, 16)
    key = mixed(mixed(tl.load(numbers_ptr + tensor).to(tl.uint32) ^ seed.to(tl.uint32)) + piece.to(tl.uint32))
    for first in range(0, count, BLOCK):
        at_B = first + tl.arange(0, BLOCK)
        is_there = at_B < count
        grad_B = tl.load(grad_ptr + at_B, is_there, other=0.0).to(tl.float32) * factor
        mean_B = tl.load(mean_ptr + at_B, is_there, other=0.0).to(tl.float32)
        square_B = tl.load(square_ptr + at_B, is_there, other=0.0).to(tl.float32)
        value_B = tl.load(value_ptr + at_B, is_there, other=0.0).to(tl.float32)
        mean_B += first_rest * (grad_B - mean_B)
        square_B = second * square_B + second_rest * grad_B * grad_B
        value_B = kept * value_B - rate * (mean_B / (tl.sqrt(square_B) * root + eps))
        bits_B = at_B.to(tl.uint32)
        if STOCHASTIC:
            bits_B = mixed(mixed(bits_B ^ key) + key)
        if MASTER:
            tl.store(value_ptr + at_B, value_B, is_there)
        tl.store(parameter_ptr + at_B, rounded(value_B, bits_B >> 16, PARAMETER, rounds), is_there)
        tl.store(mean_ptr + at_B, rounded(mean_B, bits_B & 0xFFFF, MEAN, STOCHASTIC), is_there)
        if STOCHASTIC:
            bits_B = mixed(bits_B)
        tl.store(square_ptr + at_B, rounded(square_B, bits_B >> 16, SQUARE, STOCHASTIC), is_there)


@triton.jit(do_not_specialize=["T", "seed"])
def lion_kernel(  # type: ignore[no-untyped-def]
    addresses_ptr, sizes_ptr, numbers_ptr, pieces_ptr, decays_ptr, factor_ptr, T, seed,
    lr, first, first_rest, second, second_rest,
    FACTOR: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr,
    PIECE: tl.constexpr, BLOCK: tl.constexpr, PARAMETER: tl.constexpr, GRAD: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Lion of one piece."""
    tensor, piece, start, count = piece_of(sizes_ptr, pieces_ptr, PIECE, ALIGNED)
    parameter_ptr = pointer_to(addresses_ptr, 0, T, tensor, start, PARAMETER, ALIGNED)
    grad_ptr = pointer_to(addresses_ptr, 1, T, tensor, start, GRAD, ALIGNED)
    mean_ptr = pointer_to(addresses_ptr, 2, T, tensor, start, MEAN, ALIGNED)
    value_ptr = parameter_ptr
    if MASTER:
        value_ptr = pointer_to(addresses_ptr, 3, T, tensor, start, tl.float32, ALIGNED)
    kept = 1.0 - lr * tl.load(decays_ptr + tensor)
    rounds: tl.constexpr = STOCHASTIC and not MASTER
    factor = 1.0
    if FACTOR:
        factor = tl.load(factor_ptr).to(tl.float32)
        count = tl.where(factor == factor, count, 0)
        if ALIGNED:
            count = tl.multiple_of(count, 16)
    key = mixed(mixed(tl.load(numbers_ptr + tensor).to(tl.uint32) ^ seed.to(tl.uint32)) + piece.to(tl.uint32))
    for begin in range(0, count, BLOCK):
        at_B = begin + tl.arange(0, BLOCK)
        is_there = at_B < count
        grad_B = tl.load(grad_ptr + at_B, is_there, other=0.0).to(tl.float32) * factor
        mean_B = tl.load(mean_ptr + at_B, is_there, other=0.0).to(tl.float32)
        value_B = tl.load(value_ptr + at_B, is_there, other=0.0).to(tl.float32)
        turned_B = first * mean_B + first_rest * grad_B
        sign_B = tl.where(turned_B > 0.0, 1.0, tl.where(turned_B < 0.0, -1.0, 0.0))
        value_B = kept * value_B - lr * sign_B
        mean_B = second * mean_B + second_rest * grad_B
        bits_B = at_B.to(tl.uint32)
        if STOCHASTIC:
            bits_B = mixed(mixed(bits_B ^ key) + key)
        if MASTER:
            tl.store(value_ptr + at_B, value_B, is_there)
        tl.store(parameter_ptr + at_B, rounded(value_B, bits_B >> 16, PARAMETER, rounds), is_there)
        tl.store(mean_ptr + at_B, rounded(mean_B, bits_B & 0xFFFF, MEAN, STOCHASTIC), is_there)


@triton.jit(do_not_specialize=["T"])
def squares_kernel(  # type: ignore[no-untyped-def]
    addresses_ptr, sizes_ptr, pieces_ptr, partial_ptr, T,
    GRAD: tl.constexpr, ALIGNED: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of squares of one piece, in fp64.

    Squares are summed in fp32 as they are, of large numbers times 2**-80 and of small ones times 2**80, so that none
    is too large or too small (Blue, doi:10.1145/355769.355771).
    """
    tensor, _piece, start, count = piece_of(sizes_ptr, pieces_ptr, PIECE, ALIGNED)
    grad_ptr = pointer_to(addresses_ptr, 0, T, tensor, start, GRAD, ALIGNED)
    large_B = tl.zeros((BLOCK,), tl.float32)
    middle_B = tl.zeros((BLOCK,), tl.float32)
    small_B = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        at_B = first + tl.arange(0, BLOCK)
        grad_B = tl.load(grad_ptr + at_B, at_B < count, other=0.0).to(tl.float32)
        size_B = tl.abs(grad_B)
        is_large, is_small = size_B > 2.0**40, size_B < 2.0**-40
        down_B, up_B = grad_B * 2.0**-80, grad_B * 2.0**80
        large_B += tl.where(is_large, down_B * down_B, 0.0)
        small_B += tl.where(is_small, up_B * up_B, 0.0)
        middle_B += tl.where(is_large | is_small, 0.0, grad_B * grad_B)
    large = tl.sum(large_B, 0).to(tl.float64) * 2.0**160
    small = tl.sum(small_B, 0).to(tl.float64) * 2.0**-160
    tl.store(partial_ptr + tl.program_id(0), large + tl.sum(middle_B, 0).to(tl.float64) + small)


@triton.jit
def norm_kernel(partial_ptr, norm_ptr, P, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The root of the sum of fp64 numbers, in one order."""
    total_B = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, P, BLOCK):
        at_B = first + tl.arange(0, BLOCK)
        total_B += tl.load(partial_ptr + at_B, at_B < P, other=0.0)
    tl.store(norm_ptr, tl.sqrt(tl.sum(total_B, 0)))


# --- launches


def _step(
    name: str, kernel: Callable[..., None], kinds: list[Sequence[Tensor]], mastered: bool, scalars: tuple[float, ...],
    decay: float | Sequence[float], factor: Tensor | None, draws: Draws,
) -> None:  # fmt: skip
    if not kinds[0]:
        return
    device = kinds[0][0].device
    decays = tuple(float(d) for d in decay) if isinstance(decay, Sequence) else (float(decay),) * len(kinds[0])
    if len(decays) != len(kinds[0]):
        raise KernelError(f"{name}_step: there are {len(decays)} decays for {len(kinds[0])} parameters")
    if factor is not None and (factor.numel() != 1 or factor.device != device):
        raise KernelError(
            f"{name}_step: the factor is {list(factor.shape)} on {factor.device}, not one number on {device}"
        )
    if draws.rounding not in ("nearest", "stochastic"):
        raise KernelError(f"{name}_step: rounding is {draws.rounding!r}, neither 'nearest' nor 'stochastic'")
    numbers = range(len(kinds[0])) if draws.numbers is None else draws.numbers
    if len(numbers) != len(kinds[0]):
        raise KernelError(f"{name}_step: there are {len(numbers)} numbers for {len(kinds[0])} parameters")
    stream = stream_of(device)

    def launch(table: Table, decays_T: Tensor, numbers_T: Tensor, way: Way) -> None:
        assert isinstance(way, Tile)
        kernel[(table.programs,)](  # type: ignore[index]
            table.addresses_KT, table.sizes_T, numbers_T, table.pieces_P2, decays_T,
            decays_T if factor is None else factor, len(table.members), draws.seed, *scalars,
            factor is not None, mastered, draws.rounding == "stochastic", table.aligned, PIECE, way["BLOCK"],
            *triton_dtypes(table.dtypes[: len(kinds) - mastered]), num_warps=way.warps,
        )  # fmt: skip

    with launching_on(device):
        for table in tables(kinds):
            decays_T = kept(tuple(decays[i] for i in table.members), torch.float32, device, stream)
            numbers_T = kept(tuple(numbers[i] for i in table.members), torch.int32, device, stream)
            key = (*_key(table), mastered, draws.rounding)
            if measuring():
                trial = [[torch.zeros(min(table.elements, TRIED), dtype=d, device=device)] for d in table.dtypes]
                (tried,) = tables(trial)
                run_best(f"{name}_step", key, TILES, partial(launch, tried, decays_T, numbers_T))
            launch(table, decays_T, numbers_T, chosen(f"{name}_step", key, TILES))
    # Autograd and whoever keeps something made of a parameter must see that it changed.
    for i, kind in enumerate(kinds):
        if i != GRADS:
            torch.autograd.graph.increment_version(kind)


def _key(table: Table) -> Key:
    size = 1 << (table.elements - 1).bit_length()
    return (size, *(str(dtype).removeprefix("torch.") for dtype in table.dtypes), table.aligned)


def mixed_seed(seed: int, step: int) -> int:
    """31 bits of both: a step's draws have nothing to do with those of the next."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def _kinds(
    name: str, first: Sequence[Tensor], grads: Sequence[Tensor] | None, states: list[Sequence[Tensor]],
    masters: Sequence[Tensor] | None,
) -> list[Sequence[Tensor]]:  # fmt: skip
    """All tensors by kind, gradients one element behind the other. Raises KernelError for what kernels cannot take."""
    given = {"parameters" if grads is not None else "gradients": first}
    if grads is not None:
        given["gradients"] = grads
    given |= {f"moments {i}": state for i, state in enumerate(states)}
    if masters is not None:
        given["masters"] = masters
    if first and not kernels_in_use(first[0].device):
        raise KernelError(f"{name}: needs a GPU, and tensors are on {first[0].device}")
    if first and first[0].is_cuda and torch.cuda.is_current_stream_capturing():
        raise KernelError(
            f"{name}: cannot be captured in a CUDA graph, as it is told addresses and numbers by the host"
        )
    for kind, tensors in given.items():
        if len(tensors) != len(first):
            raise KernelError(f"{name}: there are {len(tensors)} {kind} for {len(first)}")
        dtypes = (torch.float32,) if kind == "masters" else DTYPES
        for i, (tensor, like) in enumerate(zip(tensors, first, strict=True)):
            if tensor.layout != torch.strided:
                raise KernelError(f"{name}: {kind} {i} is {tensor.layout}, and kernels take dense tensors")
            if tensor.shape != like.shape or tensor.device != first[0].device:
                wanted = f"{list(like.shape)} on {first[0].device}"
                raise KernelError(f"{name}: {kind} {i} is {list(tensor.shape)} on {tensor.device}, not {wanted}")
            if tensor.dtype not in dtypes:
                kinds = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
                raise KernelError(f"{name}: {kind} {i} is {tensor.dtype}, and kernels take {kinds}")
            if kind != "gradients" and not tensor.is_contiguous():
                raise KernelError(f"{name}: {kind} {i} is not contiguous")
    return [[t.contiguous() for t in tensors] if kind == "gradients" else tensors for kind, tensors in given.items()]
