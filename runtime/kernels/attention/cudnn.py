"""cuDNN's attention, by torch's own operators: one of the ways of `attention.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..tuning import Unfit, Way

CUDNN = Way("cudnn")


def forward(q_BSHE: Tensor, k_BTGE: Tensor, v_BTGV: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """The result, and log-sum-exp [B, H, S] in nats. Raises Unfit."""
    with _or_unfit():
        o, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q_BSHE.transpose(1, 2), k_BTGE.transpose(1, 2), v_BTGV.transpose(1, 2),
            None, True, 0.0, causal, False, scale=scale,
        )  # fmt: skip
    return o.transpose(1, 2).contiguous(), lse.view(q_BSHE.shape[0], q_BSHE.shape[2], q_BSHE.shape[1])


def backward(
    grad_o: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of q, k and v. Raises Unfit."""
    none = torch.zeros((), dtype=torch.int64, device=q.device)
    with _or_unfit():
        made = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad_o.transpose(1, 2), q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), o.transpose(1, 2),
            lse.unsqueeze(-1), none, none, None, None, None, q.shape[1], k.shape[1], 0.0, causal, scale=scale,
        )  # fmt: skip
    dq, dk, dv = (gradient.transpose(1, 2).contiguous() for gradient in made)
    return dq, dk, dv


@contextmanager
def _or_unfit() -> Iterator[None]:
    """Which widths it takes differs between its versions and GPUs: it says so only when asked."""
    try:
        yield
    except RuntimeError as error:
        if "cudnn" not in str(error).lower():
            raise
        raise Unfit(str(error)) from error
