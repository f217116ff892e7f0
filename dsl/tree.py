"""Builds the syntax tree while the parser reduces: one method a grammar rule."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

from . import syntax as s
from .numbers import parse_number
from .source import Source, Span
from .token import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ONE = Fraction(1)
_TRAILING_DOC = re.compile(r"[ \t]*,?[ \t]*///([^\n]*)")
Built = TypeVar("Built", s.Node, s.File)


def _located(build: Callable[..., Built]) -> Callable[..., Built]:
    """Gives a callback the span from its first child to its last: every token of the grammar is kept, so they tell."""

    def visit(self: TreeBuilder, children: list) -> Built:
        placed = [child for child in children if child]
        if not placed:
            return build(self, Span(self.source, 0, 0), *children)
        return build(self, Span(self.source, _start(placed[0]), _end(placed[-1])), *children)

    return visit


def token_span(source: Source, token: Token) -> Span:
    """The place of a token that was read from `source`."""
    return Span(source, token.start_pos, token.end_pos)


def _start(child: Token | s.Node | tuple) -> int:
    if isinstance(child, Token):
        return child.start_pos
    return child.span.start if isinstance(child, s.Node) else _start(child[0])


def _end(child: Token | s.Node | tuple) -> int:
    if isinstance(child, Token):
        return child.end_pos
    return child.span.end if isinstance(child, s.Node) else _end(child[-1])


def _present(children: Sequence[object]) -> tuple:
    """The nodes among children: separators and absent optionals go."""
    return tuple(child for child in children if isinstance(child, s.Node))


class TreeBuilder:
    """Callbacks for `grammar.lark`. Set `source` before parsing; docs are attached afterwards by `parser.py`."""

    def __init__(self) -> None:
        self.source = Source("", "")
        self.docs_before: dict[int, str] = {}
        self.docs_after: dict[int, str] = {}
        self.number_problems: list[tuple[Span, str]] = []

    def _doc(self, span: Span) -> str | None:
        return self.docs_before.get(span.start)

    def _entry_doc(self, span: Span) -> str | None:
        return self.docs_before.get(span.start) or self.docs_after.get(span.end_line)

    def _param_doc(self, span: Span) -> str | None:
        """The text above a parameter, or right behind it: where several share a line, that is the last one's."""
        if (before := self.docs_before.get(span.start)) is not None:
            return before
        behind = _TRAILING_DOC.match(self.source.text, span.end)
        return behind[1].strip() if behind else None

    # --- leaves

    @_located
    def name(self, span: Span, token: Token) -> s.Node:
        return s.Name(span, str(token))

    dim = name

    @_located
    def number(self, span: Span, token: Token) -> s.Node:
        try:
            parsed = parse_number(str(token))
        except ValueError as error:
            self.number_problems.append((span, str(error)))
            return s.Number(span, _ONE, s.UNREAD, str(token))
        return s.Number(span, parsed.value, parsed.kind, str(token))

    @_located
    def string(self, span: Span, token: Token) -> s.Node:
        return s.String(span, str(token)[1:-1])

    @_located
    def boolean(self, span: Span, token: Token) -> s.Node:
        return s.Boolean(span, str(token) == "true")

    @_located
    def ellipsis(self, span: Span, token: Token) -> s.Node:
        return s.Ellipsis_(span)

    @_located
    def path(self, span: Span, *tokens: Token) -> s.Node:
        return s.Path(span, self._names(tokens))

    @_located
    def key(self, span: Span, *children: object) -> s.Node:
        return s.Path(span, _present(children))

    def _names(self, tokens: tuple[Token, ...]) -> tuple[s.Name, ...]:
        return tuple(s.Name(token_span(self.source, t), str(t)) for t in tokens if t.type != "DOT")

    @_located
    def key_part(self, span: Span, token: Token) -> s.Node:
        return s.Name(span, str(token))

    label = key_part
    kind_word = key_part

    # --- expressions

    @_located
    def binary(self, span: Span, left: s.Expression, operator: Token, right: s.Expression) -> s.Node:
        return s.Binary(span, str(operator), left, right)

    @_located
    def unary(self, span: Span, operator: Token, operand: s.Expression) -> s.Node:
        return s.Unary(span, str(operator), operand)

    @_located
    def parenthesized(self, span: Span, *children: object) -> s.Node:
        return s.Parenthesized(span, *_present(children))

    @_located
    def conditional(self, span: Span, *children: object) -> s.Node:
        return s.Conditional(span, *_present(children))

    @_located
    def list(self, span: Span, *children: object) -> s.Node:
        return s.List(span, _present(children))

    @_located
    def arrow(self, span: Span, *children: object) -> s.Node:
        return s.Arrow(span, *_present(children))

    @_located
    def named(self, span: Span, label: s.Name, *children: object) -> s.Node:
        return s.Argument(span, label, *_present(children))

    @_located
    def named_arrow(self, span: Span, label: s.Name, *children: object) -> s.Node:
        source, target = _present(children)
        return s.Argument(span, label, s.Arrow(source.span.to(target.span), source, target))

    @_located
    def call(self, span: Span, *children: object) -> s.Node:
        callee, arguments, *rest = _parts(children)
        alias = rest[0] if rest else None
        return s.Call(span, callee, arguments or (), alias)

    def arguments(self, children: Sequence[object]) -> tuple:
        return tuple(
            child if isinstance(child, s.Argument) else s.Argument(child.span, None, child)
            for child in _present(children)
        )

    # --- types and parameters

    @_located
    def type(self, span: Span, element: s.Name | None, axes: s.List, optional: Token | None) -> s.Node:
        return s.Type(span, element, axes.items, optional is not None)

    def types(self, children: Sequence[object]) -> tuple:
        return _present(children)

    @_located
    def dim_kind(self, span: Span, name: s.Name, optional: Token | None) -> s.Node:
        return s.DimKind(span, name, optional is not None)

    @_located
    def value_kind(self, span: Span, name: s.Name, optional: Token | None) -> s.Node:
        return s.ValueKind(span, name, optional is not None)

    @_located
    def required(self, span: Span, *children: object) -> s.Node:
        name, kind = _present(children)
        return s.Param(span, name, kind, None, self._param_doc(span))

    @_located
    def defaulted(self, span: Span, *children: object) -> s.Node:
        name, kind, default = _present(children)
        return s.Param(span, name, kind, default, self._param_doc(span))

    @_located
    def inferred(self, span: Span, *children: object) -> s.Node:
        name, default = _present(children)
        return s.Param(span, name, None, default, self._param_doc(span))

    params = types
    results = types

    @_located
    def result(self, span: Span, *children: object) -> s.Node:
        return s.Result(span, *_present(children))

    # --- sections

    @_located
    def section(self, span: Span, *children: object) -> s.Node:
        return s.Section(span, _present(children))

    @_located
    def setting(self, span: Span, *children: object) -> s.Node:
        key, value = _present(children)
        return s.Setting(span, key, value, False, self._entry_doc(span))

    @_located
    def choice(self, span: Span, *children: object) -> s.Node:
        key, value = _present(children)
        return s.Setting(span, key, value, True, self._entry_doc(span))

    @_located
    def placement(self, span: Span, *children: object) -> s.Node:
        return s.Placement(span, *_present(children))

    @_located
    def patch(self, span: Span, *children: object) -> s.Node:
        key, arguments, *_ = _parts(children)
        return s.Patch(span, key, arguments or ())

    @_located
    def subsection(self, span: Span, *children: object) -> s.Node:
        return s.Subsection(span, *_present(children))

    # --- statements

    @_located
    def body(self, span: Span, *children: object) -> s.Node:
        return s.Body(span, _present(children))

    @_located
    def dims(self, span: Span, *children: object) -> s.Node:
        return s.Dims(span, *_present(children))

    targets = types

    @_located
    def assign(self, span: Span, targets: tuple[s.Name, ...], sign: Token, value: s.Expression) -> s.Node:
        return s.Assign(span, targets, value)

    @_located
    def residual(self, span: Span, *children: object) -> s.Node:
        return s.Residual(span, *_present(children))

    @_located
    def repeat(self, span: Span, *children: object) -> s.Node:
        count, name, *index, body = _present(children)
        return s.Repeat(span, count, name, index[0] if index else None, body)

    @_located
    def repeat_override(self, span: Span, *children: object) -> s.Node:
        return s.RepeatOverride(span, *_present(children))

    @_located
    def call_override(self, span: Span, *children: object) -> s.Node:
        path, arguments, *_ = _parts(children)
        return s.CallOverride(span, path, arguments or ())

    @_located
    def group(self, span: Span, *children: object) -> s.Node:
        return s.Group(span, *_present(children))

    @_located
    def if_statement(self, span: Span, *children: object) -> s.Node:
        condition, then, *otherwise = _present(children)
        return s.If(span, condition, then, otherwise[0] if otherwise else None)

    @_located
    def return_(self, span: Span, *children: object) -> s.Node:
        return s.Return(span, _present(children))

    @_located
    def keep(self, span: Span, *children: object) -> s.Node:
        return s.Keep(span, _present(children))

    @_located
    def loss(self, span: Span, *children: object) -> s.Node:
        return s.Loss(span, *_present(children))

    @_located
    def require(self, span: Span, *children: object) -> s.Node:
        return s.Require(span, *_present(children))

    @_located
    def weights(self, span: Span, *children: object) -> s.Node:
        return s.Weights(span, _present(children))

    @_located
    def bad(self, span: Span, token: Token) -> s.Node:
        return token.value if isinstance(token.value, s.Bad) else s.Bad(span)

    # --- items

    @_located
    def edition(self, span: Span, *children: object) -> s.Node:
        return s.Edition(span, *_present(children))

    @_located
    def use(self, span: Span, *children: object) -> s.Node:
        library, *names = _present(children)
        return s.Use(span, library, tuple(names))

    @_located
    def model(self, span: Span, *children: object) -> s.Node:
        name, params, results, body = _parts(children)
        return s.Model(span, name, params or (), results, body, self._doc(span))

    @_located
    def derived(self, span: Span, *children: object) -> s.Node:
        name, base, body = _present(children)
        return s.DerivedModel(span, name, base, body, self._doc(span))

    @_located
    def block(self, span: Span, *children: object) -> s.Node:
        name, params, types, body = _parts(children)
        return s.Block(span, name, params or (), types, body, self._doc(span))

    @_located
    def extern_block(self, span: Span, *children: object) -> s.Node:
        name, params, types, target, cost = _parts(children)
        return s.ExternBlock(span, name, params or (), types, target, cost, self._doc(span))

    @_located
    def train(self, span: Span, *children: object) -> s.Node:
        name, base, model, section = _headed(children, ("FROM", "OF"))
        return s.Train(span, name, base, model, section, self._doc(span))

    @_located
    def plan(self, span: Span, *children: object) -> s.Node:
        name, base, train, device, section = _headed(children, ("FROM", "FOR", "ON"))
        return s.Plan(span, name, base, train, device, section, self._doc(span))

    @_located
    def serve(self, span: Span, *children: object) -> s.Node:
        name, base, model, device, section = _headed(children, ("FROM", "OF", "ON"))
        return s.Serve(span, name, base, model, device, section, self._doc(span))

    @_located
    def checkpoint(self, span: Span, *children: object) -> s.Node:
        name, base, architecture, section = _headed(children, ("FROM", "FOR"))
        return s.Checkpoint(span, name, base, architecture, section, self._doc(span))

    @_located
    def start(self, span: Span, *children: object) -> s.File:
        return s.File(self.source, _present(children), complete=True)


def _parts(children: tuple) -> list:
    """Children without their punctuation; tuples (parameters, arguments) and absent ones stay."""
    return [child for child in children if not isinstance(child, Token)]


def _headed(children: tuple, words: tuple[str, ...]) -> list:
    """Name, then the child after each head word (None when the word is absent), then the section."""
    after = {child.type: children[i + 1] for i, child in enumerate(children) if isinstance(child, Token)}
    nodes = _present(children)
    return [nodes[0], *(after.get(word) for word in words), nodes[-1]]
