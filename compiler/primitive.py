"""Primitives: the operations that specs call by name, always in scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .builder import Builder
from .ir import Value
from .ops.base import Operation, ShapeError
from .ops.weights import Weight
from .signature import Signature
from .values import BlockValue, Expressed


@dataclass(slots=True)
class Site:
    """One application of a primitive: where it stands, what its weights are called, and its checked arguments."""

    builder: Builder
    span: Span
    path: str
    arguments: dict[str, Expressed]
    owner: BlockValue | None = None  # the value that was applied, when weights may be shared
    name: str | None = None
    expand: Callable[..., tuple[Value, ...]] | None = None  # applies a block value to tensors in a given builder

    def __getitem__(self, name: str) -> Expressed:
        return self.arguments[name]

    def tensor(self, name: str) -> Value:
        value = self.arguments[name]
        if not isinstance(value, Value):
            raise ShapeError(f"`{name}` is a tensor", name)
        return value

    def number(self, name: str) -> Fraction:
        """An argument of kind INT or FLOAT that is always there."""
        value = self.arguments[name]
        assert isinstance(value, Fraction), f"{name}: {value}"
        return value

    def positive(self, name: str, zero: bool = False) -> float:
        """A number over 0, or 0 too. Raises ShapeError for others."""
        value = self.number(name)
        if value < 0 or (value == 0 and not zero):
            title = f"`{name}` is {'0 or more' if zero else 'over 0'}, and this is {show_number(value)}"
            raise ShapeError(title, name, code="DSK0131")
        return float(value)

    def add(self, attributes: Operation, *operands: Value) -> Value:
        return self.builder.one(attributes, operands, self.span, self.name)

    def weights(self, module: str, *weights: Weight, **options: object) -> tuple[Value, ...]:
        """This site's weights; a block value applied twice has one set, made where the value was made."""
        if self.owner is None:
            return self.builder.weights(self.path, module, weights, self.span, **options)
        if self.owner.weights is None:
            made = self.owner.builder.weights(self.path, module, weights, self.owner.span, **options)
            self.owner.weights = made
            return made
        for value, weight in zip(self.owner.weights, weights, strict=True):
            if value.type != weight.type:
                raise ShapeError(f"`{self.path}` was applied before with weights {value.type}, now {weight.type}")
        return self.owner.weights


@dataclass(frozen=True, slots=True)
class Primitive:
    """A primitive's signature and how it becomes operations. `weighted`: it owns weights, and so a name."""

    signature: Signature
    build: Callable[[Site], Value | tuple[Value, ...]]
    weighted: bool = False
    short: str | None = None  # how its name shortens behind a consumer's: `rms_norm` is `norm` in `attention_norm`

    @property
    def name(self) -> str:
        return self.signature.name
