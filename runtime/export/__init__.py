"""Models for other systems: as one program of core ATen operations, as MLIR, and compiled by IREE.

    program = prefill(model)                                     # torch.export.ExportedProgram
    logits_BSV, *_ = load_cpu(compile_cpu(to_mlir(program)))(tokens_BS)

torch-mlir's importer and IREE come with `pip install "dskc[mlir]"`, and are imported when they are called.
"""

from .aten import prefill, to_aten
from .iree import CpuModule, compile_cpu, load_cpu
from .mlir import to_mlir

__all__ = ["CpuModule", "compile_cpu", "load_cpu", "prefill", "to_aten", "to_mlir"]
