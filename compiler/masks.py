"""The elementary masks: which keys a query sees. They combine with `&` and `|`."""

from __future__ import annotations

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
    )
}
