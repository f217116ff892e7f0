"""The table of `dskc shapes`, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dskc.dsl.dims import Dim
from dskc.dsl.numbers import show_number

from .shapes import Row

_HEADS = ("operation", "", "shape", "parameters", "FLOPs", "activation bytes")
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_COUNTS = ("", "K", "M", "G", "T", "P", "E")


@dataclass(frozen=True, slots=True)
class Given:
    """What a table was counted for: sizes of the dims of data, and the recipe whose precision activations have."""

    sizes: tuple[tuple[str, int], ...]
    compute: str
    recipe: str

    def __str__(self) -> str:
        sizes = "".join(f"{name} = {show_number(size)}, " for name, size in self.sizes)
        return f"{sizes}activations in {self.compute} ({self.recipe})"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; those that hold others and the frame are set off on a terminal."""

    text: str
    strong: bool = False


def shape_lines(top: Row, given: Given) -> list[Line]:
    """The table of one model, aligned."""
    rows = [(row, depth - 1) for row, depth, _ in top.flat() if row is not top]
    cells = [_HEADS, *(_cells(row, depth) for row, depth in rows)]
    total = ("total", "", "", _count(top.parameters), _flops(top.flops), _kept(top.saved))
    widths = [max(len(line[i]) for line in (*cells, total)) for i in range(len(_HEADS))]
    lines = [Line(f"{top.name}: {given}", strong=True), Line("")]
    lines.append(Line(_aligned(cells[0], widths), strong=True))
    for (row, _), cell in zip(rows, cells[1:], strict=True):
        lines.append(Line(_aligned(cell, widths), strong=bool(row.rows)))
    lines.append(Line(_aligned(total, widths), strong=True))
    if top.causal != top.flops:
        lines += [Line(""), Line(f"{_flops(top.causal)} FLOPs where causal attention counts as the half that it needs")]
    return lines


def shapes_json(models: Sequence[tuple[Row, Given]]) -> str:
    """All models as JSON: numbers where they are known, else polynomials as text."""
    found = []
    for top, given in models:
        rows = [{"depth": depth - 1, "times": times, **_record(row)} for row, depth, times in top.flat() if depth]
        total = {key: value for key, value in _record(top).items() if key not in ("name", "path", "kind", "shape")}
        facts = {"model": top.name, "sizes": dict(given.sizes), "compute": given.compute, "recipe": given.recipe}
        found.append({**facts, "total": total, "operations": rows})
    return json.dumps(found, indent=1, ensure_ascii=False)


def _record(row: Row) -> dict[str, str | int]:
    return {
        "name": row.name,
        "path": row.path,
        "kind": row.kind,
        "shape": row.shape,
        "parameters": row.parameters,
        "flops": _exact(row.flops),
        "flops_causal": _exact(row.causal),
        "saved_bytes": _exact(row.saved),
    }


def _exact(size: Dim) -> int | str:
    return int(size.constant) if size.is_constant and size.constant.denominator == 1 else str(size)


def _cells(row: Row, depth: int) -> tuple[str, ...]:
    name = "  " * depth + (row.name or "-")
    return (name, row.kind, row.shape, _count(row.parameters), _flops(row.flops), _kept(row.saved))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, numbers to the right."""
    parts = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(parts).rstrip()


def _count(count: int) -> str:
    return f"{count:_}" if count else "."


def _flops(size: Dim) -> str:
    return _scaled(size, 1000, _COUNTS)


def _kept(size: Dim) -> str:
    return _scaled(size, 1024, _BYTES)


def _scaled(size: Dim, step: int, units: tuple[str, ...]) -> str:
    """A number with a unit, `1.41 T`; a polynomial exactly."""
    if size == 0:
        return "."
    if not size.is_constant:
        return str(size)
    value, unit = float(size.constant), 0
    while value >= step and unit < len(units) - 1:
        value, unit = value / step, unit + 1
    digits = f"{value:.0f}" if unit == 0 else f"{value:.4g}" if value < 1000 else f"{value:.0f}"
    return f"{digits} {units[unit]}".rstrip()
