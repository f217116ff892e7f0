"""Weights: what a model learns or keeps, declared once each under the path that its state dict knows it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dskc.dsl.dims import Dim

from ..ir import Axis, DType, TensorType, product
from .base import Operation


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor. An axis may be made of several dims, outer first: `[[H, E], [D]]` is stored as [H * E, D]."""

    name: str
    groups: tuple[tuple[Axis, ...], ...]
    init: str = "normal"
    state: str | None = None  # no parameter but a buffer: `saved` in the state dict and checkpoints, or only `counted`

    @property
    def type(self) -> TensorType:
        return TensorType(tuple(flat(group) for group in self.groups), DType.FP32 if self.state else DType.PARAMS)

    @property
    def elements(self) -> Dim:
        return self.type.elements


def flat(axes: tuple[Axis, ...]) -> Axis:
    """Several axes as one, the first the outermost."""
    if len(axes) == 1:
        return axes[0]
    return Axis("".join(axis.name for axis in axes), product(axis.size for axis in axes))


@dataclass(frozen=True, slots=True)
class Weights(Operation):
    """One module's weights: `path` has a `*` for every repeat around, `module` is a class of `runtime/modules.py`."""

    path: str
    module: str
    weights: tuple[Weight, ...]
    options: tuple[tuple[str, object], ...] = ()
    pure: ClassVar[bool] = False

    def written_sizes(self) -> tuple[Dim, ...]:
        return tuple(axis.size for weight in self.weights for axis in weight.type.axes)

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        return tuple(weight.type for weight in self.weights)

    @property
    def name(self) -> str:
        return self.path.rsplit(".", 1)[-1]

    @property
    def elements(self) -> Dim:
        total = Dim.of(0)
        for weight in self.weights:
            if weight.state is None:
                total = total + weight.elements
        return total

    def describe(self) -> str:
        shapes = (f"{w.name}[{', '.join(' * '.join(a.name for a in g) for g in w.groups)}]" for w in self.weights)
        return f"{self.path}: {self.module} {', '.join(shapes)}"
