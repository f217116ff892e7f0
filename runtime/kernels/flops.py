"""What this project's operations cost, for `torch.utils.flop_counter.FlopCounterMode`.

Matrix products are counted, a multiplication and an addition as two, by shapes alone, as torch counts its own. So
attention counts every pair of a query and a key, also those that its mask leaves out (causal, windows, blocks,
documents), as torch does for its fused attention; a spec's ledger also has the count with causal attention as half.
Operations without a formula here have no matrix product in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

from ..reference import flops as flops  # those of the references

Shape = Sequence[int]
Formula = Callable[..., int]


def register_flops(name: str, formula: Formula) -> None:
    """Has the operation `namespace::operation` counted by a formula.

    That is given shapes for tensors, all else as the operation is, and the result's shapes as `out_shape`.
    """
    namespace, operation = name.split("::")
    register_flop_formula(getattr(getattr(torch.ops, namespace), operation))(formula)


# --- attention


def attention(q_BSHE: Shape, k_BTGE: Shape, v_BTGV: Shape, *others: object, out_shape: object) -> int:
    """2 B H S T (E + V): scores, and values by their weights, for each query head."""
    return _pairs(q_BSHE, k_BTGE) * (q_BSHE[3] + v_BTGV[3])


def attention_backward(
    grad_o: Shape, q_BSHE: Shape, k_BTGE: Shape, v_BTGV: Shape, *others: object, out_shape: object
) -> int:
    """2 B H S T (3 E + 2 V): the scores again, and the gradients of weights, values, queries and keys.

    An algorithm that computes the scores twice is counted as one that does not.
    """
    return _pairs(q_BSHE, k_BTGE) * (3 * q_BSHE[3] + 2 * v_BTGV[3])


def _pairs(q_BSHE: Shape, k_BTGE: Shape) -> int:
    return 2 * math.prod(q_BSHE[:3]) * k_BTGE[1]


def decode_attention(
    q_BSHE: Shape, k: Shape, v: Shape, lengths: Shape, table: Shape | None, longest: int, *others: object,
    out_shape: object,
) -> int:  # fmt: skip
    """2 B S H (E + V) times the longest length that the call allows: how long each is, shapes do not tell."""
    return 2 * math.prod(q_BSHE[:3]) * longest * (q_BSHE[3] + v[-1])


def latent_decode(
    q_BSHC: Shape, q_rope_BSHR: Shape, c: Shape, k_rope: Shape, lengths: Shape, table: Shape | None, longest: int,
    *others: object, out_shape: object,
) -> int:  # fmt: skip
    """2 B S H (2 C + R) times the longest length: a latent is key and value, beside it a turned key."""
    return 2 * math.prod(q_BSHC[:3]) * longest * (2 * q_BSHC[3] + q_rope_BSHR[3])


# --- experts


def grouped_linear(x_RD: Shape, weight_XFD: Shape, *others: object, out_shape: object) -> int:
    """2 R F D."""
    return 2 * math.prod(x_RD) * weight_XFD[1]


def grouped_linear_backward(
    grad_RF: Shape, x_RD: Shape, weight_XFD: Shape, offsets_X: Shape, wanted: Sequence[bool], *, out_shape: object
) -> int:
    """2 R F D for each of the gradients of rows and weight that is wanted."""
    return sum(wanted[:2]) * grouped_linear(x_RD, weight_XFD, out_shape=None)


def grouped_linear_fp8(
    x_ND: Shape, x_scale: Shape, weight_XFD: Shape, *others: object, out_shape: Sequence[int]
) -> int:
    """2 R F D; the rows are those of the result, which has one for each choice of a token."""
    return 2 * math.prod(out_shape) * weight_XFD[2]


def experts(
    x_TD: Shape, chosen_TK: Shape, weight_TK: Shape, gate_XFD: Shape, *others: object, out_shape: object
) -> int:
    """Three products of T K rows."""
    return 3 * _of_choices(chosen_TK, gate_XFD)


def experts_backward(
    grad_TD: Shape, x_TD: Shape, weight_TK: Shape, gate_XFD: Shape, up_XFD: Shape, down_XDF: Shape,
    gate_bias: Shape | None, up_bias: Shape | None, down_bias: Shape | None,
    offsets: Shape, order: Shape, home: Shape, gate_RF: Shape, up_RF: Shape,
    activation: str, keep: bool, wanted: Sequence[bool], *, out_shape: object,
) -> int:  # fmt: skip
    """The gradient between the products, two products for that of tokens, one for that of each weight.

    Two more where gate and up were not kept.
    """
    of_x, _, *of_weights = wanted[:5]
    return (1 + 2 * of_x + sum(of_weights) + 2 * (not keep)) * _of_choices(weight_TK, gate_XFD)


def _of_choices(chosen_TK: Shape, gate_XFD: Shape) -> int:
    return 2 * math.prod(chosen_TK) * gate_XFD[1] * gate_XFD[2]


# --- the linear map and loss at once


def linear_losses(x_ND: Shape, weight_VD: Shape, *others: object, out_shape: object) -> int:
    """2 N V D: the logits."""
    return 2 * math.prod(x_ND) * weight_VD[0]


def linear_losses_backward(x_ND: Shape, weight_VD: Shape, *others: object, out_shape: object) -> int:
    """The logits again, and the gradients of x and weight that are wanted: also of the mean, which has them forward."""
    of_x, of_weight, _ = others[-3:]
    return (1 + bool(of_x) + bool(of_weight)) * linear_losses(x_ND, weight_VD, out_shape=None)


# --- products


def product(x_ND: Shape, w_FD: Shape, *others: object, out_shape: object) -> int:
    """2 N D F, whatever the numbers' width."""
    return 2 * math.prod(x_ND) * w_FD[0]


def fp8_product(x_ND: Shape, x_scale: Shape, w_FD: Shape, *others: object, out_shape: object) -> int:
    """2 N D F."""
    return product(x_ND, w_FD, out_shape=None)


def matvec(
    x_ND: Shape, weight: Shape, scale: Shape | None, zero: Shape | None, up: Shape | None, *others: object,
    out_shape: object,
) -> int:  # fmt: skip
    """2 N D F, twice with an up projection; a packed weight has F rows too."""
    return (1 if up is None else 2) * product(x_ND, weight, out_shape=None)
