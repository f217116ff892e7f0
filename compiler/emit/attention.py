"""Attention in kernels.py: a spec's mask as functions that the runtime's template calls, and the registration."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..ops.attend import Attend
from ..reserved import PYTHON
from ..values import Mask
from .text import number

ENDLESS = "1 << 30"  # where a range has no end: `runtime/kernels/attention/forward.py`


@dataclass(frozen=True, slots=True)
class Interval:
    """The positions that one at p sees: p + low up to and without p + high; None where there is no end."""

    low: int | None
    high: int | None

    def of_range(self) -> str:
        """Of positions from `first` to `last`: what some of them see, and what all do."""
        return ", ".join(
            (
                "0" if self.low is None else _plus("first", self.low),
                ENDLESS if self.high is None else _plus("last", self.high),
                "0" if self.low is None else _plus("last", self.low),
                ENDLESS if self.high is None else _plus("first", self.high),
            )
        )

    def mirrored(self) -> Interval:
        """The positions that see one at p."""
        low = None if self.high is None else 1 - self.high
        return Interval(low, None if self.low is None else 1 - self.low)


def interval(mask: Mask) -> Interval | None:
    """What a mask allows within one document, where that is an interval around each position."""
    if mask.operator in ("&", "|"):
        parts = [interval(operand) for operand in mask.operands]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        lows, highs = [part.low for part in known], [part.high for part in known]
        if mask.operator == "&":
            present, ends = [low for low in lows if low is not None], [high for high in highs if high is not None]
            return Interval(max(present, default=None), min(ends, default=None))
        # Each holds its own position, so that what two of them allow has no gap.
        return Interval(
            None if None in lows else min(low for low in lows if low is not None),
            None if None in highs else max(high for high in highs if high is not None),
        )
    if mask.operator == "causal":
        return Interval(None, 1)
    if mask.operator == "window":
        (_, size), *_ = mask.arguments
        return Interval(1 - size, size)
    return None if mask.operator == "blocks" else Interval(None, None)


def allows(mask: Mask) -> str | None:
    """Whether `query` sees `key`, as Triton; None where every one does."""
    if mask.operator == "&":
        parts = [allows(o) if not (o.operator == "window" and mask.is_causal) else _behind(o) for o in mask.operands]
        present = [f"({part})" if " | " in part else part for part in parts if part is not None]
        return " & ".join(present) or None
    if mask.operator == "|":
        parts = [allows(operand) for operand in mask.operands]
        present = [f"({part})" if " & " in part else part for part in parts if part is not None]
        return " | ".join(present) if len(present) == len(parts) else None
    if mask.operator == "causal":
        return "(key <= query)"
    if mask.operator == "window":
        (_, size), *_ = mask.arguments
        return f"{_behind(mask)} & (key < query + {number(size)})"
    if mask.operator == "documents":
        return "(query_document == key_document)"
    if mask.operator == "blocks":
        return f"{blocks_name(mask)}(query, key)"
    return None


def _behind(window: Mask) -> str:
    """The half of a window that does not look ahead."""
    (_, size), *_ = window.arguments
    return f"(key > query - {number(size)})"


def blocks_name(mask: Mask) -> str:
    return "_".join(("in_blocks", *(str(value) for _, value in mask.arguments)))


def blocks_function(mask: Mask) -> list[str]:
    """Whether a query sees a key by blocks, as the reference draws them."""
    told = dict(mask.arguments)
    size, reach, leading, random = told["size"], told["window"] // 2, told["global"], told["random"]
    lines = [
        "@triton.jit",
        f"def {blocks_name(mask)}(query, key):",
        f'    """Whether a query sees a key by their blocks: `{mask}`."""',
        f"    query_block, key_block = query // {size}, key // {size}",
        f"    seen = (key_block >= query_block - {reach}) & (key_block <= query_block + {reach})",
    ]
    lines += [f"    seen = seen | (key_block < {leading}) | (query_block < {leading})"] if leading else []
    if random:
        lines += [
            f"    among = query_block - {reach + leading}",
            f"    start = hashed(query_block.to(tl.uint32) + hashed(query_block * 0 + {told['seed']}))",
        ]
    for i in range(random):
        lines.append(f"    drawn{i}, last = draw(start, among, {i}, {leading}, {random})")
        taken = " | ".join(f"(drawn{i} == drawn{j})" for j in range(i))
        taken = taken[1:-1] if i == 1 else taken
        lines += [f"    drawn{i} = tl.where({taken}, last, drawn{i})"] if taken else []
        if i + 1 < random:
            lines.append(f"    seen = seen | (key_block == drawn{i})")
    return [*lines, f"    return seen | (key_block == drawn{random - 1})" if random else "    return seen"]


def all_blocks(mask: Mask | None) -> list[Mask]:
    """The block masks in an expression."""
    if mask is None:
        return []
    return [mask] if mask.operator == "blocks" else [found for o in mask.operands for found in all_blocks(o)]


def mask_name(mask: Mask | None) -> str:
    """`causal_window_512`."""
    if mask is None:
        return "everything"
    if mask.operator in ("&", "|"):
        return (" or " if mask.operator == "|" else " ").join(mask_name(o) for o in mask.operands).replace(" ", "_")
    shown = mask.arguments if mask.operator == "window" else ()
    return "_".join((mask.operator, *(str(value) for _, value in shown)))


def mask_text(mask: Mask | None) -> str:
    """The mask as the reference's expression, of `documents_BT`."""
    if mask is None:
        return "reference.everything"
    if mask.operator in ("&", "|"):
        parts = [mask_text(operand) for operand in mask.operands]
        return f" {mask.operator} ".join(f"({p})" if " | " in p and mask.operator == "&" else p for p in parts)
    if mask.operator == "documents":
        return "reference.documents(documents_BT)"
    if not mask.arguments:
        return f"reference.{mask.operator}"
    named = len(mask.arguments) > 1
    given = [(f"{k}_" if k in PYTHON else k, number(value)) for k, value in mask.arguments]
    return f"reference.{mask.operator}({', '.join(f'{k}={v}' if named else v for k, v in given)})"


def mask_functions(mask: Mask | None, name: str) -> list[list[str]]:
    """The functions of a mask, each as its lines: of places, and of ranges where it has any."""
    text = allows(mask) if mask is not None else None
    if mask is None or text is None:
        return []
    if text.startswith("(") and text.endswith(")") and " & " not in text and " | " not in text:
        text = text[1:-1]
    found = [
        [
            "@triton.jit",
            f"def {name}(query, key, query_document, key_document):",
            f'    """Whether a query sees a key, by their positions and documents: `{_short(mask)}`."""',
            f"    return {text}",
        ]
    ]
    known = interval(mask)
    if known is not None:
        found += [
            _range(
                f"{name}_of_queries", "Keys that some of the queries from first to last see, and that all see.", known
            ),
            _range(
                f"{name}_of_keys", "Queries that see some of the keys from first to last, and all.", known.mirrored()
            ),
        ]
    return found


def attention_fields(attributes: Attend, mask: str, has_ranges: bool) -> list[tuple[str, str]]:
    """What the registration is told, but for its name and place."""
    documents = attributes.mask is not None and "documents" in attributes.mask.names
    fields = [("mask", f"lambda {'documents_BT' if documents else '_'}: {mask_text(attributes.mask)}")]
    if mask_functions(attributes.mask, mask):
        fields.append(("allows", mask))
        if has_ranges:
            fields += [("of_queries", f"{mask}_of_queries"), ("of_keys", f"{mask}_of_keys")]
    fields += [("scale", number(attributes.scale))] if attributes.scale is not None else []
    fields += [("softcap", number(attributes.softcap))] if attributes.softcap is not None else []
    fields += [("dropout", number(attributes.dropout))] if attributes.dropout else []
    return fields


def _range(name: str, doc: str, known: Interval) -> list[str]:
    return ["@triton.jit", f"def {name}(first, last):", f'    """{doc}"""', f"    return {known.of_range()}"]


def _short(mask: Mask) -> str:
    """A mask without what its blocks are told: their own function says that."""
    return re.sub(r"blocks\([^)]*\)", "blocks", str(mask))


def _plus(name: str, offset: int) -> str:
    if not offset:
        return name
    return f"{name} + {number(offset)}" if offset > 0 else f"{name} - {number(-offset)}"
