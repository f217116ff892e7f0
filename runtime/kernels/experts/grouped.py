"""A linear layer for each expert, over rows sorted by expert: the kernels' side of `reference.grouped_linear`."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import reference
from ...reference.context import Context
from .. import flops
from ..choice import kernels_in_use
from ..row_kernel import KernelError
from ..tuning import Tile, Way, run_best
from .grouped_outer import Outer, expert_sums, grouped_outer
from .grouped_product import Gathered, Product, check_product, in_rows, launch_product, takes_grouped_mm, torch_product


def grouped_linear(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor, bias_XF: Tensor | None = None) -> Tensor:
    """Each row times the weight of its expert: [R, F], in the dtype of x_RD; differentiable.

    x_RD (bf16, fp16 or fp32) is sorted by expert and offsets_X (int32) says where the rows of each end; an expert may
    have none. weight_XFD is [X, F, D], bias_XF [X, F] or None, both cast to the dtype of x_RD. A row's result depends
    on nothing but the row. Raises KernelError for other dtypes, and for shapes that do not fit.
    """
    if not kernels_in_use(x_RD.device):
        return reference.grouped_linear(x_RD, weight_XFD, offsets_X, bias_XF)
    weight_XFD = weight_XFD.to(x_RD.dtype)
    check_product("grouped_linear", x_RD, weight_XFD, offsets_X)
    if bias_XF is None:
        return _linear(x_RD, weight_XFD, offsets_X)
    if bias_XF.shape != weight_XFD.shape[:2] or bias_XF.device != x_RD.device:
        raise KernelError(
            f"grouped_linear: bias {list(bias_XF.shape)} on {bias_XF.device} for a weight {list(weight_XFD.shape)} on "
            f"{x_RD.device}"
        )
    return _linear_bias(x_RD, weight_XFD, offsets_X, bias_XF.to(x_RD.dtype))


def grouped_product(call: Product, operation: str = "grouped.product") -> Tensor:
    """[R, N]: see `Product`. Beside the kernel, torch's own where nothing is done to the product's result."""
    ways = call.ways()
    plain = (call.more, call.bias, call.factor, call.x_scale) == (None,) * 4 and not call.placed
    if plain and takes_grouped_mm(call.x, call.weight) and call.dtype in (None, call.x.dtype):
        ways.append(Way("torch grouped_mm"))
    return run_best(operation, call.key, ways, lambda way: _product(way, call))


def _product(way: Way, call: Product) -> Tensor:
    if isinstance(way, Tile | Gathered):
        return launch_product(way, call)
    x_RK = call.gathered().x if call.choices else call.x
    return torch_product(x_RK, call.weight, call.offsets_X, call.flipped)


# What torch is told: an operator of its own, so that torch.compile passes over it and fake tensors have shapes.


@torch.library.custom_op("dskc::kernel_grouped_linear", mutates_args=())
def _linear(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor) -> Tensor:
    return grouped_product(Product(in_rows(x_RD), in_rows(weight_XFD), offsets_X))


@torch.library.custom_op("dskc::kernel_grouped_linear_bias", mutates_args=())
def _linear_bias(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor, bias_XF: Tensor) -> Tensor:
    return grouped_product(Product(in_rows(x_RD), in_rows(weight_XFD), offsets_X, bias=bias_XF.contiguous()))


@torch.library.custom_op("dskc::kernel_grouped_linear_backward", mutates_args=())
def _backward(
    gradient_RF: Tensor, x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of rows, weight and bias, empty where not wanted."""
    gradient_RF, x_RD, weight_XFD = in_rows(gradient_RF), in_rows(x_RD), in_rows(weight_XFD)
    none = x_RD.new_empty(0)
    return (
        grouped_product(Product(gradient_RF, weight_XFD, offsets_X, flipped=True)) if wanted[0] else none,
        grouped_outer(Outer(gradient_RF, x_RD, offsets_X, x_RD.dtype)) if wanted[1] else none.clone(),
        expert_sums(gradient_RF, offsets_X, x_RD.dtype) if wanted[2] else none.clone(),
    )


@_linear.register_fake
def _(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor) -> Tensor:
    return x_RD.new_empty(x_RD.shape[0], weight_XFD.shape[1])


@_linear_bias.register_fake
def _(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor, bias_XF: Tensor) -> Tensor:
    return x_RD.new_empty(x_RD.shape[0], weight_XFD.shape[1])


@_backward.register_fake
def _(
    gradient_RF: Tensor, x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x_RD.shape, weight_XFD.shape, weight_XFD.shape[:2])
    made = [x_RD.new_empty(shape if want else (0,)) for shape, want in zip(shapes, wanted, strict=True)]
    return made[0], made[1], made[2]


def _save(ctx: Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _gradient(ctx: Context, gradient_RF: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    wanted = [needs[0], needs[1], len(needs) > 3 and needs[3]]
    made = _backward(gradient_RF, *ctx.saved_tensors, wanted)
    grad_x, grad_weight, grad_bias = (g if want else None for g, want in zip(made, wanted, strict=True))
    return (grad_x, grad_weight, None, grad_bias)[: len(needs)]


_linear.register_autograd(_gradient, setup_context=_save)
_linear_bias.register_autograd(_gradient, setup_context=_save)
for _name in ("dskc::kernel_grouped_linear", "dskc::kernel_grouped_linear_bias"):
    flops.register_flops(_name, flops.grouped_linear)
flops.register_flops("dskc::kernel_grouped_linear_backward", flops.grouped_linear_backward)
