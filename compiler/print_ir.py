"""The graph in one readable notation: `%x = operation %a, %b {attributes} : type`, bodies indented, repeats folded."""

from __future__ import annotations

from .ir import Graph, Op, Region, Value
from .ops.base import Operation
from .ops.structure import Repeat


def print_graph(graph: Graph) -> str:
    """A graph as `dskc ir` prints it. The same graph prints the same on any machine."""
    return "\n".join(_Printer().graph(graph)) + "\n"


class _Printer:
    def __init__(self) -> None:
        self.names: dict[Value, str] = {}
        self.taken: dict[str, int] = {}

    def graph(self, graph: Graph) -> list[str]:
        dims = ", ".join(f"{d.name} = {d.equation}" if d.equation else f"{d.name} = {d.value}" for d in graph.dims)
        inputs = ", ".join(
            f"{self.name(v, n)}: {v.type.typed}" for n, v in zip(graph.inputs, graph.body.arguments, strict=True)
        )
        lines = [f"model {graph.name}({inputs}) {{", f"  dims {dims}"]
        lines += self.body(graph.body, "  ")
        names = (*graph.results, *graph.losses)
        results = (f"{n}: {self.names[v]}" for n, v in zip(names, graph.body.results, strict=True))
        return [*lines, f"  return {', '.join(results)}", "}"]

    def name(self, value: Value, base: str | None = None) -> str:
        if value not in self.names:
            base = base or value.name or "v"
            count = self.taken[base] = self.taken.get(base, 0) + 1
            self.names[value] = f"%{base}" if count == 1 else f"%{base}.{count}"
        return self.names[value]

    def body(self, region: Region, indent: str) -> list[str]:
        return [line for op in region.ops for line in self.op(op, indent)]

    def op(self, op: Op, indent: str) -> list[str]:
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        operands = ", ".join(self.names[v] for v in op.operands)
        detail = attributes.describe()
        if op.kind == "weights":
            names = ", ".join(self.name(v, detail.split(":")[0].rsplit(".", 1)[-1]) for v in op.results)
            return [f"{indent}{names} = weights {detail}"]
        blocks = [self.region(region, i, op, indent) for i, region in enumerate(op.regions)]
        results = ", ".join(self.name(v) for v in op.results)
        types = ", ".join(v.type.typed for v in op.results)
        head = f"{indent}{results} = {op.kind} {operands}".rstrip()
        head += f" {{{detail}}}" if detail else ""
        head += f" : {types}" if types else ""
        if not blocks:
            return [head]
        return [f"{head} (", *(line for block in blocks for line in block), f"{indent})"]

    def region(self, region: Region, number: int, op: Op, indent: str) -> list[str]:
        arguments = ", ".join(f"{self.name(v)}: {v.type.typed}" for v in region.arguments)
        label = f"{indent}  ({arguments})"
        if isinstance(op.attributes, Repeat) and len(op.regions) > 1:
            label += f" x {op.attributes.region_counts[number]}"
        lines = self.body(region, f"{indent}    ")
        given = ", ".join(self.names[v] for v in region.results)
        return [label, *lines, f"{indent}    give {given}"]
