"""All primitives by name: the words that are always in scope."""

from __future__ import annotations

from .ops import (
    arrange,
    attend,
    compression,
    elementwise,
    experts,
    index,
    linear,
    norm,
    parameter,
    position,
    quantize,
    routing,
    sequence,
)
from .primitive import Primitive

FAMILIES = (
    linear,
    norm,
    parameter,
    elementwise,
    position,
    attend,
    index,
    routing,
    experts,
    arrange,
    sequence,
    compression,
    quantize,
)
PRIMITIVES: dict[str, Primitive] = {p.name: p for family in FAMILIES for p in family.PRIMITIVES}
