"""What kernels and their tensors are called: after what they do, and after what the spec calls them."""

from __future__ import annotations

from collections.abc import Mapping

from dskc.dsl.source import Span

from ..ir import Op, Value
from ..ops.arrange import Gather
from ..ops.base import Operation
from ..ops.weights import Weights
from ..reserved import PYTHON

# Chains that have a name of their own, longest first.
NAMED = (
    (("softmax", "top_k"), "softmax_top_k"),
    (("sigmoid", "top_k"), "sigmoid_top_k"),
    (("silu", "mul"), "swiglu"),
    (("gelu", "mul"), "geglu"),
    (("gelu_tanh", "mul"), "geglu_tanh"),
    (("sigmoid", "mul"), "sigmoid_gate"),
)
MOST_WORDS = 6
_RESULTS = {"rms_norm": "normed", "layer_norm": "normed"}
TAKEN = frozenset({"seed", "program", "block", "start", "place", "mask", "row", "column", "at", "tl", "triton", "torch",
                   "reference", "kernels", "training"})  # fmt: skip
SHADOWED = frozenset({"tanh", "round_even", "top_k", "gather", "scatter"})  # helpers within kernels


def kernel_name(ops: list[Op], blocks: Mapping[Span, str]) -> str:
    """After what is done, in order: `add_rms_norm`, `swiglu`, `softmax_top_k_normalize`.

    blocks: of which block an operation is that stood in one; what is a block's has its name.
    """
    words = [blocks.get(op.span, op.kind) for op in ops if not isinstance(op.attributes, Gather)]
    for chain, name in NAMED:
        for i in range(len(words) - len(chain) + 1):
            if tuple(words[i : i + len(chain)]) == chain:
                words[i : i + len(chain)] = [name]
    shown = [word for i, word in enumerate(words) if i == 0 or word != words[i - 1]]
    if len(shown) > MOST_WORDS:
        shown = [*shown[: MOST_WORDS - 1], "and_more"]
    name = "_".join(shown)
    return f"{name}_rows" if name in SHADOWED else name


def operand_names(
    ops: list[Op], given: tuple[Value, ...], results: tuple[Value, ...], weights: dict[Value, Op]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of operands and results with their axes, no two alike even without those."""
    made = {v: op for op in ops for v in op.results}
    taken: set[str] = set(TAKEN | PYTHON)
    longest = max(len(v.type.axes) for v in (*given, *results))
    rowed = [v for v in given if len(v.type.axes) == longest]
    only = rowed[0] if len(rowed) == 1 else None  # called alike wherever the program is used, so that it is one program
    names = [_unique("x" if v is only else _operand(v, weights), taken, v, weights) for v in given]
    labels = []
    for v in results:
        wanted = "y" if len(results) == 1 else v.name or _result(made[v], v)
        labels.append(_unique(f"{wanted}_out" if wanted in taken else wanted, taken, v, {}))
    return tuple(names), tuple(labels)


def _result(op: Op, value: Value) -> str:
    """What a result is called in its kernel."""
    attributes = op.attributes
    assert isinstance(attributes, Operation)
    if attributes.result_names:
        return attributes.result_names[op.results.index(value)]
    return _RESULTS.get(op.kind, op.kind)


def variable(op: Op, weights: dict[Value, Op]) -> str:
    """What a result of an operation is called that the spec does not name: after its weights, or what it does."""
    for value in op.operands:
        if value in weights:
            attributes = weights[value].attributes
            assert isinstance(attributes, Weights)
            return attributes.name
    return op.kind


def _operand(value: Value, weights: dict[Value, Op]) -> str:
    op = weights.get(value)
    if op is None:
        return value.name or "y"
    assert isinstance(op.attributes, Weights)
    return op.attributes.weights[op.results.index(value)].name


def _unique(wanted: str, taken: set[str], value: Value, weights: dict[Value, Op]) -> str:
    if wanted in taken and value in weights:
        attributes = weights[value].attributes
        assert isinstance(attributes, Weights)
        wanted = f"{attributes.name}_{wanted}"
    name, n = wanted, 2
    while name in taken:
        name, n = f"{wanted}{n}", n + 1
    taken.add(name)
    return name
