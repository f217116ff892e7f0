"""What an expression of the language evaluates to, besides tensors (`ir.Value`), numbers and dims."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from dskc.dsl import syntax as s
from dskc.dsl.dims import Dim
from dskc.dsl.source import Span

from .ir import Axis, Value
from .signature import Record

if TYPE_CHECKING:
    from .builder import Builder
    from .primitive import Primitive
    from .program import Scope


class Poison:
    """The value of what has been reported already: whatever touches it stays quiet."""

    def __repr__(self) -> str:
        return "POISON"


POISON = Poison()


@dataclass(frozen=True, slots=True)
class Size:
    """A dim as an argument: its size, and the name of its axis."""

    axis: Axis

    @property
    def dim(self) -> Dim:
        return self.axis.size


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask expression: those of `masks.py`, `&` and `|`, as a tree."""

    operator: str
    operands: tuple[Mask, ...] = ()
    arguments: tuple[tuple[str, int], ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Every elementary mask in it."""
        if self.operator in ("&", "|"):
            return frozenset().union(*(operand.names for operand in self.operands))
        return frozenset({self.operator})

    @property
    def is_causal(self) -> bool:
        """Whether no query sees a later position."""
        if self.operator in ("&", "|"):
            parts = [operand.is_causal for operand in self.operands]
            return any(parts) if self.operator == "&" else all(parts)
        return self.operator == "causal"

    def __str__(self) -> str:
        if self.operator in ("&", "|"):
            parts = (f"({o})" if self.operator == "&" and o.operator == "|" else str(o) for o in self.operands)
            return f" {self.operator} ".join(parts)
        if not self.arguments:
            return self.operator
        named = len(self.arguments) > 1
        return f"{self.operator}({', '.join(f'{k}: {v}' if named else str(v) for k, v in self.arguments)})"


@dataclass(frozen=True, slots=True)
class ArrowValue:
    """`D -> [H, E]`: the axes that go and those that come; `None` on the left stands for `..`, whatever is there."""

    source: tuple[Axis, ...] | None
    target: tuple[Axis, ...]


@dataclass(slots=True, eq=False)
class BlockValue:
    """A block still to be applied, owning one set of weights: `rope(theta: 1e4)`, `embed(V -> D)`."""

    callee: Primitive | BlockDefinition
    arguments: dict[str, Expressed]
    span: Span
    builder: Builder  # where it was made, and so where its weights stand; of a nameless argument, the body it goes to
    path: str | None = None
    passed: bool = False
    claimed: bool = False  # its path is its own in that body
    weights: tuple[Value, ...] | None = None

    @property
    def name(self) -> str:
        return self.callee.name if not isinstance(self.callee, BlockDefinition) else self.callee.syntax.name.text

    @property
    def home(self) -> Builder:
        """The body that its weights are declared in: outside of every block that is itself a value."""
        return self.builder.home or self.builder

    @property
    def doc(self) -> str | None:
        return self.callee.syntax.doc if isinstance(self.callee, BlockDefinition) else None


@dataclass(frozen=True, slots=True)
class BlockDefinition:
    """A block as written, with the scope its body's names are looked up in."""

    syntax: s.Block | s.ExternBlock
    scope: Scope = field(repr=False)


Expressed = (
    Value
    | Size
    | Fraction
    | bool
    | str
    | None
    | tuple
    | Mask
    | ArrowValue
    | BlockValue
    | BlockDefinition
    | Record
    | Poison
)

Bound = TypeVar("Bound", bound=Expressed)


def named(value: Bound, name: str) -> Bound:
    """Gives a fresh tensor its name in the spec. Values are frozen once their graph is built; this builds it."""
    if isinstance(value, Value) and value.name is None:
        object.__setattr__(value, "name", name)
    return value
