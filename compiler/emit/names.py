"""The names of one generated file: what it imports, and how sizes are spelled in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dskc.dsl.dims import Dim

from ..ir import Axis, Graph, Value, walk
from ..ops.weights import Weights
from .text import WIDTH, number


@dataclass(slots=True)
class Names:
    graph: Graph
    imports: dict[str, set[str]] = field(default_factory=dict)
    torch: bool = False
    used_dims: set[str] = field(default_factory=set)
    owners: dict[Value, Weights] = field(default_factory=dict)  # which module a weight belongs to

    def __post_init__(self) -> None:
        for op, _ in walk(self.graph.body):
            if isinstance(op.attributes, Weights):
                self.owners.update((value, op.attributes) for value in op.results)

    def use(self, module: str, name: str) -> str:
        """Imports `name` from `module`."""
        self.imports.setdefault(module, set()).add(name)
        return name

    def use_torch(self) -> None:
        self.torch = True

    # --- sizes

    def size(self, size: Dim) -> str:
        """A size as code: the dim it is, an expression of dims, or its number."""
        if size.is_constant:
            return number(int(size.constant))
        for dim in self.graph.dims:
            if dim.value is not None and size == (dim.equation or Dim.of(dim.name)):
                self.used_dims.add(dim.name)
                return dim.name
        text = str(size)
        known = self.graph.sizes
        if size.symbols() <= known.keys():
            if any(c in text for c in "/(%") or "." in text:
                return number(int(size.evaluate(known)))
            self.used_dims |= size.symbols()
        return text

    def axes_size(self, axes: tuple[Axis, ...]) -> str:
        """The size of several axes stored as one: `H * E`."""
        if len(axes) == 1:
            return self.size(axes[0].size)
        spelled = [self.size(axis.size) for axis in axes]
        return " * ".join(f"({s})" if " + " in s or " - " in s else s for s in spelled)

    def constants(self) -> list[str]:
        """The line that gives the dims in use their values."""
        shown = [dim for dim in self.graph.dims if dim.name in self.used_dims and dim.value is not None]
        if not shown:
            return []
        names = ", ".join(dim.name for dim in shown)
        values = ", ".join(number(dim.value or 0) for dim in shown)
        line = f"{names} = {values}"
        if len(line) <= WIDTH:
            return [line]
        return [f"{dim.name} = {number(dim.value or 0)}" for dim in shown]

    def import_lines(self) -> list[str]:
        """`from x import y` lines, sorted and broken as ruff does."""
        lines: list[str] = []
        for module in sorted(self.imports):
            names = sorted(self.imports[module], key=_import_order)
            line = f"from {module} import {', '.join(names)}"
            if len(line) <= WIDTH:
                lines.append(line)
            else:
                lines += [f"from {module} import (", *(f"    {name}," for name in names), ")"]
        return lines


def _import_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as isort has it."""
    rank = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return rank, name
