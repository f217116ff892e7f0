"""The row programs of generated code, forward and backward, beside torch.compile, eager PyTorch and Liger.

Every row of a table counts the bytes that must move: each input read once, each result written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels import RowKernel, use_kernels
from ..kernels.launch import Part, Vector
from .case import OURS, Case, Run, gradients
from .model import Trained
from .workload import Call, Given, Workload

Function = Callable[..., object]


def cases(asked: Workload) -> Iterator[Case]:
    """Forward and backward of each kernel that the model calls; equal ones of another name once."""
    kernels = Trained.load(Path(asked.folder)).kernels
    seen: set[object] = set()
    for call in asked.calls:
        if call.is_attention:
            continue
        kernel: RowKernel = getattr(kernels, call.kernel)
        shape = ", ".join(_shown(t) for t in call.tensors)
        if (shape, call.kernel.rstrip("0123456789")) in seen:
            continue
        seen.add((shape, call.kernel.rstrip("0123456789")))
        results = _results(kernel, call)
        given = sum(t.bytes for t in call.tensors)
        # At the least one operation for each element that is read.
        flops = float(sum(t.elements for t in call.tensors))
        moved = float(given + sum(t.nbytes for t in results))
        build = partial(_build, asked.folder, call)
        yield Case(f"{call.kernel} forward", shape, flops, moved, partial(build, False), "GB/s", "copy")
        if kernel.backward is not None and any(t.learns for t in call.tensors):
            moved = float(_backward_bytes(kernel, call, results))
            yield Case(f"{call.kernel} backward", shape, flops, moved, partial(build, True), "GB/s", "copy")


def _shown(tensor: Given) -> str:
    kind = {"bfloat16": "bf16", "float32": "fp32", "int64": "ids", "int32": "ids"}.get(tensor.dtype, tensor.dtype)
    return f"{'x'.join(map(str, tensor.shape))} {kind}"


def _results(kernel: RowKernel, call: Call) -> tuple[Tensor, ...]:
    """As the kernel leaves them, without data."""
    given = [torch.empty(t.shape, dtype=t.torch_dtype, device="meta") for t in call.tensors]
    with use_kernels("reference"):
        made = kernel(*given)
    return made if isinstance(made, tuple) else (made,)


def _backward_bytes(kernel: RowKernel, call: Call, results: tuple[Tensor, ...]) -> int:
    """What backward reads and writes: numbers that were saved a row each, and sums over rows, are left out."""
    assert kernel.backward is not None
    sizes = {layout.name: t.bytes for layout, t in zip(kernel.arguments, call.tensors, strict=True)}
    sizes |= {layout.name: t.nbytes for layout, t in zip(kernel.results, results, strict=True)}
    sizes |= {f"grad_{layout.name}": t.nbytes for layout, t in zip(kernel.results, results, strict=True)}
    sizes |= {  # the gradient of what comes again comes for every row
        gradient: 0 if isinstance(layout, Vector | Part) else sizes[layout.name]
        for layout in kernel.arguments
        if (gradient := kernel.gradients.get(layout.name))
    }
    return sum(sizes.get(name, 0) for name in (*kernel.backward.reads, *kernel.backward.writes))


def _build(folder: str, call: Call, backward: bool) -> Mapping[str, Run]:
    kernel: RowKernel = getattr(Trained.load(Path(folder)).kernels, call.kernel)
    width = next((t.shape[-1] for t in call.tensors if t.torch_dtype.is_floating_point and t.shape), 2)
    given = [_drawn(t, width, backward) for t in call.tensors]
    inputs = [t for t in given if t.requires_grad]
    functions: dict[str, Function] = {
        OURS: kernel,
        "torch.compile": torch.compile(kernel.reference, dynamic=False),
        "torch": kernel.reference,
    }
    functions |= _liger(call)
    runs: dict[str, Run] = {name: partial(function, *given) for name, function in functions.items()}
    return {name: gradients(run, inputs) for name, run in runs.items()} if backward else runs


def _drawn(tensor: Given, below: int, backward: bool) -> Tensor:
    dtype = tensor.torch_dtype
    if dtype == torch.bool:
        return torch.rand(tensor.shape, device="cuda") < 0.5
    if not dtype.is_floating_point:
        return torch.randint(0, below, tensor.shape, device="cuda", dtype=dtype)
    return torch.randn(tensor.shape, device="cuda", dtype=dtype).requires_grad_(backward and tensor.learns)


def _liger(call: Call) -> dict[str, Function]:
    """Liger's kernel of the same work, where it has one; without its package it fails when run."""

    def norm(x: Tensor, weight: Tensor) -> Any:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return LigerRMSNormFunction.apply(x, weight, 1e-6, 0.0, "llama", False)

    def added(x: Tensor, y: Tensor, weight: Tensor) -> Any:
        from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

        return LigerFusedAddRMSNormFunction.apply(x, y, weight, 1e-6, 0.0, "llama", False)[::-1]

    def gated(gate: Tensor, up: Tensor) -> Any:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(gate, up)

    known: dict[str, Function] = {"rms_norm": norm, "add_rms_norm": added, "swiglu": gated}
    name = call.kernel.rstrip("0123456789")
    return {"liger": known[name]} if name in known else {}
