"""What is so of a kernel: its axes, whether its rows fit into a block, what expressions are worth outside of a row."""

from __future__ import annotations

from .node import REDUCTIONS, Columns, Node, reachable
from .program import Kernel, Layout

MOST_COLUMNS = 16_384  # in one block


def columns_of(kernel: Kernel) -> tuple[Columns, ...]:
    """The axes that the kernel's columns run along, and the widths of the tensors that it touches."""
    found: dict[Columns, None] = {}
    for tensor in (*kernel.loads, *(store.tensor for store in kernel.stores)):
        for part in tensor.parts:
            found[part.columns] = None
    for node in reachable(kernel.results):
        if node.columns is not None:
            found[node.columns] = None
    return tuple(found)


def widths_of(kernel: Kernel) -> tuple[Columns, ...]:
    """Widths of tensors that are divided into parts."""
    found: dict[Columns, None] = {}
    for tensor in (*kernel.loads, *(store.tensor for store in kernel.stores)):
        if tensor.width is not None and len(tensor.parts) > 1:
            found[tensor.width] = None
    return tuple(found)


def is_flat(kernel: Kernel) -> bool:
    """Whether every element is computed from those at its own place."""
    tensors = (*kernel.loads, *(store.tensor for store in kernel.stores))
    same = {(t.layout, t.width, len(t.parts)) for t in tensors}
    plain = len(same) == 1 and next(iter(same))[0] is Layout.ROWS and next(iter(same))[2] == 1
    kinds = {node.kind for node in reachable(kernel.results)}
    return plain and not kinds & {*REDUCTIONS, "index", "size", "top_k", "gather", "scatter", "spread"}


def is_wide(kernel: Kernel) -> bool:
    """Whether its rows may not fit into one block."""
    return any(c.size is None or c.size > MOST_COLUMNS for c in columns_of(kernel))


def scalars_of(kernel: Kernel) -> tuple[str, ...]:
    """What the launch passes beyond tensors: probabilities of dropouts."""
    found = {str(n.label): None for n in reachable(kernel.results) if n.kind == "scalar"}
    return tuple(sorted(found))


def draws(kernel: Kernel) -> bool:
    """Whether it draws random numbers, and so needs a seed."""
    return any(node.kind == "uniform" for node in reachable(kernel.results))


def shift_of_exponentials(node: Node) -> Node | None:
    """For `sum(exp(x - max(x)))` that maximum."""
    if node.kind == "sum" and node.operands[0].kind == "exp":
        (difference,) = node.operands[0].operands
        if difference.kind == "sub" and difference.operands[1].kind == "stop":
            x, (most,) = difference.operands[0], difference.operands[1].operands
            return most if most.kind == "max" and most.operands[0] is x else None
    return None


def vanishes(node: Node) -> bool:
    """Whether an expression is zero outside of the row, where what is loaded is zero. A factor must be finite there."""
    if node.kind == "load":
        return node.columns is not None or node.rows
    if node.kind in ("add", "sub", "maximum", "minimum"):
        return all(vanishes(o) for o in node.operands)
    if node.kind in ("neg", "stop", "round_as", "abs"):
        return vanishes(node.operands[0])
    if node.kind == "mul":
        return any(_zero(o) for o in node.operands) and all(_finite(o) for o in node.operands)
    return False


def _zero(node: Node) -> bool:
    return node.columns is not None and vanishes(node)


def _finite(node: Node) -> bool:
    """Whether a factor is surely finite where loads gave zeros: by what it is made of, without division or growth."""
    if node.kind in ("load", "constant", "scalar", "sigmoid", "tanh", "erf"):
        return True
    return node.kind in ("add", "sub", "mul", "neg", "stop", "round_as", "abs") and all(map(_finite, node.operands))


def is_integer(node: Node, kernel: Kernel) -> bool:
    """Whether a node holds indices."""
    loaded = {tensor.name for tensor in kernel.loads if not tensor.floating}
    return node.kind in ("index", "top_k") or (node.kind == "load" and str(node.label) in loaded)


def depths(kernel: Kernel) -> dict[Node, int]:
    """How many reductions, one of the other, each node rests on."""
    depth: dict[Node, int] = {}
    for node in reachable(kernel.results):
        below = max((depth[o] for o in node.operands), default=0)
        depth[node] = below + 1 if node.kind in REDUCTIONS else below
    return depth
