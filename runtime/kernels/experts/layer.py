"""A layer of gated experts in kernels: sorted by expert, three products forward and six backward, tokens brought home.

What lies between the products never leaves them: forward's gather of tokens, the activation and its gradient, the
routers' weights and their gradient. Backward copies tokens and their gradients to their rows first where experts have
many, one after the other: two products read each of them. Of what has a row for each choice, forward keeps gate and up
alone, and neither with `keep=False`. The sums over a token's choices have one order: the same call gives the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import reference
from .. import flops
from ..choice import kernels_in_use
from ..gpu import require_gpu
from ..row_kernel import KernelError
from ..tuning import Tile, Way, run_best
from .combine import bias_shares, combine_rows
from .gated import ACTIVATIONS, SILU_GATE, Gated, GatedActivation, GatedGradient, gated, gated_gradient
from .grouped_outer import Outer, expert_sums, grouped_outer
from .grouped_product import (
    SUPPORTED,
    Product,
    gather_rows,
    in_rows,
    launch_product,
    rows_first,
    takes_grouped_mm,
    torch_product,
)
from .sorting import Routing, sort_by_expert


class Weights(NamedTuple):
    """Of each expert's products: gate_XFD and up_XFD [X, F, D], down_XDF [X, D, F]."""

    gate_XFD: Tensor
    up_XFD: Tensor
    down_XDF: Tensor


class Biases(NamedTuple):
    """Of each expert's products: gate_XF and up_XF [X, F], down_XD [X, D]."""

    gate_XF: Tensor
    up_XF: Tensor
    down_XD: Tensor


def experts(
    x_TD: Tensor,
    chosen_TK: Tensor,
    weight_TK: Tensor,
    gate_XFD: Tensor,
    up_XFD: Tensor,
    down_XDF: Tensor,
    activation: GatedActivation = SILU_GATE,
    biases: Biases | None = None,
    keep: bool = True,
) -> Tensor:
    """What the chosen experts make of each token, summed with the choices' weights: shape and dtype of x_TD.

    For each choice `down @ activation(gate @ x, up @ x)`, of its expert: reference.dispatch, grouped_linear twice, the
    activation, grouped_linear, combine. Differentiable (once) in all floating tensors.

    x_TD: bf16, fp16 or fp32, [..., D]. chosen_TK: int64 [..., K], indices below X. weight_TK: [..., K], floating; its
    product is taken in float32. gate_XFD, up_XFD: [X, F, D], down_XDF: [X, D, F], and the biases are cast to the dtype
    of x_TD. keep: whether forward keeps gate and up for backward (2 T K F numbers), or backward computes them again.
    Raises KernelError for other dtypes, devices and shapes.
    """
    weights = Weights(*(w.to(x_TD.dtype) for w in (gate_XFD, up_XFD, down_XDF)))
    given = Biases(*(b.to(x_TD.dtype) for b in biases)) if biases is not None else None
    if not kernels_in_use(x_TD.device):
        return experts_reference(x_TD, chosen_TK, weight_TK, weights, activation, given)
    _check(x_TD, chosen_TK, weight_TK, weights, given)
    floating = [x_TD, weight_TK, *weights, *(given or ())]
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in floating)
    flat_TD, flat_TK = x_TD.reshape(-1, x_TD.shape[-1]), weight_TK.reshape(-1, weight_TK.shape[-1])
    chosen = chosen_TK.reshape(flat_TK.shape)
    y_TD, *_ = _forward(flat_TD, chosen, flat_TK, *weights, *(given or (None,) * 3), activation.key, keep and learns)
    return y_TD.view(x_TD.shape)


def experts_reference(
    x: Tensor, chosen: Tensor, weight: Tensor, weights: Weights, activation: GatedActivation, biases: Biases | None
) -> Tensor:
    """What `experts` means, in PyTorch."""
    gate, up, down = weights
    rows = reference.dispatch(x, chosen, gate.shape[0])
    gate_bias, up_bias, down_bias = biases or (None, None, None)
    gate_RF = reference.grouped_linear(rows.x_RD, gate, rows.offsets_X, gate_bias)
    up_RF = reference.grouped_linear(rows.x_RD, up, rows.offsets_X, up_bias)
    hidden_RF = activation.reference(gate_RF, up_RF)
    return reference.combine(reference.grouped_linear(hidden_RF, down, rows.offsets_X, down_bias), rows, weight)


def _check(x: Tensor, chosen: Tensor, weight: Tensor, weights: Weights, biases: Biases | None) -> None:
    require_gpu("experts", x.device)
    if x.dtype not in SUPPORTED:
        kinds = ", ".join(str(d).removeprefix("torch.") for d in SUPPORTED)
        raise KernelError(f"experts: tokens are {x.dtype}, and the kernels take {kinds}")
    gate, up, down = weights
    if gate.ndim != 3 or gate.shape != up.shape or down.shape != (gate.shape[0], gate.shape[2], gate.shape[1]):
        shapes = ", ".join(str(list(w.shape)) for w in weights)
        raise KernelError(f"experts: weights are {shapes}; they must be [X, F, D] twice and [X, D, F]")
    if 0 in gate.shape or not x.ndim or x.shape[-1] != gate.shape[2]:
        raise KernelError(f"experts: tokens {list(x.shape)} do not fit a weight {list(gate.shape)}: [X, F, D]")
    if chosen.shape != weight.shape or chosen.shape[:-1] != x.shape[:-1] or not chosen.shape[-1:].numel():
        raise KernelError(
            f"experts: tokens {list(x.shape)}, choices {list(chosen.shape)}, weights {list(weight.shape)}"
        )
    if chosen.dtype not in (torch.int64, torch.int32) or not weight.is_floating_point():
        raise KernelError(f"experts: choices are {chosen.dtype}, which must be int64, and weights {weight.dtype}")
    experts, inner, width = gate.shape
    if biases is not None and tuple(b.shape for b in biases) != ((experts, inner), (experts, inner), (experts, width)):
        raise KernelError(
            f"experts: biases are {[list(b.shape) for b in biases]}; they must be [X, F] twice and [X, D]"
        )
    if any(t.device != x.device for t in (chosen, weight, gate, up, down, *(biases or ()))):
        raise KernelError(f"experts: some tensors are not on {x.device}, where the tokens are")


# --- the operators


@torch.library.custom_op("dskc::kernel_experts", mutates_args=())
def _forward(
    x: Tensor, chosen: Tensor, weight: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None, activation: str, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The result, then for backward: offsets, order, home, gate and up, the last two empty unless kept."""
    x, gate, up, down = in_rows(x), in_rows(gate), in_rows(up), in_rows(down)
    routing = sort_by_expert(chosen, gate.shape[0])
    choices = chosen.shape[1]
    call = Gated(x, gate, up, routing, choices, ACTIVATIONS[activation], _flat(gate_bias), _flat(up_bias))
    hidden_RF, gate_RF, up_RF = gated(call, hidden=True, keep=keep)
    assert hidden_RF is not None
    y_TD = down_product(hidden_RF, down, routing, choices, weight.reshape(-1).contiguous(), _flat(down_bias))
    none = x.new_empty(0)
    return y_TD, *routing, none if gate_RF is None else gate_RF, none.clone() if up_RF is None else up_RF


@_forward.register_fake
def _(
    x: Tensor, chosen: Tensor, weight: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None, activation: str, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    rows = chosen.shape[0] * chosen.shape[1]
    kept = (rows, gate.shape[1]) if keep else (0,)
    offsets, order, home = (x.new_empty(size, dtype=torch.int32) for size in (gate.shape[0], rows, rows))
    return x.new_empty(x.shape), offsets, order, home, x.new_empty(kept), x.new_empty(kept)


@torch.library.custom_op("dskc::kernel_experts_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None,
    offsets: Tensor, order: Tensor, home: Tensor, gate_RF: Tensor, up_RF: Tensor,
    activation: str, keep: bool, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight, gate, up, down and the three biases; empty where not wanted."""
    grad, x, gate, up, down = in_rows(grad), in_rows(x), in_rows(gate), in_rows(up), in_rows(down)
    routing, choices, factor_R = Routing(offsets, order, home), weight.shape[1], weight.reshape(-1).contiguous()
    function = ACTIVATIONS[activation]
    if not keep:
        again = Gated(x, gate, up, routing, choices, function, _flat(gate_bias), _flat(up_bias))
        _, gate_kept, up_kept = gated(again, hidden=False, keep=True)
        assert gate_kept is not None and up_kept is not None
        gate_RF, up_RF = gate_kept, up_kept
    copied = rows_first(x, order.shape[0], offsets.shape[0])
    grad_rows = gather_rows(grad, order, choices) if copied else grad
    call = GatedGradient(grad_rows, down, gate_RF, up_RF, factor_R, routing, choices, function, copied)
    grad_gate, grad_up, hidden_RF, share_R = gated_gradient(call, hidden=wanted[4], share=wanted[1])
    made: list[Tensor | None] = [None] * 8
    if hidden_RF is not None:
        made[4] = _outer(grad_rows, hidden_RF, routing, choices, copied, gather_y=True)
    del call, grad_rows, hidden_RF
    if wanted[0]:
        made[0] = _tokens_gradient(grad_gate, grad_up, gate, up, routing, choices)
    if share_R is not None:
        if down_bias is not None:
            share_R = share_R + bias_shares(grad, _flat(down_bias), offsets, order, choices)
        made[1] = share_R.view(weight.shape).to(weight.dtype)
    x_rows = gather_rows(x, order, choices) if copied and (wanted[2] or wanted[3]) else x
    for place, rows_RF in ((2, grad_gate), (3, grad_up)):
        if wanted[place]:
            made[place] = _outer(rows_RF, x_rows, routing, choices, copied, gather_x=True)
        if wanted[place + 3]:
            made[place + 3] = expert_sums(rows_RF, offsets, x.dtype)
    if wanted[7]:
        made[7] = expert_sums(grad, offsets, x.dtype, order, choices, factor_R)
    return tuple(x.new_empty(0) if t is None else t for t in made)  # type: ignore[return-value]


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, gate: Tensor, up: Tensor, down: Tensor,
    gate_bias: Tensor | None, up_bias: Tensor | None, down_bias: Tensor | None,
    offsets: Tensor, order: Tensor, home: Tensor, gate_RF: Tensor, up_RF: Tensor,
    activation: str, keep: bool, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    like = (x, weight, gate, up, down, gate_bias, up_bias, down_bias)
    made = [t.new_empty(t.shape) if w and t is not None else x.new_empty(0) for t, w in zip(like, wanted, strict=True)]
    return tuple(made)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weight, gate, up, down, *biases, activation, keep = inputs
    ctx.save_for_backward(x, weight, gate, up, down, *biases, *output[1:])
    ctx.activation, ctx.keep = activation, keep
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    wanted = [needs[0], *needs[2:9]]
    if grad is None or not any(wanted):
        return (None,) * len(needs)
    made = _backward(grad, *ctx.saved_tensors, ctx.activation, ctx.keep, wanted)
    x, *found = (g if want else None for g, want in zip(made, wanted, strict=True))
    return x, None, *found, None, None


_forward.register_autograd(_gradient, setup_context=_save)
flops.register_flops("dskc::kernel_experts", flops.experts)
flops.register_flops("dskc::kernel_experts_backward", flops.experts_backward)


# --- their parts


def down_product(
    hidden_RF: Tensor, down: Tensor, routing: Routing, choices: int, factor_R: Tensor, bias: Tensor | None
) -> Tensor:
    """The down product, each row times its factor, and the sum over each token's choices: [T, D]."""
    offsets_X, order_R, home_R = routing
    call = Product(hidden_RF, down, offsets_X, order_R, factor=factor_R, placed=True, bias=bias)
    ways = call.ways()
    if takes_grouped_mm(hidden_RF, down) and bias is None:
        ways.append(Way("torch grouped_mm"))

    def run(way: Way) -> Tensor:
        if isinstance(way, Tile):
            return combine_rows(launch_product(way, call), choices)
        return combine_rows(torch_product(hidden_RF, down, offsets_X), choices, home_R, factor_R)

    return run_best("experts.down", (*call.key, choices), ways, run)


def _tokens_gradient(
    grad_gate: Tensor, grad_up: Tensor, gate: Tensor, up: Tensor, routing: Routing, choices: int
) -> Tensor:
    """The gradient of the tokens: both products with the weights, summed over each token's choices: [T, D]."""
    offsets_X, order_R, home_R = routing
    call = Product(grad_gate, gate, offsets_X, order_R, flipped=True, more=(grad_up, up), placed=True)
    ways = call.ways()
    if takes_grouped_mm(grad_gate, gate, up):
        ways.append(Way("torch grouped_mm"))

    def run(way: Way) -> Tensor:
        if isinstance(way, Tile):
            return combine_rows(launch_product(way, call), choices)
        grad_RD = torch_product(grad_gate, gate, offsets_X, flipped=True)
        grad_RD += torch_product(grad_up, up, offsets_X, flipped=True)
        return combine_rows(grad_RD, choices, home_R)

    return run_best("experts.tokens_gradient", (*call.key, choices), ways, run)


def _outer(y: Tensor, x: Tensor, routing: Routing, choices: int, copied: bool, **gathers: bool) -> Tensor:
    """A weight's gradient; what `gathers` says is tokens, unless they have been `copied` to their rows."""
    if copied:
        return grouped_outer(Outer(y, x, routing.offsets_X, x.dtype))
    return grouped_outer(Outer(y, x, routing.offsets_X, x.dtype, routing.order_R, choices, **gathers))


def _flat(bias: Tensor | None) -> Any:
    return None if bias is None else bias.contiguous()
