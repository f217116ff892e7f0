"""What generated kernels need while they run: which are used, how they are launched, and what torch is told of them."""

from .attention.kernel import AttentionKernel
from .choice import kernels_in_use, use_kernels
from .experts.kernel import ExpertsKernel
from .launch import Launch, One, Part, Rows, Vector
from .row_kernel import KernelError, RowKernel

__all__ = [
    "AttentionKernel",
    "ExpertsKernel",
    "KernelError",
    "Launch",
    "One",
    "Part",
    "RowKernel",
    "Rows",
    "Vector",
    "kernels_in_use",
    "use_kernels",
]
