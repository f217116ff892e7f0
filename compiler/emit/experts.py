"""Experts in kernels.py: their activation as functions that the runtime's template calls, and the registration."""

from __future__ import annotations

from collections.abc import Sequence

from ..ops.gated import Gated
from ..rows.node import Node, reachable
from .kernel_body import KernelBody
from .text import Text, fit


def activation_functions(found: Gated, name: str) -> tuple[list[list[str]], set[str]]:
    """The activation and its gradient as Triton functions of one element each, and the helpers that they call."""
    program, backward = found.program, found.program.backward
    assert backward is not None
    given = [tensor.name for tensor in program.arguments]
    (result,) = (store.tensor.name for store in program.forward.stores)
    value, gradient = _Element(program.forward), _Element(backward)
    wanted = [of.store for of in program.gradients]  # two arguments may share one
    functions = [
        value.function(f"{name}_value", given, [result], f"What `{name}_reference` gives of one element, in float32."),
        gradient.function(
            f"{name}_gradient", [*given, f"grad_{result}"], wanted, f"The gradients of what `{name}_value` is given."
        ),
    ]
    return functions, value.helpers | gradient.helpers


def experts_key(found: Gated) -> tuple[str, int]:
    """What tells their kernel from others."""
    return "experts", id(found.program)


class _Element(KernelBody):
    """Writes what a flat kernel computes of one place as a function of the numbers there."""

    def function(self, name: str, given: Sequence[str], wanted: Sequence[str], doc: str) -> list[str]:
        """Its lines: of `given`, by the names of what is loaded, the `wanted` of what is stored."""
        self._docstring(doc)
        self.taken |= set(given)
        values = [value for store in self.kernel.stores for value in store.values]
        for node in reachable(values):
            if node.kind == "load":
                self.texts[node] = Text(str(node.label).partition(":")[0])
        self._scope(values)
        texts = {store.tensor.name: self.texts[store.values[0]] for store in self.kernel.stores}
        made = ", ".join(str(texts[name]) for name in wanted)
        return ["@triton.jit", *fit("", f"def {name}", tuple(given), ":"), *self.lines, f"    return {made}"]

    def _fresh(self, node: Node, wanted: str) -> str:
        stem, name, n = wanted, wanted, 2
        while name in self.taken:
            name, n = f"{stem}{n}", n + 1
        self.taken.add(name)
        return name
