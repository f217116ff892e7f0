"""The syntax tree of a spec: what was written, where it stands, and nothing that was worked out from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from .source import Source, Span


@dataclass(frozen=True, slots=True)
class Node:
    """Anything with a place in a file. Two nodes are equal when they say the same, wherever they stand."""

    span: Span = field(compare=False, repr=False)


# --- expressions


@dataclass(frozen=True, slots=True)
class Name(Node):
    """One identifier: a value (`heads`), or a dim when it opens with a capital (`H`)."""

    text: str

    @property
    def is_dim(self) -> bool:
        return self.text[0].isupper()


@dataclass(frozen=True, slots=True)
class Path(Node):
    """Names joined by dots, `layers.attention`; `*` stands for every index of a repeat."""

    parts: tuple[Name, ...]

    @property
    def text(self) -> str:
        return ".".join(part.text for part in self.parts)


@dataclass(frozen=True, slots=True)
class Number(Node):
    """An exact number with its glued-on unit worked in: `72GiB` is 72 * 2**30 of kind `bytes`."""

    value: Fraction
    kind: str | None
    text: str


@dataclass(frozen=True, slots=True)
class String(Node):
    value: str


@dataclass(frozen=True, slots=True)
class Boolean(Node):
    value: bool


@dataclass(frozen=True, slots=True)
class Ellipsis_(Node):
    """`..`: the axes that are not named."""


@dataclass(frozen=True, slots=True)
class List(Node):
    items: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Parenthesized(Node):
    inner: Expression


@dataclass(frozen=True, slots=True)
class Unary(Node):
    operator: str
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary(Node):
    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Conditional(Node):
    condition: Expression
    then: Expression
    otherwise: Expression


@dataclass(frozen=True, slots=True)
class Arrow(Node):
    """`D -> F` as an argument: from which axes to which."""

    source: Expression
    target: Expression


@dataclass(frozen=True, slots=True)
class Argument(Node):
    label: Name | None
    value: Expression


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Type(Node):
    """`ids[B, S]`, `[.., D]`, `[B, P, Pi]?`: element kind (None: floating point), axes, whether it may be absent."""

    element: Name | None
    axes: tuple[Expression, ...]
    optional: bool


@dataclass(frozen=True, slots=True)
class DimKind(Node):
    """`inner: F`: takes a dim and brings its name into scope."""

    name: Name
    optional: bool


@dataclass(frozen=True, slots=True)
class ValueKind(Node):
    """`top: int`, `rope: block?`."""

    name: Name
    optional: bool


@dataclass(frozen=True, slots=True)
class Param(Node):
    name: Name
    kind: Type | DimKind | ValueKind | None  # None: told by the default
    default: Expression | None


@dataclass(frozen=True, slots=True)
class Result(Node):
    name: Name
    type: Type


# --- sections


@dataclass(frozen=True, slots=True)
class Setting(Node):
    """`tokens = 2T`, and `optimizer adamw(...)`, which is written without the sign (`bare`)."""

    key: Path
    value: Expression
    bare: bool
    doc: str | None


@dataclass(frozen=True, slots=True)
class Placement(Node):
    """`H -> tp`."""

    key: Path
    target: Expression


@dataclass(frozen=True, slots=True)
class Patch(Node):
    """`optimizer(lr: 1e-3)`: changes arguments of what is inherited."""

    key: Path
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Subsection(Node):
    key: Path
    section: Section


@dataclass(frozen=True, slots=True)
class Section(Node):
    entries: tuple[Entry, ...]


# --- statements


@dataclass(frozen=True, slots=True)
class Dims(Node):
    section: Section


@dataclass(frozen=True, slots=True)
class Assign(Node):
    targets: tuple[Name, ...]
    value: Expression


@dataclass(frozen=True, slots=True)
class Residual(Node):
    """`x += f(x)`."""

    target: Name
    value: Expression


@dataclass(frozen=True, slots=True)
class Repeat(Node):
    count: Expression
    name: Name
    index: Name | None
    body: Body


@dataclass(frozen=True, slots=True)
class Group(Node):
    name: Name
    body: Body


@dataclass(frozen=True, slots=True)
class If(Node):
    condition: Expression
    then: Body
    otherwise: Body | If | None


@dataclass(frozen=True, slots=True)
class Return(Node):
    values: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Keep(Node):
    names: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class Loss(Node):
    name: Name
    value: Expression


@dataclass(frozen=True, slots=True)
class Require(Node):
    condition: Expression


@dataclass(frozen=True, slots=True)
class Weights(Node):
    names: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class RepeatOverride(Node):
    """`repeat layers 4` in a model that comes from another."""

    name: Name
    count: Expression


@dataclass(frozen=True, slots=True)
class CallOverride(Node):
    """`layers.attention(qk_norm: true)` in a model that comes from another."""

    path: Path
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Bad(Node):
    """A statement that could not be read; its problem has been reported. `names` are those it seems to bind."""

    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Edition(Node):
    number: Number


@dataclass(frozen=True, slots=True)
class Use(Node):
    """`use std { attention }` or `use "blocks.dsk" { mine }`, relative to the file that says it."""

    library: Name | String
    names: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class Model(Node):
    name: Name
    params: tuple[Param, ...]
    results: tuple[Result, ...]
    body: Body
    doc: str | None


@dataclass(frozen=True, slots=True)
class DerivedModel(Node):
    name: Name
    base: Name
    body: Body
    doc: str | None


@dataclass(frozen=True, slots=True)
class Block(Node):
    name: Name
    params: tuple[Param, ...]
    types: tuple[Type, ...]
    body: Body
    doc: str | None


@dataclass(frozen=True, slots=True)
class ExternBlock(Node):
    """A block written elsewhere: `= extern "package.module:Class" { flops = ... }`."""

    name: Name
    params: tuple[Param, ...]
    types: tuple[Type, ...]
    target: String
    cost: Section
    doc: str | None


@dataclass(frozen=True, slots=True)
class Train(Node):
    name: Name
    base: Name | None
    model: Name | None
    section: Section
    doc: str | None


@dataclass(frozen=True, slots=True)
class Plan(Node):
    name: Name
    base: Name | None
    train: Name | None
    device: Expression | None
    section: Section
    doc: str | None


@dataclass(frozen=True, slots=True)
class Serve(Node):
    name: Name
    base: Name | None
    model: Name | None
    device: Expression | None
    section: Section
    doc: str | None


@dataclass(frozen=True, slots=True)
class Checkpoint(Node):
    name: Name
    base: Name | None
    architecture: String | None
    section: Section
    doc: str | None


Item = Edition | Use | Model | DerivedModel | Block | ExternBlock | Train | Plan | Serve | Checkpoint | Bad


@dataclass(frozen=True, slots=True)
class File:
    """A whole spec file; `complete` is False when some statement in it could not be read."""

    source: Source
    items: tuple[Item, ...]
    complete: bool
