"""The elementary masks: which keys a query sees. They combine with `&` and `|`."""

from __future__ import annotations

from collections.abc import Mapping

from .signature import Kind, Parameter, Signature

MASKS = {
    mask.name: mask
    for mask in (
        Signature("causal", (), "Positions up to the query's own."),
        Signature("everything", (), "All positions."),
        Signature("documents", (), "Positions of the same document of a packed sequence."),
        Signature(
            "window",
            (Parameter("size", Kind.INT, doc="how many"),),
            "Positions less than `size` away, on either side; `causal & window(n)` sees the last n.",
        ),
        Signature(
            "blocks",
            (
                Parameter("size", Kind.INT, 64, doc="positions of a block"),
                Parameter("window", Kind.INT, 3, doc="blocks with the query's own in the middle"),
                Parameter("global", Kind.INT, 1, doc="blocks at the start that all see, and that see all"),
                Parameter("random", Kind.INT, 3, doc="other blocks, drawn for each block before its window"),
                Parameter("seed", Kind.INT, 0, doc="of the draw"),
            ),
            "The blocks around its own, those at the start, and some drawn at random (arXiv:2007.14062, section 2).",
        ),
    )
}


def mask_problem(name: str, arguments: Mapping[str, int]) -> tuple[str, str] | None:
    """The argument that no such mask can have, and why; None where all can be."""
    for argument, value in arguments.items():
        least = 1 if argument in ("size", "window") else 0
        if value < least:
            if name == "window":
                return argument, "a window sees at least 1 position"
            return argument, f"`{argument}` of `{name}` is at least {least}, not {value}"
        if name == "blocks" and argument == "window" and value % 2 == 0:
            return argument, f"`window` of `blocks` is odd, for the query's own block is in the middle; this is {value}"
    return None
