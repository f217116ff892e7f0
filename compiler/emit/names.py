"""The names of one generated file: what it imports, and how sizes are spelled in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dskc.dsl.dims import Dim

from ..ir import Axis, Graph, Op, Region, Value, walk
from ..ops.experts import Experts
from ..ops.structure import Block, Repeat
from ..ops.weights import Weights
from .text import WIDTH, number


@dataclass(slots=True)
class Names:
    graph: Graph
    imports: dict[str, set[str]] = field(default_factory=dict)
    torch: bool = False
    casts: bool = False  # to the dtype of activations, since this was last set
    used_dims: set[str] = field(default_factory=set)
    owners: dict[Value, Weights] = field(default_factory=dict)  # which module a weight belongs to,
    homes: dict[Value, str] = field(default_factory=dict)  # and the path of the body that it is declared in
    tensors: dict[Value, str] = field(default_factory=dict)  # what its module calls it
    kernels: dict[object, str] = field(default_factory=dict)  # what kernels.py calls a program, by its identity, and
    # an attention, by its key
    lent: list[Op] = field(default_factory=list)  # what block values own: declared around the block

    def __post_init__(self) -> None:
        self._collect(self.graph.body, "")

    def _collect(self, region: Region, path: str) -> None:
        for op in region.ops:
            attributes = op.attributes
            if isinstance(attributes, Weights):
                self.owners.update((value, attributes) for value in op.results)
                self.homes.update((value, path) for value in op.results)
                named = (weight.name for weight in attributes.weights)
                self.tensors.update(zip(op.results, named, strict=True))
                if not is_child(attributes.path, path):
                    self.lent.append(op)
            for inner in op.regions:
                self._collect(inner, body_path(op))

    def module_path(self, weight: Value) -> str:
        """The path of the module that holds a weight, in the body where it is declared: what is passed to others."""
        home, path = self.homes[weight], self.owners[weight].path
        first = below(path, home).split(".", 1)[0]
        return f"{home}.{first}" if home else first

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
        spelled = [self.size(axis.size) for axis in axes if axis.size != 1] or ["1"]
        if len(spelled) == 1:
            return spelled[0]
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


def body_path(op: Op) -> str:
    """The path of an operation's bodies: that of what they hold begins with it."""
    path = str(getattr(op.attributes, "path", ""))
    return f"{path}.*" if isinstance(op.attributes, Repeat) else path


def find_block(regions: tuple[Region, ...], path: str) -> Op:
    """The use, somewhere in these regions, of the block whose weights stand at a path."""
    ops = (op for region in regions for op, _ in walk(region))
    return next(op for op in ops if isinstance(op.attributes, Block | Experts) and op.attributes.path == path)


def is_below(path: str, around: str) -> bool:
    """Whether `path` lies within the body of path `around`."""
    return not around or path.startswith(f"{around}.")


def below(path: str, around: str) -> str:
    """The rest of a path within the body of path `around`."""
    assert is_below(path, around), f"{path} is not within {around}"
    return path[len(around) + 1 :] if around else path


def is_child(path: str, around: str) -> bool:
    """Whether `path` is that of something which the body of path `around` itself owns."""
    return is_below(path, around) and "." not in below(path, around)


def last_part(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _import_order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as isort has it."""
    rank = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return rank, name
