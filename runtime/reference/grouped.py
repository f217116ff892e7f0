"""A linear layer for each expert, over rows sorted by expert."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .context import Context


def grouped_linear(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor, bias_XF: Tensor | None = None) -> Tensor:
    """Each row times the weight of its expert: [R, F], in the dtype of x_RD.

    x_RD is sorted by expert and offsets_X (int32) says where the rows of each end; an expert may have none. weight_XFD
    is [X, F, D], bias_XF [X, F] or None, both cast to the dtype of x_RD.
    """
    weight_XFD = weight_XFD.to(x_RD.dtype)
    if _fits_grouped_mm(x_RD, weight_XFD):
        y_RF = F.grouped_mm(x_RD, weight_XFD.transpose(-2, -1), offs=offsets_X)
    else:
        y_RF = _one_by_one(x_RD, weight_XFD, offsets_X)
    if bias_XF is not None:
        row_R = torch.arange(x_RD.shape[0], dtype=offsets_X.dtype, device=x_RD.device)
        expert_R = torch.searchsorted(offsets_X, row_R, right=True)
        y_RF = y_RF + bias_XF.to(x_RD.dtype).index_select(0, expert_R)
    return y_RF


def _fits_grouped_mm(x_RD: Tensor, weight_XFD: Tensor) -> bool:
    """Whether to take torch's kernel: bf16 on CUDA, with rows of a multiple of 16 bytes.

    On the CPU it is no faster than one product for each expert, has no float64, and fails for gradients of stride zero.
    """
    aligned = all(size * x_RD.element_size() % 16 == 0 for size in weight_XFD.shape[1:])
    return aligned and x_RD.is_cuda and x_RD.dtype == torch.bfloat16


# One product for each expert, whose sizes only the data know: an operator of its own, so that torch.compile, which
# cannot look inside, passes over it, and meta and fake tensors have shapes to go on with. (`flops.py` counts for it.)


@torch.library.custom_op("dskc::grouped_linear", mutates_args=())
def _one_by_one(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor) -> Tensor:
    y_RF = x_RD.new_empty(x_RD.shape[0], weight_XFD.shape[1])
    for weight_FD, (i, j) in zip(weight_XFD, _bounds(offsets_X), strict=True):
        torch.mm(x_RD[i:j], weight_FD.T, out=y_RF[i:j])
    return y_RF


@torch.library.custom_op("dskc::grouped_outer", mutates_args=())
def _outer_one_by_one(y_RF: Tensor, x_RD: Tensor, offsets_X: Tensor) -> Tensor:
    """For each expert the product of its rows, `y.T @ x`: [X, F, D], the gradient of its weight."""
    product_XFD = x_RD.new_empty(offsets_X.shape[0], y_RF.shape[1], x_RD.shape[1])
    for product_FD, (i, j) in zip(product_XFD, _bounds(offsets_X), strict=True):
        torch.mm(y_RF[i:j].T, x_RD[i:j], out=product_FD)
    return product_XFD


def _bounds(offsets_X: Tensor) -> Iterator[tuple[int, int]]:
    ends = offsets_X.tolist()
    return zip([0, *ends[:-1]], ends, strict=True)


@_one_by_one.register_fake
def _(x_RD: Tensor, weight_XFD: Tensor, offsets_X: Tensor) -> Tensor:
    return x_RD.new_empty(x_RD.shape[0], weight_XFD.shape[1])


@_outer_one_by_one.register_fake
def _(y_RF: Tensor, x_RD: Tensor, offsets_X: Tensor) -> Tensor:
    return x_RD.new_empty(offsets_X.shape[0], y_RF.shape[1], x_RD.shape[1])


def _save_linear(ctx: Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: Context, gradient_RF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_RD, weight_XFD, offsets_X = ctx.saved_tensors
    need_x, need_weight, _ = ctx.needs_input_grad
    gradient_RD = _one_by_one(gradient_RF, weight_XFD.transpose(-2, -1), offsets_X) if need_x else None
    gradient_XFD = _outer_one_by_one(gradient_RF, x_RD, offsets_X) if need_weight else None
    return gradient_RD, gradient_XFD, None


def _outer_backward(ctx: Context, gradient_XFD: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    y_RF, x_RD, offsets_X = ctx.saved_tensors
    need_y, need_x, _ = ctx.needs_input_grad
    gradient_RF = _one_by_one(x_RD, gradient_XFD, offsets_X) if need_y else None
    gradient_RD = _one_by_one(y_RF, gradient_XFD.transpose(-2, -1), offsets_X) if need_x else None
    return gradient_RF, gradient_RD, None


_one_by_one.register_autograd(_linear_backward, setup_context=_save_linear)
_outer_one_by_one.register_autograd(_outer_backward, setup_context=_save_linear)
