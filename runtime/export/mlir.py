"""An exported program in MLIR, by torch-mlir's importer, of which IREE's compiler brings a copy."""

from __future__ import annotations

import io

from torch.export import ExportedProgram

from ..problem import Problem
from .iree import MISSING


def to_mlir(program: ExportedProgram) -> bytes:
    """Bytecode of a module in the torch dialect with one function, `main`; the weights are constants in it.

    Raises Problem when the importer is not installed.
    """
    try:
        from iree.compiler.extras.fx_importer import FxImporter
    except ImportError as error:
        raise Problem(*MISSING) from error
    importer = FxImporter()
    importer.import_program(program, func_name="main")
    bytecode = io.BytesIO()
    importer.module_op.write_bytecode(bytecode)
    return bytecode.getvalue()
