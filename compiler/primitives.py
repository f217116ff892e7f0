"""All primitives by name: the words that are always in scope."""

from __future__ import annotations

from .ops import arrange, attend, elementwise, experts, linear, norm, position, quantize, routing
from .primitive import Primitive

FAMILIES = (linear, norm, elementwise, position, attend, routing, experts, arrange, quantize)
PRIMITIVES: dict[str, Primitive] = {p.name: p for family in FAMILIES for p in family.PRIMITIVES}
MASKS = ("causal", "documents", "window")
DTYPE_WORDS = ("fp32", "bf16", "fp16")
