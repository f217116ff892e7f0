"""A resolved program: files with their scopes, models with their overrides, recipes with what they inherit."""

from __future__ import annotations

from dataclasses import dataclass, field

from dskc.dsl import syntax as s
from dskc.dsl.source import Source, Span

from .values import BlockDefinition

Definition = BlockDefinition | s.Model | s.DerivedModel | s.Train | s.Plan | s.Serve | s.Checkpoint


@dataclass(slots=True)
class Scope:
    """What the names in one file mean: its own items and those it imports."""

    source: Source
    library: bool = False
    names: dict[str, Definition] = field(default_factory=dict)
    owners: dict[str, Scope] = field(default_factory=dict)  # the scope that a name's definition stands in
    spans: dict[str, Span] = field(default_factory=dict)
    broken: bool = False  # some item could not be read: missing names may only be unread ones
    lost: set[str] = field(default_factory=set)  # names that an import asked for in vain, and which has been reported

    def may_have(self, name: str) -> bool:
        """Whether a name that is missing may only be unread, so that there is nothing more to say of it."""
        return self.broken or name in self.lost

    def blocks(self) -> list[str]:
        return [name for name, item in self.names.items() if isinstance(item, BlockDefinition)]


@dataclass(frozen=True, slots=True)
class Override:
    """A change to what is inherited: a dim, a repeat's count, or an argument of a call; `span` is where it is said."""

    kind: str  # dim, repeat or call
    path: str
    argument: str | None
    value: s.Expression
    scope: Scope
    span: Span


@dataclass(slots=True)
class ModelSource:
    """A model with all that is laid over it; later overrides win."""

    name: s.Name
    base: s.Model
    scope: Scope
    doc: str | None
    overrides: list[Override] = field(default_factory=list)
    requires: list[tuple[s.Require, Scope]] = field(default_factory=list)
    weights: tuple[s.Name, ...] = ()
    weights_scope: Scope | None = None
    weights_at: Span | None = None  # the statement of this model's own that says them
    altered: bool = False  # by `--set`, or in part unread: then it is not the model that its requirements speak of

    @property
    def source(self) -> Source:
        """The file that names the model."""
        return self.name.span.source


@dataclass(frozen=True, slots=True)
class Said:
    """One setting of a recipe as last said: its expression, or the arguments patched onto what was there."""

    key: s.Path
    value: s.Expression
    scope: Scope
    patches: tuple[tuple[s.Argument, Scope], ...] = ()


@dataclass(slots=True)
class SectionSource:
    """A `train`, `plan` or `serve` with what it inherits worked in: settings by dotted key."""

    item: s.Train | s.Plan | s.Serve
    scope: Scope
    target: s.Name | None  # the model of a train or serve, the train of a plan
    device: s.Expression | None = None
    settings: dict[str, Said] = field(default_factory=dict)
    placements: list[tuple[s.Placement, Scope]] = field(default_factory=list)
    sections: dict[str, Span] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)  # sections with an entry that could not be read; "" is the whole

    @property
    def name(self) -> str:
        return self.item.name.text


@dataclass(slots=True)
class Program:
    """Everything one spec file says, with its imports resolved."""

    main: Source
    scope: Scope
    models: dict[str, ModelSource] = field(default_factory=dict)  # those this file defines, in order
    trains: dict[str, SectionSource] = field(default_factory=dict)
    plans: dict[str, SectionSource] = field(default_factory=dict)
    serves: dict[str, SectionSource] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
