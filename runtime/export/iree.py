"""MLIR compiled by IREE for this machine's processor, and run on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import Problem

MISSING = ("IREE is not installed", 'pip install "dskc[mlir]"')


class CpuModule:
    """A compiled program, called with the tensors that its `main` takes."""

    def __init__(self, module: Any) -> None:
        self._main = module["main"]

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """All results in order, on the CPU; of dtypes that NumPy has. ValueError for shapes it is not compiled for."""
        results = self._main(*(argument.numpy(force=True) for argument in arguments))
        results = results if isinstance(results, tuple | list) else (results,)
        return tuple(torch.from_numpy(result.to_host().copy()) for result in results)  # the device's may not be written


def compile_cpu(mlir: bytes, cpu: str = "host") -> bytes:
    """What IREE's runtime loads, from a module in the torch dialect; `cpu` is one of LLVM's names.

    Raises Problem when IREE's compiler is not installed, or cannot compile an operation.
    """
    try:
        from iree.compiler.tools import CompilerToolError, compile_str
    except ImportError as error:
        raise Problem(*MISSING) from error
    flags = [
        f"--iree-llvmcpu-target-cpu={cpu}",
        "--iree-input-demote-f64-to-f32=false",  # it would, unasked: rope's angles must not lose their digits
    ]
    try:
        return compile_str(mlir, target_backends=["llvm-cpu"], input_type="torch", extra_args=flags)
    except CompilerToolError as error:
        said = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()[:2]
        raise Problem("IREE cannot compile this program:\n" + "\n".join(said)) from error


def load_cpu(program: bytes) -> CpuModule:
    """What `compile_cpu` gave, ready to be called; it runs on the caller's thread.

    Raises Problem when IREE's runtime is not installed.
    """
    try:
        from iree import runtime
    except ImportError as error:
        raise Problem(*MISSING) from error
    return CpuModule(runtime.load_vm_flatbuffer(program, driver="local-sync"))
