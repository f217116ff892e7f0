"""A module as one program of core ATen operations (docs.pytorch.org, "IRs"): those that importers elsewhere know."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram, default_decompositions, export

from ..problem import Problem
from .forms import FORMS


def prefill(model: nn.Module, batch: int | None = None, length: int | None = None) -> ExportedProgram:
    """A generated model's forward on tokens [batch, length] (int64): its logits, then what else it gives, in order.

    None leaves a size open: any batch, and any length from two tokens. Raises Problem as `to_aten` does.
    """
    device = next(model.parameters()).device
    tokens_BS = torch.zeros(batch or 2, length or 3, dtype=torch.int64, device=device)  # a 1 would not stay open
    dims = (Dim("batch") if batch is None else None, Dim("length", min=2) if length is None else None)
    return to_aten(model, (tokens_BS,), {0: {axis: dim for axis, dim in enumerate(dims) if dim is not None}})


def to_aten(
    module: nn.Module, arguments: tuple[Tensor, ...], open_axes: Mapping[int, Mapping[int, Dim]] | None = None
) -> ExportedProgram:
    """What the module does with arguments like these, for inference in its present mode, its parameters inside.

    open_axes: by argument, then by axis, the sizes that need not be those of `arguments`. Raises Problem when an
    operation is left that core ATen lacks, as those of a library of kernels are.
    """
    shapes = tuple(open_axes.get(i, {}) for i in range(len(arguments))) if open_axes else None
    decompositions = default_decompositions()
    decompositions.update(FORMS)
    with torch.no_grad():
        program = export(module, arguments, dynamic_shapes=shapes).run_decompositions(decompositions)
    foreign = sorted({str(operation) for operation in operations(program) if torch.Tag.core not in operation.tags})
    if foreign:
        raise Problem(
            f"core ATen has no {', '.join(foreign)}", "write it in terms of ATen's operations, or leave it out"
        )
    return program


def operations(program: ExportedProgram) -> list[OpOverload]:
    """What it calls, once for each call; arithmetic on sizes is not among it."""
    return [node.target for node in program.graph.nodes if isinstance(node.target, OpOverload)]
