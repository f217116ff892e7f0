"""The second stage of sums over rows: what the programs of a kernel summed, added up in one order."""

from __future__ import annotations

from .language import tl, triton

BLOCK = 32  # columns of a program: narrow, so that many multiprocessors share a small table


@triton.jit
def sum_programs_kernel(rows_ptr, total_ptr, P, D, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums [D] over the first axis of rows [P, D]. torch's own takes three times as long for few, wide rows."""
    column_D = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    total_RD = tl.zeros((32, BLOCK_D), rows_ptr.dtype.element_ty)
    for start in range(0, P, 32):
        row_R = start + tl.arange(0, 32)[:, None]
        total_RD += tl.load(rows_ptr + row_R * D + column_D, (row_R < P) & (column_D < D), other=0.0)
    tl.store(total_ptr + column_D, tl.sum(total_RD, 0, keep_dims=True), column_D < D)
