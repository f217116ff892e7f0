"""Tells `torch.utils.flop_counter.FlopCounterMode` what the operators of `grouped.py` cost, and triangular systems.

Import this module before counting. It is apart because torch's counter brings in Triton, which takes longer to import
than all the rest of the runtime.
"""

from __future__ import annotations

import math

import torch
from torch.utils.flop_counter import register_flop_formula

from . import grouped as grouped  # defines the operators

Shape = tuple[int, ...]


@register_flop_formula([torch.ops.dskc.grouped_linear, torch.ops.dskc.grouped_outer])
def grouped_flops(a_shape: Shape, b_shape: Shape, *others: object, out_shape: Shape, **options: object) -> int:
    """2 R D F for both: all entries of the rows [R, D] or [R, F], times the axis that only the second factor has."""
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


@register_flop_formula(torch.ops.aten.linalg_solve_triangular)
def triangular_flops(a_shape: Shape, b_shape: Shape, *others: object, out_shape: Shape, **options: object) -> int:
    """M² N for M x M against M x N: substitution is half a product with the whole matrix."""
    return math.prod(out_shape) * a_shape[-1]
