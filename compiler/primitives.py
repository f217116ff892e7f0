"""All primitives by name: the words that are always in scope."""

from __future__ import annotations

from .ops import (
    arrange,
    attend,
    compressed,
    compression,
    elementwise,
    experts,
    hashing,
    index,
    linear,
    norm,
    parameter,
    position,
    quantize,
    recurrent,
    routing,
    sequence,
    streams,
)
from .primitive import Primitive

FAMILIES = (
    linear, norm, parameter, elementwise, position, attend, index, compressed, recurrent, routing, hashing, experts,
    arrange, sequence, streams, compression, quantize,
)  # fmt: skip
PRIMITIVES: dict[str, Primitive] = {p.name: p for family in FAMILIES for p in family.PRIMITIVES}
