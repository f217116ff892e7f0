"""The syntax tree of a spec: what was written, where it stands, and nothing that was worked out from it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self, dataclass_transform

from .source import Source, Span


@dataclass_transform(frozen_default=True)
class _Frozen:
    """A frozen dataclass in all but its making: dataclasses generate code for every class, which for forty of them
    takes longer than checking a spec.

    Its first field, `Node.span`, tells no two apart. Patterns go by keyword: there is no `__match_args__`.
    """

    fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.fields = (*cls.fields, *cls.__dict__.get("__annotations__", ()))  # noqa: RUF063 (inspect is slow to import)

    def __init__(self, *values: object, **named: object) -> None:
        given = dict(zip(self.fields, values, strict=False), **named)
        missing = [name for name in self.fields if name not in given and not hasattr(type(self), name)]
        assert not missing and len(given) == len(values) + len(named) <= len(self.fields), (type(self), values, named)
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def changed(self, **changes: object) -> Self:
        """A copy with other values for some fields."""
        return type(self)(*(changes.get(field, getattr(self, field)) for field in self.fields))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.fields[1:])

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self.fields[1:])))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fields[1:])
        return f"{type(self).__name__}({shown})"


class Node(_Frozen):
    """Anything with a place in a file. Two nodes are equal when they say the same, wherever they stand."""

    span: Span


# --- expressions


class Name(Node):
    """One identifier: a value (`heads`), or a dim when it opens with a capital (`H`)."""

    text: str

    @property
    def is_dim(self) -> bool:
        return self.text[0].isupper()


class Path(Node):
    """Names joined by dots, `layers.attention`; `*` stands for every index of a repeat."""

    parts: tuple[Name, ...]

    @property
    def text(self) -> str:
        return ".".join(part.text for part in self.parts)


UNREAD = "unread"  # the kind of a number that could not be read, which has been reported


class Number(Node):
    """An exact number with its glued-on unit worked in: `72GiB` is 72 * 2**30 of kind `bytes`."""

    value: Fraction
    kind: str | None
    text: str


class String(Node):
    value: str


class Boolean(Node):
    value: bool


class Ellipsis_(Node):
    """`..`: the axes that are not named."""


class List(Node):
    items: tuple[Expression, ...]


class Parenthesized(Node):
    inner: Expression


class Unary(Node):
    operator: str
    operand: Expression


class Binary(Node):
    operator: str
    left: Expression
    right: Expression


class Conditional(Node):
    condition: Expression
    then: Expression
    otherwise: Expression


class Arrow(Node):
    """`D -> F` as an argument: from which axes to which."""

    source: Expression
    target: Expression


class Argument(Node):
    label: Name | None
    value: Expression


class Call(Node):
    """`callee(arguments) as alias`. Without its tensor argument it is a value: a block still to be applied."""

    callee: Path
    arguments: tuple[Argument, ...]
    alias: Name | None


Expression = (
    Name
    | Path
    | Number
    | String
    | Boolean
    | Ellipsis_
    | List
    | Parenthesized
    | Unary
    | Binary
    | Conditional
    | Arrow
    | Call
)


# --- types and parameters


class Type(Node):
    """`ids[B, S]`, `[.., D]`, `[B, P, Pi]?`: element kind (None: floating point), axes, whether it may be absent."""

    element: Name | None
    axes: tuple[Expression, ...]
    optional: bool


class DimKind(Node):
    """`inner: F`: takes a dim and brings its name into scope."""

    name: Name
    optional: bool


class ValueKind(Node):
    """`top: int`, `rope: block?`."""

    name: Name
    optional: bool


class Param(Node):
    name: Name
    kind: Type | DimKind | ValueKind | None  # None: told by the default
    default: Expression | None
    doc: str | None


class Result(Node):
    name: Name
    type: Type


# --- sections


class Setting(Node):
    """`tokens = 2T`, and `optimizer adamw(...)`, which is written without the sign (`bare`)."""

    key: Path
    value: Expression
    bare: bool
    doc: str | None


class Placement(Node):
    """`H -> tp`."""

    key: Path
    target: Expression


class Patch(Node):
    """`optimizer(lr: 1e-3)`: changes arguments of what is inherited."""

    key: Path
    arguments: tuple[Argument, ...]


class Subsection(Node):
    key: Path
    section: Section


class Section(Node):
    entries: tuple[Entry, ...]


# --- statements


class Dims(Node):
    section: Section


class Assign(Node):
    targets: tuple[Name, ...]
    value: Expression


class Residual(Node):
    """`x += f(x)`."""

    target: Name
    value: Expression


class Repeat(Node):
    count: Expression
    name: Name
    index: Name | None
    body: Body


class Group(Node):
    name: Name
    body: Body


class If(Node):
    condition: Expression
    then: Body
    otherwise: Body | If | None


class Return(Node):
    values: tuple[Expression, ...]


class Keep(Node):
    names: tuple[Name, ...]


class Loss(Node):
    name: Name
    value: Expression


class Require(Node):
    condition: Expression


class Weights(Node):
    names: tuple[Name, ...]


class RepeatOverride(Node):
    """`repeat layers 4` in a model that comes from another."""

    name: Name
    count: Expression


class CallOverride(Node):
    """`layers.attention(qk_norm: true)` in a model that comes from another."""

    path: Path
    arguments: tuple[Argument, ...]


class Bad(Node):
    """A statement that could not be read; its problem has been reported. `names` are those it seems to bind."""

    names: tuple[str, ...] = ()


class Body(Node):
    statements: tuple[Statement, ...]


Entry = Setting | Placement | Patch | Subsection | Bad
Statement = (
    Dims
    | Assign
    | Residual
    | Repeat
    | Group
    | If
    | Return
    | Keep
    | Loss
    | Require
    | Weights
    | RepeatOverride
    | CallOverride
    | Bad
)


# --- items


class Edition(Node):
    number: Number


class Use(Node):
    """`use std { attention }` or `use "blocks.dsk" { mine }`, relative to the file that says it."""

    library: Name | String
    names: tuple[Name, ...]


class Model(Node):
    name: Name
    params: tuple[Param, ...]
    results: tuple[Result, ...]
    body: Body
    doc: str | None


class DerivedModel(Node):
    name: Name
    base: Name
    body: Body
    doc: str | None


class Block(Node):
    name: Name
    params: tuple[Param, ...]
    types: tuple[Type, ...]
    body: Body
    doc: str | None


class ExternBlock(Node):
    """A block written elsewhere: `= extern "package.module:Class" { flops = ... }`."""

    name: Name
    params: tuple[Param, ...]
    types: tuple[Type, ...]
    target: String
    cost: Section
    doc: str | None


class Train(Node):
    name: Name
    base: Name | None
    model: Name | None
    section: Section
    doc: str | None


class Plan(Node):
    name: Name
    base: Name | None
    train: Name | None
    device: Expression | None
    section: Section
    doc: str | None


class Serve(Node):
    name: Name
    base: Name | None
    model: Name | None
    device: Expression | None
    section: Section
    doc: str | None


class Checkpoint(Node):
    name: Name
    base: Name | None
    architecture: String | None
    section: Section
    doc: str | None


Item = Edition | Use | Model | DerivedModel | Block | ExternBlock | Train | Plan | Serve | Checkpoint | Bad


@dataclass(frozen=True, slots=True)
class File:
    """A whole spec file; `complete` is False when some statement in it could not be read.

    `unsure`: what could not be read may be a name that it imports.
    """

    source: Source
    items: tuple[Item, ...]
    complete: bool
    unsure: bool = False
