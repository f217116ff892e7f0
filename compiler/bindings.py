"""What a body's statements bind and mention, read off its syntax."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dskc.dsl import syntax as s
from dskc.dsl.source import Span


def first_line(span: Span) -> Span:
    """The first line of a statement, without the brace that ends it."""
    return Span(span.source, span.start, span.start + len(span.text.split("\n")[0].rstrip(" {")))


def walk(node: s.Node | None) -> Iterator[s.Node]:
    """A node and all that is in it, in order."""
    if node is None:
        return
    yield node
    for child in children(node):
        yield from walk(child)


def children(node: s.Node) -> Iterator[s.Node]:
    """What stands directly in a node, in order."""
    for name in node.fields:
        child = getattr(node, name)
        if isinstance(child, s.Node):
            yield child
        elif isinstance(child, tuple):
            yield from (item for item in child if isinstance(item, s.Node))


def assigned(node: s.Node) -> list[str]:
    """Names that statements in here bind, in order."""
    names: dict[str, None] = {}
    for found in walk(node):
        if isinstance(found, s.Assign):
            names.update((target.text, None) for target in found.targets)
        elif isinstance(found, s.Residual):
            names[found.target.text] = None
        elif isinstance(found, s.Bad):
            names.update((name, None) for name in found.names)
    return list(names)


def bound_once(body: s.Body) -> frozenset[str]:
    """Names that a body binds with one statement only: their call's weights may take the name."""
    count: Counter[str] = Counter()
    for node in walk(body):
        if isinstance(node, s.Assign):
            count.update(target.text for target in node.targets)
        elif isinstance(node, s.Residual):
            count[node.target.text] += 1
    return frozenset(name for name, times in count.items() if times == 1)


def is_plain(node: s.Node) -> bool:
    """Whether an expression is of numbers, dims and names alone."""
    return all(isinstance(inner, _PLAIN) for inner in walk(node))


_PLAIN = (s.Number, s.Boolean, s.Name, s.Path, s.Parenthesized, s.Unary, s.Binary)


def mentions(node: s.Node, name: str) -> bool:
    """Whether a name is used in here."""
    return any(isinstance(found, s.Path) and found.parts[0].text == name for found in walk(node))
