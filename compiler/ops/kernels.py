"""What kernels of the runtime keep for backward where they compute an operation: less than the reference does."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir import Op
from .attend import Attend
from .base import Saved
from .experts import Experts
from .gated import gated


def saved_by_kernel(op: Op, sizes: Mapping[str, int]) -> Saved | None:
    """What is kept of an operation and of all that its regions hold; None where no kernel takes it as a whole."""
    attributes = op.attributes
    if isinstance(attributes, Attend) and attributes.has_kernel(op, sizes):
        return attributes.saved_by_kernel(op)
    if isinstance(attributes, Experts) and (found := gated(op)) is not None:
        return found.saved(op)
    return None
