"""All primitives by name: the words that are always in scope."""

from __future__ import annotations

from .ops import (
    arrange,
    attend,
    elementwise,
    experts,
    index,
    linear,
    norm,
    parameter,
    position,
    quantize,
    recurrent,
    routing,
)
from .primitive import Primitive

FAMILIES = (
    linear, norm, parameter, elementwise, position, attend, index, recurrent, routing, experts, arrange, quantize,
)  # fmt: skip
PRIMITIVES: dict[str, Primitive] = {p.name: p for family in FAMILIES for p in family.PRIMITIVES}
