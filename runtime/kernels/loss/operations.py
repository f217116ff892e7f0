"""`linear_loss` as operations of torch: for torch.compile, fake tensors and modes that look on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import flops
from .products import Gradients, Wanted, gradients_of_mean, gradients_of_rows, losses_of_rows
from .rows import LossOptions, scale_in_place, wide_of

_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor target"
_OPTIONS = "float z, float smoothing, float? softcap, float scale, int ignored"
_WANTED = "bool of_x, bool of_weight, bool of_bias"


def losses(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, options: LossOptions) -> Tensor:
    """`losses_of_rows`, with its gradient; losses only."""
    return _losses(x_ND, weight_VD, bias_V, target_N, *_plainly(options))[0]


def mean(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, options: LossOptions) -> Tensor:
    """The mean loss, whose gradients are computed with it."""
    wanted = [t is not None and t.requires_grad for t in (x_ND, weight_VD, bias_V)]
    return _mean(x_ND, weight_VD, bias_V, target_N, *_plainly(options), *wanted)[0]


def _plainly(options: LossOptions) -> tuple[float, float, float | None, float, int]:
    return options.z, options.smoothing, options.softcap, options.scale, options.ignored


def _told(found: Gradients, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An operation has all its results always: those not wanted are empty."""
    x, weight, bias = (like.new_empty(0) if t is None else t for t in (found.x_ND, found.weight_VD, found.bias_V))
    return x, weight, bias


@torch.library.custom_op("dskc::linear_losses", mutates_args=(), schema=f"({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)")
def _losses(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    loss_N, lse_N = losses_of_rows(x, weight, bias, target, LossOptions(*options))
    return loss_N.clone(), lse_N.clone()  # results of an operation have memory of their own


@_losses.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    loss = x.new_empty(x.shape[0], dtype=wide_of(x.dtype))
    return loss, torch.empty_like(loss)


@torch.library.custom_op(
    "dskc::linear_losses_backward",
    mutates_args=(),
    schema=f"({_TENSORS}, Tensor lse, Tensor factor, {_OPTIONS}, {_WANTED}) -> (Tensor, Tensor, Tensor)",
)
def _losses_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, lse: Tensor, factor: Tensor, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    options, wanted = LossOptions(*numbers[:5]), Wanted(*numbers[5:])
    return _told(gradients_of_rows(x, weight, bias, target, lse, factor, options, wanted), x)


@_losses_backward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, lse: Tensor, factor: Tensor, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _told(_like(x, weight, bias, Wanted(*numbers[5:])), x)


@torch.library.custom_op(
    "dskc::mean_linear_loss",
    mutates_args=(),
    schema=f"({_TENSORS}, {_OPTIONS}, {_WANTED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _mean(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *numbers: Any) -> tuple[Tensor, ...]:
    options = LossOptions(*numbers[:5])
    loss_N, found, over = gradients_of_mean(x, weight, bias, target, options, Wanted(*numbers[5:]))
    loss = loss_N.sum() / (target != options.ignored).sum().clamp(min=1)
    return loss, *_told(found, x), torch.stack(over)


@_mean.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *numbers: Any) -> tuple[Tensor, ...]:
    loss = x.new_empty((), dtype=wide_of(x.dtype))
    return loss, *_told(_like(x, weight, bias, Wanted(*numbers[5:])), x), loss.new_empty(2)


@torch.library.custom_op("dskc::linear_loss_scaled", mutates_args=())
def _scaled(gradient: Tensor, by: Tensor, over: Tensor) -> Tensor:
    """`gradient * by / over`, in which scalars are not rounded to the gradient's dtype, as torch would."""
    made = gradient.clone()
    scale_in_place(made, by, over)
    return made


@_scaled.register_fake
def _(gradient: Tensor, by: Tensor, over: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _like(x: Tensor, weight: Tensor, bias: Tensor | None, wanted: Wanted) -> Gradients:
    return Gradients(
        torch.empty_like(x) if wanted.x else None,
        torch.empty_like(weight) if wanted.weight else None,
        torch.empty_like(bias) if wanted.bias and bias is not None else None,
    )


# --- gradients


def _keep_losses(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.options = inputs[4:]
    ctx.mark_non_differentiable(output[1])


def _losses_gradient(ctx: Any, factor: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, lse = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:3]
    found = _losses_backward(*tensors, lse, factor, *ctx.options, *wanted)
    return *(t if w else None for t, w in zip(found, wanted, strict=True)), *(None,) * 6


def _keep_mean(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _mean_gradient(ctx: Any, by: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    *gradients, overs = ctx.saved_tensors
    over = (overs[0], overs[1], overs[1])
    wanted = ctx.needs_input_grad[:3]
    found = (_scaled(t, by, o) if w else None for t, o, w in zip(gradients, over, wanted, strict=True))
    return *found, *(None,) * 9


_losses.register_autograd(_losses_gradient, setup_context=_keep_losses)
_mean.register_autograd(_mean_gradient, setup_context=_keep_mean)
flops.register_flops("dskc::linear_losses", flops.linear_losses)
for _name in ("dskc::linear_losses_backward", "dskc::mean_linear_loss"):
    flops.register_flops(_name, flops.linear_losses_backward)
