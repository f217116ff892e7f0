"""Statements that were made readable without knowing what they should say: they become `Bad`."""

from __future__ import annotations

from typing import TypeVar

from . import syntax as s
from .source import Span

Kept = TypeVar("Kept", bound=s.Node)
_BODIES = (s.Model, s.DerivedModel, s.Block, s.Repeat, s.Group, s.If, s.Body, s.Section, s.Dims, s.Subsection)
_SECTIONS = (s.ExternBlock, s.Train, s.Plan, s.Serve, s.Checkpoint)


def doubted(items: tuple[s.Item, ...], doubts: list[Span]) -> tuple[s.Item, ...]:
    """The items of a file with every innermost statement or entry that a doubt lies in as `Bad`, binding what it did.

    An item whose head is in doubt is `Bad` as a whole, but for `use`: what it names is asked for either way.
    """
    for doubt in doubts:
        items = tuple(_item(item, doubt) for item in items)
    return items


def imports_in_doubt(items: tuple[s.Item, ...], doubts: list[Span]) -> bool:
    """Whether some `use` may name more than it seems to."""
    return any(isinstance(item, s.Use) and _within(item, doubt) for item in items for doubt in doubts)


def _item(item: s.Item, doubt: Span) -> s.Item:
    if isinstance(item, s.Use | s.Edition) or not _within(item, doubt):
        return item
    inner = _doubted(item, doubt)
    return s.Bad(item.span) if inner == item else inner


def _doubted(node: Kept, doubt: Span) -> Kept:
    if type(node) not in (*_BODIES, *_SECTIONS) or not _within(node, doubt):
        return node
    changed: dict[str, object] = {}
    for field in node.fields:
        value = getattr(node, field)
        if isinstance(value, _BODIES):
            changed[field] = _doubted(value, doubt)
        elif field in ("statements", "entries"):
            changed[field] = tuple(_innermost(child, doubt) for child in value)
    return node.changed(**changed)


def _innermost(node: s.Node, doubt: Span) -> s.Node:
    """A statement or entry: `Bad` when the doubt is in it, or is in it but not in what it holds."""
    if not _within(node, doubt):
        return node
    if isinstance(node, _BODIES):
        inner = _doubted(node, doubt)
        if inner != node:
            return inner
    return s.Bad(node.span, _bound(node))


def _within(node: s.Node, doubt: Span) -> bool:
    """Whether a doubt lies in a node, or next to it on its line."""
    start, end = node.span.start, node.span.end
    gap = doubt.source.text[doubt.end : start] or doubt.source.text[end : doubt.start]
    return (doubt.end >= start and doubt.start <= end) or (not gap.strip() and "\n" not in gap)


def _bound(node: s.Node) -> tuple[str, ...]:
    """The names that a statement binds, or the key of an entry."""
    match node:
        case s.Assign():
            return tuple(name.text for name in node.targets)
        case s.Residual():
            return (node.target.text,)
        case s.Loss() | s.Repeat() | s.Group():
            return (node.name.text,)
        case s.Setting() | s.Placement() | s.Patch() | s.Subsection():
            return (node.key.text,)
    return ()
