"""Signatures as the language would write them, with what each parameter is for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction

from dskc.dsl.numbers import show_number

from ..ranges import RANGES
from ..signature import Kind, Parameter, Record, Signature

WIDTH = 100
GAP = 5  # spaces before a comment, as the formatter leaves
KINDS = {
    Kind.TENSOR: "tensor",
    Kind.TENSORS: "tensors",
    Kind.ARROW: "axes",
    Kind.SIZE: "dim",
    Kind.SIZES: "[dims]",
    Kind.INT: "int",
    Kind.FLOAT: "float",
    Kind.BOOL: "bool",
    Kind.MASK: "mask",
    Kind.BLOCK: "block",
    Kind.DTYPE: "dtype",
    Kind.SYMBOL: "word",
    Kind.NUMBERS: "[numbers]",
    Kind.NAMES: "name",
}
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def linked(text: str) -> str:
    """A text whose sources can be followed, and whose products stay products."""
    text = text.replace(" * ", " \\* ")
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def number_text(value: float | Fraction) -> str:
    """A number as a spec would write it: `10_000`, `0.1`, `1e-6`."""
    exact = Fraction(str(value)) if isinstance(value, float) else Fraction(value)
    if exact and abs(exact) < Fraction(1, 1000):
        digits, _, power = f"{float(exact):.9e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return show_number(exact)


def value_text(value: object) -> str:
    """A value of a table as a spec would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Fraction):
        return number_text(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, Record):
        given = (f"{name}: {value_text(v)}" for name, v in value.arguments if v is not None)
        return f"{value.name}({', '.join(given)})"
    return str(value)


def kind_text(parameter: Parameter) -> str:
    """What a parameter takes, in few words."""
    if parameter.kind is Kind.RECORD:
        return " | ".join(f"{record.name}(...)" if record.parameters else record.name for record in parameter.records)
    return " | ".join(parameter.choices) or KINDS[parameter.kind]


def parameter_text(parameter: Parameter) -> str:
    """`eps: float = 1e-6`, `scale: float?`."""
    text = f"{parameter.name}: {kind_text(parameter)}"
    if parameter.required:
        return text
    if parameter.default is None:
        alone = parameter.kind is not Kind.RECORD and not parameter.choices
        return f"{text}?" if alone else f"{parameter.name}: ({kind_text(parameter)})?"
    return f"{text} = {value_text(parameter.default)}"


def call_text(signature: Signature) -> str:
    """A signature on one line; with a line for each parameter where some are documented."""
    ranges = RANGES.get(signature.name, {})
    rows = [
        (parameter_text(p), "; ".join(filter(None, (p.doc, ranges[p.name].text if p.name in ranges else ""))))
        for p in signature.parameters
    ]
    whole = f"{signature.name}({', '.join(text for text, _ in rows)})"
    if len(whole) <= WIDTH and not any(doc for _, doc in rows):
        return whole
    width = max(len(text) + 1 for text, doc in rows) + GAP
    lines = [f"    {text + ',':{width}}/// {doc}" if doc else f"    {text}," for text, doc in rows]
    return "\n".join([f"{signature.name}(", *lines, ")"])


def described(signature: Signature, level: str = "####") -> list[str]:
    """A signature as a part of a page: heading, meaning, how it is called, and the calls that its arguments may be."""
    lines = [f"{level} `{signature.name}`", ""]
    if signature.doc:
        lines += [linked(signature.doc), ""]
    lines += fenced(call_text(signature))
    for parameter in signature.parameters:
        for record in parameter.records:
            lines += [
                f"`{parameter.name}` may be `{record.name}`: {linked(record.doc)}",
                "",
                *fenced(call_text(record)),
            ]
    return lines


def fenced(text: str) -> list[str]:
    """A block of code."""
    return ["```dsk", text, "```", ""]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table; a `|` within a cell does not part it."""
    escape: Callable[[str], str] = lambda cell: cell.replace("|", "\\|")  # noqa: E731
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(escape, row))} |" for row in rows), ""]
