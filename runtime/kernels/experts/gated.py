"""The experts' gate and up products with their activation behind them, and the gradient of that before its product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ... import reference
from ..language import tl, triton
from ..tuning import Tile, Way, run_best
from .grouped_loop import accumulate, accumulate_two, find_tile, halves, rows_to_read
from .grouped_product import (
    FEW,
    MANY_ROWS,
    SOME,
    Gathered,
    blocks,
    fitting,
    gather_rows,
    grid,
    list_tiles,
    precision,
    product_key,
    rows_first,
    rows_operand,
    takes_grouped_mm,
    torch_product,
    weight_operand,
)  # fmt: skip
from .sorting import Routing

Function = Callable[..., object]  # of Triton, in float32
_named: Counter[str] = Counter()
ACTIVATIONS: dict[str, GatedActivation] = {}  # by what operators call them


@dataclass(frozen=True)
class GatedActivation:
    """What experts do between their products, element by element; define it once, where a module is loaded.

    value: a Triton function `(gate, up) -> hidden`. gradient: `(gate, up, grad) -> (grad_gate, grad_up)`. Both get and
    give float32. reference: the same as `value` in PyTorch. name: how operators name it, made unique.
    """

    name: str
    value: Function
    gradient: Function
    reference: Callable[[Tensor, Tensor], Tensor]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        _named[self.name] += 1
        key = self.name if _named[self.name] == 1 else f"{self.name}_{_named[self.name]}"
        object.__setattr__(self, "key", key)
        ACTIVATIONS[key] = self


@triton.jit
def silu_gate(gate, up):  # type: ignore[no-untyped-def]
    """`silu(gate) * up` (SwiGLU, arXiv:2002.05202)."""
    return gate * tl.sigmoid(gate) * up


@triton.jit
def silu_gate_gradient(gate, up, grad):  # type: ignore[no-untyped-def]
    """The gradients of gate and up, given that of `silu_gate`."""
    share = tl.sigmoid(gate)
    return grad * up * share * (1 + gate * (1 - share)), grad * gate * share


SILU_GATE = GatedActivation("silu_gate", silu_gate, silu_gate_gradient, lambda gate, up: reference.silu(gate) * up)

# Tiles of kernels with two sums, or with much to do behind their loop: BLOCK_N is of each.
PAIRED = (
    blocks(8, 4, (128, 128, 64), tma=True),
    blocks(8, 3, (128, 128, 64), tma=True),
    blocks(8, 3, (128, 128, 64), tma=True, flat=True),
    blocks(4, 3, (128, 64, 64), tma=True),
    blocks(8, 3, (128, 128, 64), tma=False),
    blocks(4, 3, (64, 128, 64), tma=False),
    blocks(8, 3, (128, 64, 64), tma=False),
)
LEAST = (blocks(4, 2, (64, 64, 64), tma=False),)  # for GPUs whose programs have 99 KiB of shared memory


def paired_tiles(rows: int, experts: int) -> tuple[Tile, ...]:
    """Tiles for `rows` among `experts`, those that fit the mean first."""
    some, mean = (SOME[0], SOME[2]), rows / experts
    return (PAIRED + some[:1] if mean > MANY_ROWS else some + FEW + PAIRED[3:4] if mean > 24 else FEW + some) + LEAST


@dataclass(frozen=True, eq=False)
class Gated:
    """The gate and up products of tokens x_TD, and what experts make of them.

    gate, up: [X, F, D]. gate_bias, up_bias: [X, F], both or neither.
    """

    x_TD: Tensor
    gate: Tensor
    up: Tensor
    routing: Routing
    choices: int
    activation: GatedActivation
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None


def gated(call: Gated, hidden: bool, keep: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """hidden, gate and up, [R, F] sorted by expert: the first with `hidden`, the others, which backward reads, with
    `keep`. The activation sees gate and up rounded to their dtype, kept or not."""
    x, rows, (experts, columns, _) = call.x_TD, call.routing.order_R.shape[0], call.gate.shape
    ways = fitting(paired_tiles(rows, experts), [call.gate, call.up], [x])
    if rows_first(x, rows, experts) and isinstance(ways[0], Tile) and ways[0]["TMA"]:
        ways.insert(1, Gathered(f"gathered, {ways[0].name}", ways[0]))
    if takes_grouped_mm(x, call.gate, call.up) and call.gate_bias is None:
        ways.append(Way("torch grouped_mm"))
    key = product_key(x, rows, experts, columns, hidden, keep, call.gate_bias is not None)
    return run_best("experts.gated", key, ways, lambda way: _gated(way, call, hidden, keep))


def _gated(way: Way, call: Gated, with_hidden: bool, keep: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, (offsets_X, order_R, _), (_, columns, inner) = call.x_TD, call.routing, call.gate.shape
    rows, gathered = order_R.shape[0], isinstance(way, Gathered)
    if isinstance(way, Gathered):
        x, way = gather_rows(x, order_R, call.choices), way.tile
    if not isinstance(way, Tile):
        return _gated_by_torch(call, with_hidden, keep)
    hidden, gate, up = (
        torch.empty(rows, columns, dtype=x.dtype, device=x.device) if wanted else None
        for wanted in (with_hidden, keep, keep)
    )
    if not rows:
        return hidden, gate, up
    tiles, slots = list_tiles(offsets_X, rows, way)
    gated_kernel[grid(way, slots, columns, x.device)](
        rows_operand(x, way, gathered), weight_operand(call.gate, way), weight_operand(call.up, way),
        hidden, gate, up, call.gate_bias, call.up_bias, tiles, order_R, slots, columns, inner, call.choices,
        x.stride(0), *call.gate.stride()[:2], *call.up.stride()[:2],
        GATHER=not gathered, ACTIVATION=call.activation.value, EVEN_K=inner % way["BLOCK_K"] == 0,
        PRECISION=precision(x.dtype), **way.options,
    )  # fmt: skip
    return hidden, gate, up


def _gated_by_torch(call: Gated, with_hidden: bool, keep: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x_RD = gather_rows(call.x_TD, call.routing.order_R, call.choices)
    gate, up = (torch_product(x_RD, weight, call.routing.offsets_X) for weight in (call.gate, call.up))
    hidden = torch.empty_like(gate) if with_hidden else None
    if hidden is not None and hidden.numel():
        programs = triton.cdiv(hidden.numel(), 2048)
        activate_kernel[(programs,)](gate, up, hidden, hidden.numel(), call.activation.value, 2048)
    return (hidden, gate, up) if keep else (hidden, None, None)


@triton.jit
def gated_kernel(  # type: ignore[no-untyped-def]
    x, gate_weight, up_weight, hidden_ptr, gate_ptr, up_ptr, gate_bias_ptr, up_bias_ptr, tiles_ptr, order_ptr,
    S, N, K, choices, x_stride, gate_stride_X, gate_stride, up_stride_X, up_stride,
    GATHER: tl.constexpr, ACTIVATION: tl.constexpr, EVEN_K: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    """See `gated`. With GATHER x are tokens, else rows, which the TMA unit then loads too."""
    kind: tl.constexpr = (hidden_ptr if gate_ptr is None else gate_ptr).dtype.element_ty
    columns = tl.cdiv(N, BLOCK_N)
    count = tl.load(tiles_ptr + 3 * S) * columns
    for number in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=FLAT):
        expert, row, end, column = find_tile(number, tiles_ptr, S, columns, GROUP)
        column *= BLOCK_N
        read_M = rows_to_read(row, end, order_ptr, choices, GATHER, BLOCK_M)
        gate_MN, up_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        gate_MN, up_MN = accumulate_two(
            gate_MN, up_MN, x, row, read_M, x_stride, gate_weight, up_weight, expert, column, N, K, gate_stride_X,
            gate_stride, up_stride_X, up_stride, TMA and not GATHER, TMA, EVEN_K, BLOCK_N, BLOCK_K, PRECISION,
        )  # fmt: skip
        row_M, column_N = row + tl.arange(0, BLOCK_M)[:, None], column + tl.arange(0, BLOCK_N)[None, :]
        if gate_bias_ptr is not None:
            of_expert_N = expert.to(tl.int64) * N + column_N
            gate_MN += tl.load(gate_bias_ptr + of_expert_N, column_N < N, other=0.0).to(tl.float32)
            up_MN += tl.load(up_bias_ptr + of_expert_N, column_N < N, other=0.0).to(tl.float32)
        gate_MN, up_MN = gate_MN.to(kind), up_MN.to(kind)
        place_MN, mask_MN = row_M.to(tl.int64) * N + column_N, (row_M < end) & (column_N < N)
        if gate_ptr is not None:
            tl.store(gate_ptr + place_MN, gate_MN, mask_MN)
            tl.store(up_ptr + place_MN, up_MN, mask_MN)
        if hidden_ptr is not None:
            hidden_MN = ACTIVATION(gate_MN.to(tl.float32), up_MN.to(tl.float32))
            tl.store(hidden_ptr + place_MN, hidden_MN.to(kind), mask_MN)


@triton.jit
def activate_kernel(  # type: ignore[no-untyped-def]
    gate_ptr, up_ptr, hidden_ptr, N, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """The activation by itself, behind products that are not this project's."""
    place_N = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate_N = tl.load(gate_ptr + place_N, place_N < N, other=0.0).to(tl.float32)
    up_N = tl.load(up_ptr + place_N, place_N < N, other=0.0).to(tl.float32)
    tl.store(hidden_ptr + place_N, ACTIVATION(gate_N, up_N).to(hidden_ptr.dtype.element_ty), place_N < N)


# --- backward


@dataclass(frozen=True, eq=False)
class GatedGradient:
    """What backward knows when it comes to the activation.

    grad: the gradient of the experts' sum [T, D], or where it is `gathered` [R, D]. down: [X, D, F]. gate, up: [R, F]
    as `gated` kept them. factor_R: the routers' weights, by choice.
    """

    grad: Tensor
    down: Tensor
    gate: Tensor
    up: Tensor
    factor_R: Tensor
    routing: Routing
    choices: int
    activation: GatedActivation
    gathered: bool = False


def gated_gradient(
    call: GatedGradient, hidden: bool, share: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of gate and up, [R, F]; with `hidden` what the down product's rows were, each times its factor,
    [R, F]; with `share` the gradient of each factor, by choice, [R] in float32, but for a bias behind the product."""
    gate, (experts, _, columns) = call.gate, call.down.shape
    rows = gate.shape[0]
    if not rows:
        factor = gate.new_empty(0, dtype=torch.float32) if share else None
        return torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate) if hidden else None, factor
    tiles = paired_tiles(rows, experts)
    ways = fitting(tiles, [call.down, call.grad]) if call.gathered else fitting(tiles, [call.down], [call.grad])
    if takes_grouped_mm(call.grad, call.down):
        # The likelier where its rows are there: what lies behind the product leaves the kernel few registers.
        ways.insert(0 if call.gathered else len(ways), Way("torch grouped_mm"))
    key = product_key(call.grad, rows, experts, columns, hidden, share, call.gathered)
    return run_best("experts.gated_gradient", key, ways, lambda way: _gated_gradient(way, call, hidden, share))


def _gated_gradient(
    way: Way, call: GatedGradient, hidden: bool, share: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    gate, (offsets_X, order_R, _), (_, inner, columns) = call.gate, call.routing, call.down.shape
    rows, device = gate.shape[0], gate.device
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)
    weighed = torch.empty_like(gate) if hidden else None
    parts = triton.cdiv(columns, way["BLOCK_N"]) if isinstance(way, Tile) else 1
    share_PR = torch.empty(parts, rows, dtype=torch.float32, device=device) if share else None
    written = (grad_gate, grad_up, weighed, share_PR)
    if isinstance(way, Tile):
        tiles, slots = list_tiles(offsets_X, rows, way)
        tma = bool(way["TMA"]) and call.gathered
        gated_gradient_kernel[grid(way, slots, columns, device)](
            rows_operand(call.grad, way, tma), weight_operand(call.down, way, flipped=True),
            call.gate, call.up, call.factor_R, *written, tiles, order_R, slots, columns, inner, rows, call.choices,
            call.grad.stride(0), *call.down.stride()[:2], GATHER=not call.gathered, TMA_X=tma,
            VALUE=call.activation.value, GRADIENT=call.activation.gradient, EVEN_K=inner % way["BLOCK_K"] == 0,
            PRECISION=precision(gate.dtype),
            **way.options,
        )  # fmt: skip
    else:
        grad_RD = call.grad if call.gathered else gather_rows(call.grad, order_R, call.choices)
        grad_hidden = torch_product(grad_RD, call.down, offsets_X, flipped=True)
        activate_gradient_kernel[(rows,)](
            grad_hidden, call.gate, call.up, call.factor_R, *written, order_R, columns,
            call.activation.value, call.activation.gradient, 1024,
        )  # fmt: skip
    return grad_gate, grad_up, weighed, None if share_PR is None else share_PR.sum(0)


@triton.jit
def gated_gradient_kernel(  # type: ignore[no-untyped-def]
    grad, down, gate_ptr, up_ptr, factor_ptr, grad_gate_ptr, grad_up_ptr, hidden_ptr, share_ptr,
    tiles_ptr, order_ptr, S, N, K, R, choices, grad_stride, down_stride_X, down_stride,
    GATHER: tl.constexpr, TMA_X: tl.constexpr, VALUE: tl.constexpr, GRADIENT: tl.constexpr, EVEN_K: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """See `gated_gradient`. A factor's gradient is that of its row, `grad . (hidden @ down.T)`, as `(grad @ down) .
    hidden`: in parts, one for each tile of columns."""
    columns = tl.cdiv(N, BLOCK_N)
    count = tl.load(tiles_ptr + 3 * S) * columns
    for number in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=FLAT):
        expert, row, end, part = find_tile(number, tiles_ptr, S, columns, GROUP)
        column = part * BLOCK_N
        read_M = rows_to_read(row, end, order_ptr, choices, GATHER, BLOCK_M)
        grad_MN = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        grad_MN = accumulate(
            grad_MN, grad, row, read_M, grad_stride, down, expert, column, N, K, down_stride_X, down_stride,
            True, TMA_X, TMA, EVEN_K, BLOCK_N, BLOCK_K, PRECISION, None,
        )  # fmt: skip
        row_M = row + tl.arange(0, BLOCK_M)
        choice_M = tl.load(order_ptr + row_M, row_M < end, other=0)
        factor_M = tl.load(factor_ptr + choice_M).to(tl.float32)
        # One half after the other: what it takes is too much for the registers that the sums leave.
        left_MN, right_MN = halves(grad_MN, BLOCK_M, BLOCK_N // 2)
        share_M = _activate_gradient(
            left_MN, gate_ptr, up_ptr, factor_M, grad_gate_ptr, grad_up_ptr, hidden_ptr,
            row_M, end, column, N, VALUE, GRADIENT, BLOCK_N // 2,
        ) + _activate_gradient(
            right_MN, gate_ptr, up_ptr, factor_M, grad_gate_ptr, grad_up_ptr, hidden_ptr,
            row_M, end, column + BLOCK_N // 2, N, VALUE, GRADIENT, BLOCK_N // 2,
        )  # fmt: skip
        if share_ptr is not None:
            tl.store(share_ptr + part.to(tl.int64) * R + choice_M, share_M, row_M < end)


@triton.jit
def activate_gradient_kernel(  # type: ignore[no-untyped-def]
    grad_ptr, gate_ptr, up_ptr, factor_ptr, grad_gate_ptr, grad_up_ptr, hidden_ptr, share_ptr, order_ptr, N,
    VALUE: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same behind a product that is not this project's, whose result [R, N] is given: a row a program."""
    row_M = tl.program_id(0) + tl.arange(0, 1)
    choice_M = tl.load(order_ptr + row_M)
    factor_M = tl.load(factor_ptr + choice_M).to(tl.float32)
    share_M = tl.zeros((1,), tl.float32)
    for column in range(0, N, BLOCK_N):
        column_N = column + tl.arange(0, BLOCK_N)[None, :]
        place_MN = grad_ptr + row_M.to(tl.int64)[:, None] * N + column_N
        grad_MN = tl.load(place_MN, column_N < N, other=0.0).to(tl.float32)
        share_M += _activate_gradient(
            grad_MN, gate_ptr, up_ptr, factor_M, grad_gate_ptr, grad_up_ptr, hidden_ptr, row_M, row_M + 1, column, N,
            VALUE, GRADIENT, BLOCK_N,
        )  # fmt: skip
    if share_ptr is not None:
        tl.store(share_ptr + choice_M, share_M)


@triton.jit
def _activate_gradient(  # type: ignore[no-untyped-def]
    grad_MN, gate_ptr, up_ptr, factor_M, grad_gate_ptr, grad_up_ptr, hidden_ptr, row_M, end, column, N,
    VALUE: tl.constexpr, GRADIENT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """From the gradient of rows' hidden numbers, their factors aside: writes those of gate and up, and gives the rows'
    part of their factors'."""
    column_N = column + tl.arange(0, BLOCK_N)[None, :]
    place_MN, mask_MN = row_M.to(tl.int64)[:, None] * N + column_N, (row_M < end)[:, None] & (column_N < N)
    gate_MN = tl.load(gate_ptr + place_MN, mask_MN, other=0.0).to(tl.float32)
    up_MN = tl.load(up_ptr + place_MN, mask_MN, other=0.0).to(tl.float32)
    hidden_MN = VALUE(gate_MN, up_MN)
    hidden_MN = tl.where(mask_MN, hidden_MN, 0.0)
    share_M = tl.sum(grad_MN * hidden_MN, 1)
    if hidden_ptr is not None:
        tl.store(hidden_ptr + place_MN, (hidden_MN * factor_M[:, None]).to(hidden_ptr.dtype.element_ty), mask_MN)
    grad_gate_MN, grad_up_MN = GRADIENT(gate_MN, up_MN, grad_MN * factor_M[:, None])
    tl.store(grad_gate_ptr + place_MN, grad_gate_MN.to(grad_gate_ptr.dtype.element_ty), mask_MN)
    tl.store(grad_up_ptr + place_MN, grad_up_MN.to(grad_up_ptr.dtype.element_ty), mask_MN)
    return share_M
