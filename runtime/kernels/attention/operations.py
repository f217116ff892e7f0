"""Attention as torch knows it: an operator for those who look on, and a function of autograd for those who do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import flops
from ..row_kernel import _plain, _unique

if TYPE_CHECKING:
    from .kernel import AttentionKernel


class Direct(torch.autograd.Function):
    """Without torch's dispatcher in between, which takes longer than short sequences do."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: AttentionKernel,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor | None,
        sinks: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        o, lse = kernel._forward(q, k, v, documents, sinks, seed)
        ctx.save_for_backward(q, k, v, o, lse, documents, sinks, seed)
        ctx.kernel = kernel
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_o: Tensor | None, grad_lse: None) -> tuple[Tensor | None, ...]:
        if grad_o is None:
            return (None,) * 7
        kept = ctx.saved_tensors
        # A mode that counts or records may have come between forward and backward.
        gradients = ctx.kernel._gradients if _plain((grad_o, *kept[:3])) else ctx.kernel._backward
        dq, dk, dv, grad_sinks = gradients(grad_o, *kept)
        return None, dq, dk, dv, None, grad_sinks if ctx.needs_input_grad[5] else None, None


def register(kernel: AttentionKernel) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Forward, which is differentiable, and backward, under a name that is the kernel's own."""
    name = _unique(kernel.name)
    inputs = "Tensor q, Tensor k, Tensor v, Tensor? documents, Tensor? sinks, Tensor? seed"
    forward = torch.library.custom_op(name, kernel._forward, mutates_args=(), schema=f"({inputs}) -> (Tensor, Tensor)")

    def fake(q: Tensor, k: Tensor, v: Tensor, *others: object) -> tuple[Tensor, Tensor]:
        batch, queries, heads = q.shape[:3]
        return q.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(batch, heads, queries, dtype=torch.float32)

    forward.register_fake(fake)
    inputs = inputs.replace("Tensor v,", "Tensor v, Tensor o, Tensor lse,")
    backward = torch.library.custom_op(
        f"{name}_backward", kernel._gradients, mutates_args=(),
        schema=f"(Tensor grad_o, {inputs}) -> (Tensor, Tensor, Tensor, Tensor)",
    )  # fmt: skip

    def fake_backward(grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, documents: object,
                      sinks: Tensor | None, seed: object) -> tuple[Tensor, ...]:  # fmt: skip
        return (
            q.new_empty(q.shape),
            k.new_empty(k.shape),
            v.new_empty(v.shape),
            (sinks.new_empty(sinks.shape) if sinks is not None else lse.new_empty(0)),
        )

    backward.register_fake(fake_backward)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs[:3], *output, *inputs[3:])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, grad_o: Tensor | None, grad_lse: None) -> tuple[Tensor | None, ...]:
        if grad_o is None:
            return (None,) * 6
        dq, dk, dv, grad_sinks = backward(grad_o, *ctx.saved_tensors)
        return dq, dk, dv, None, grad_sinks if ctx.needs_input_grad[4] else None, None

    forward.register_autograd(gradient, setup_context=keep)
    flops.register_flops(name, flops.attention)
    flops.register_flops(f"{name}_backward", flops.attention_backward)
    return forward, backward
