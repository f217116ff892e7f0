"""A linear map and cross entropy at once, without ever holding the logits of all rows.

`mean_linear_loss` is for training. The factor between a mean and its rows is known before, so the gradients are
computed with the loss: three matrix products in all, as with the logits kept. `linear_losses` gives each row's loss;
what its gradients are multiplied by is known only in backward, so that computes the logits again: four products.

An eighth of the logits is held at a time, at least 200 MiB and at most 640. They have the dtype of x, in which cuBLAS
gives them; what is computed of them is computed in fp32 (fp64 of fp64), and their gradient has their dtype again. The
weight's gradient is summed over some groups of rows, or the gradient of x over some groups of columns, and rounded to
its dtype after each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import reference
from ...reference.arrange import shift
from ...reference.precision import wide
from ..choice import kernels_in_use
from ..row_kernel import FLOATING, KernelError, _plain
from .products import Gradients, Wanted, gradients_of_mean, gradients_of_rows, losses_of_rows
from .rows import LossOptions, scale_in_place


def linear_losses(
    x: Tensor,
    weight_VD: Tensor,
    target: Tensor,
    *,
    bias_V: Tensor | None = None,
    z: float = 0.0,
    smoothing: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    ignored: int = -100,
    log_probabilities: bool = False,
) -> Tensor:
    """Cross entropy in nats of each row of x [..., D] at its target (int64 [...]), zero where that is `ignored`.

    `token_losses(softcap(scale * linear(x, weight, bias)), target, z, smoothing)` of `dskc.runtime.reference`, in fp32
    (fp64 of fp64) and in the shape of targets. With `log_probabilities` the natural logarithm of each target's
    probability instead, zero where it is ignored. Differentiable in x, weight and bias. A target that is neither
    `ignored` nor in 0 .. V - 1 has a loss that is not a number. Raises KernelError for tensors that do not fit.
    """
    options = _options(z, smoothing, softcap, scale, ignored)
    if log_probabilities and (z or smoothing):
        raise KernelError("linear_losses: log probabilities have neither z nor smoothing")
    x_ND, target_N = _rows(x, weight_VD, target, bias_V)
    if not kernels_in_use(x.device):
        loss_N = _reference(x_ND, weight_VD, target_N, bias_V, options)
    else:
        given = _of_one_dtype(x_ND, weight_VD, bias_V)
        if _plain([t for t in (*given, target_N) if t is not None]):
            loss_N = _Losses.apply(*given, target_N, options)
        else:
            from .operations import losses

            loss_N = losses(*given, target_N, options)
    return (-loss_N if log_probabilities else loss_N).view(target.shape)


def mean_linear_loss(
    x: Tensor,
    weight_VD: Tensor,
    target: Tensor,
    *,
    bias_V: Tensor | None = None,
    z: float = 0.0,
    smoothing: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    ignored: int = -100,
) -> Tensor:
    """The sum of `linear_losses` over the targets that are not `ignored`, by their number: a scalar, zero without any.

    Gradients are computed with the loss where any are wanted, and multiplied in backward by what comes from above; that
    can be done once, so a second backward raises KernelError, as do tensors that do not fit.
    """
    options = _options(z, smoothing, softcap, scale, ignored)
    x_ND, target_N = _rows(x, weight_VD, target, bias_V)
    if not kernels_in_use(x.device):
        loss_N = _reference(x_ND, weight_VD, target_N, bias_V, options)
        return loss_N.sum() / _count(target_N, ignored)
    given = _of_one_dtype(x_ND, weight_VD, bias_V)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    plain = _plain([t for t in (*given, target_N) if t is not None])
    if plain and wanted:
        return _Mean.apply(*given, target_N, options)
    if plain:
        return _mean(losses_of_rows(*given, target_N, options)[0], target_N, ignored)
    from .operations import losses, mean

    return mean(*given, target_N, options) if wanted else _mean(losses(*given, target_N, options), target_N, ignored)


def next_token_linear(
    x_BSD: Tensor,
    weight_VD: Tensor,
    targets_BS: Tensor,
    ahead: int = 1,
    *,
    bias_V: Tensor | None = None,
    z: float = 0.0,
    smoothing: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`next_token` of `dskc.runtime.reference` with logits `softcap(scale * linear(x, weight, bias))`; a scalar.

    Targets are as there: int64 [B, S], at each position the token that follows it, -100 where there is none.
    """
    assert ahead >= 1, f"cannot predict {ahead} tokens ahead"
    target_BS = targets_BS
    for n in range(1, ahead):
        target_BS = shift(targets_BS, n, fill=-100).where(target_BS != -100, -100)
    return mean_linear_loss(
        x_BSD, weight_VD, target_BS, bias_V=bias_V, z=z, smoothing=smoothing, softcap=softcap, scale=scale
    )


# --- what autograd is told


class _Losses(torch.autograd.Function):
    """Losses of rows; backward computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, options: LossOptions
    ) -> Tensor:
        loss_N, lse_N = losses_of_rows(x_ND, weight_VD, bias_V, target_N, options)
        ctx.save_for_backward(x_ND, weight_VD, bias_V, target_N, lse_N)
        ctx.options = options
        return loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor_N: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, bias_V, target_N, lse_N = ctx.saved_tensors
        wanted = Wanted(*ctx.needs_input_grad[:3])
        found = gradients_of_rows(x_ND, weight_VD, bias_V, target_N, lse_N, factor_N, ctx.options, wanted)
        return found.x_ND, found.weight_VD, found.bias_V, None, None


class _Mean(torch.autograd.Function):
    """The mean loss; forward computes its gradients too, and hands them over in backward."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, options: LossOptions
    ) -> Tensor:
        loss_N, ctx.gradients, ctx.over = gradients_of_mean(
            x_ND, weight_VD, bias_V, target_N, options, Wanted(*ctx.needs_input_grad[:3])
        )
        return _mean(loss_N, target_N, options.ignored)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:
        found: Gradients | None = ctx.gradients
        if found is None:
            raise KernelError("mean_linear_loss: its gradients are gone after one backward; use linear_losses for more")
        # Not kept here, so that the weight's gradient becomes `weight.grad` itself and not a copy.
        ctx.gradients = None
        for gradient, over in found.there(ctx.over):
            scale_in_place(gradient, by, over)
        return found.x_ND, found.weight_VD, found.bias_V, None, None


# --- what it means


def _reference(
    x_ND: Tensor, weight_VD: Tensor, target_N: Tensor, bias_V: Tensor | None, options: LossOptions
) -> Tensor:
    logits_NV = reference.linear(x_ND, weight_VD, bias_V)
    if options.scale != 1.0:
        logits_NV = options.scale * logits_NV
    if options.softcap is not None:
        logits_NV = reference.softcap(logits_NV, options.softcap)
    target_N = target_N.where(target_N != options.ignored, -100)
    if not len(target_N):
        return wide(logits_NV).sum(-1)
    return reference.token_losses(logits_NV, target_N, options.z, options.smoothing)


def _count(target_N: Tensor, ignored: int) -> Tensor:
    return (target_N != ignored).sum().clamp(min=1)


def _mean(loss_N: Tensor, target_N: Tensor, ignored: int) -> Tensor:
    return loss_N.sum() / _count(target_N, ignored)


# --- what it takes


def _options(z: float, smoothing: float, softcap: float | None, scale: float, ignored: int) -> LossOptions:
    if not 0.0 <= smoothing <= 1.0:
        raise KernelError(f"linear loss: smoothing is {smoothing}, and must lie between 0 and 1")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise KernelError(f"linear loss: softcap is {softcap}, and must be more than 0 and finite")
    if not (-math.inf < z < math.inf and -math.inf < scale < math.inf):  # torch.compile follows no isfinite
        raise KernelError(f"linear loss: z is {z} and scale {scale}, and both must be finite")
    return LossOptions(float(z), float(smoothing), softcap, float(scale), int(ignored))


def _rows(x: Tensor, weight_VD: Tensor, target: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor]:
    """x [N, D] and targets [N]. Raises KernelError for what does not fit together."""
    if weight_VD.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight_VD.shape[1]:
        raise KernelError(f"linear loss: x is {list(x.shape)} and the weight {list(weight_VD.shape)}: [..., D], [V, D]")
    if target.shape != x.shape[:-1] or target.dtype != torch.int64:
        raise KernelError(
            f"linear loss: targets are {target.dtype} {list(target.shape)}, and must be int64 {list(x.shape[:-1])}"
        )
    if bias_V is not None and bias_V.shape != weight_VD.shape[:1]:
        raise KernelError(f"linear loss: the bias is {list(bias_V.shape)}, and must be {list(weight_VD.shape[:1])}")
    if not weight_VD.shape[0]:
        raise KernelError("linear loss: the weight has no rows, so there is nothing to predict")
    for name, tensor in {"x": x, "the weight": weight_VD, "the bias": bias_V, "the target": target}.items():
        if tensor is not None and tensor.device != x.device:
            raise KernelError(f"linear loss: {name} is on {tensor.device}, and x on {x.device}")
        if tensor is not None and tensor is not target and tensor.dtype not in FLOATING:
            kinds = ", ".join(str(d).removeprefix("torch.") for d in FLOATING)
            raise KernelError(f"linear loss: {name} is {tensor.dtype}, and kernels take {kinds}")
    return x.reshape(target.numel(), x.shape[-1]), target.reshape(-1).contiguous()


def _of_one_dtype(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference.linear` does it: weight and bias take the dtype of x."""
    return x_ND, weight_VD.to(x_ND.dtype), None if bias_V is None else bias_V.to(x_ND.dtype)
