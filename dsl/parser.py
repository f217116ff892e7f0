"""Text to syntax tree: the grammar's tables, driven so that one mistake costs one statement."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Container, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from . import syntax as s
from .diagnostics import Diagnostic, Diagnostics
from .doubt import doubted, imports_in_doubt
from .kept import keep_tree, kept_tree
from .layout import ITEM_KEYWORDS, Layout
from .source import Source, Span
from .tables import Machine, Tables, UnexpectedToken, load_tables
from .token import Token
from .tree import TreeBuilder, token_span
from .wording import describe_expected, describe_unexpected, habit

GRAMMAR = Path(__file__).parent / "grammar.lark"
MAX_TOKENS = 30_000  # of a file, comments and line ends included
MOST_PROBLEMS = 100  # of reading one file: what has more is no spec
MAX_DEPTH = 100  # of brackets and braces
MAX_LEVELS = 300  # of the tree: a bracket takes two or three, an operator or an `else if` one
CALLS = 5000  # that Python may nest: some ten for each level, and some more for each block within a block
_CLOSERS = {"LPAR": ")", "LSQB": "]", "LBRACE": "}"}
_ENDERS = {"RPAR", "RSQB", "RBRACE"}


def cache_folder() -> Path:
    """Where parse tables and trees are kept between runs: DSKC_CACHE, XDG_CACHE_HOME, or the user's cache folder."""
    chosen = os.environ.get("DSKC_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dskc"
    try:
        base.mkdir(parents=True, exist_ok=True)
        if os.access(base, os.W_OK):
            return base
    except OSError:
        pass
    return Path(tempfile.gettempdir())


@cache
def _machinery() -> tuple[Tables, TreeBuilder]:
    sys.setrecursionlimit(max(sys.getrecursionlimit(), CALLS))
    return load_tables(GRAMMAR, cache_folder()), TreeBuilder()


def tokenize(text: str) -> list[Token]:
    """All tokens of a text, comments and newlines included; every character belongs to some token or to white space."""
    tables, _ = _machinery()
    return list(tables.tokens(text))


def parse(source: Source, problems: Diagnostics) -> s.File:
    """The syntax tree of `source`. What cannot be read is reported and stands in the tree as `Bad`."""
    if source.library:
        return _library_tree(source, problems)
    return _read(source, problems)


def _library_tree(source: Source, problems: Diagnostics) -> s.File:
    folder = cache_folder()
    tree = kept_tree(source, folder)
    if tree is None:
        before = len(problems)
        tree = _read(source, problems)
        if tree.complete and len(problems) == before:
            keep_tree(tree, folder)
    return tree


def _read(source: Source, problems: Diagnostics) -> s.File:
    tables, _ = _machinery()
    tokens = list(islice(tables.tokens(source.text), MAX_TOKENS + 1))
    if len(tokens) > MAX_TOKENS:
        title = f"this has over {MAX_TOKENS:_} words and signs: that is not a spec"
        notes = (("help", "specs are some hundred lines; check that this is the file you meant"),)
        problems.add(Diagnostic("DSK0013", title, Span(source, 0, 0), notes=notes))
        return s.File(source, (), complete=False)
    return _parse(source, tokens, problems)


def parse_entry(source: Source, problems: Diagnostics) -> s.Entry | None:
    """The one entry, `path.to.key = value`, that `source` holds, as a section's body would have it."""
    tokens = [Token(kind, "") for kind in ("CHECKPOINT", "NAME", "LBRACE")]
    size = len(source.text)
    tokens += [*tokenize(source.text), Token("RBRACE", "", size, 1, size + 1)]
    items = _parse(source, tokens, problems).items
    entries = items[0].section.entries if items and isinstance(items[0], s.Checkpoint) else ()
    return entries[0] if len(entries) == 1 else None


def _parse(source: Source, tokens: list[Token], problems: Diagnostics) -> s.File:
    tables, builder = _machinery()
    deepest = _too_deep(tokens)
    if deepest is not None:
        title = f"this is nested over {MAX_DEPTH} deep"
        problems.add(Diagnostic("DSK0005", title, token_span(source, deepest)))
        return s.File(source, (), complete=False)
    builder.source = source
    builder.number_problems = []
    builder.docs_before, builder.docs_after = _documentation(tokens)
    first = Diagnostics()
    session = _Session(Machine(tables, builder), source, first)
    tree = session.run(tokens)
    doubts: list[Span] = []
    if session.failed:  # again, with what is wrong put right where one token does it
        from .repair import repair  # which most files never need

        repaired = repair(tokens, source, tables)
        problems.extend(repaired.found)
        if repaired.found:
            builder.number_problems = []
            first = Diagnostics()
            session = _Session(Machine(tables, builder), source, first)
            tree = session.run(repaired.tokens)
            session.failed = True
            doubts = repaired.doubts
    problems.extend(first)
    for span, text in builder.number_problems:
        problems.add(Diagnostic("DSK0004", text, span))
    if tree is None:
        return s.File(source, (), complete=False)
    if (deep := _too_many_levels(tree)) is not None:
        title = f"operators and `else if` are nested over {MAX_LEVELS} deep"
        at = Span(source, deep.span.start, deep.span.start + 1)
        problems.add(Diagnostic("DSK0005", title, at, "give what comes before a name"))
        return s.File(source, (), complete=False)
    complete = not session.failed and not builder.number_problems
    return s.File(source, doubted(tree.items, doubts), complete, unsure=imports_in_doubt(tree.items, doubts))


class _Session:
    """One file through the parser, recovering as yacc does: pop to where ERROR fits, skip to the line's end."""

    def __init__(self, machine: Machine, source: Source, problems: Diagnostics) -> None:
        self.state = machine
        self.states = machine.states
        self.source = source
        self.problems = problems
        self.layout = Layout()
        self.failed = False
        self.stumbled = False  # a statement could not be read, and none has been read since
        self.lost = False  # what stands here belongs to an item whose head could not be read: one error is enough

    def run(self, tokens: list[Token]) -> s.File | None:
        stream = _Stream(self.layout.process(tokens))
        for token in stream:
            try:
                if token.type in ITEM_KEYWORDS and token.column == 1 and self._open_brace() is not None:
                    raise UnexpectedToken(token, frozenset())  # as a key it might fit, but there it is an item
                self.state.feed_token(token)
                if token.type == "NEWLINE":
                    self.stumbled = False
                self.lost = self.lost and not (token.type in ITEM_KEYWORDS and token.column == 1)
            except UnexpectedToken as error:
                self._recover(token, error, stream)
        end = stream.last.standing_in("$END") if stream.last else Token("$END", "")
        return self._finish(end)

    def _finish(self, end: Token) -> s.File | None:
        try:
            return self._tree(end)
        except UnexpectedToken as error:
            size = len(self.source.text.rstrip())
            at_end = Span(self.source, max(0, size - 1), size)
            opener = self.layout.open_brackets[-1] if self.layout.open_brackets else self._open_brace()
            if opener is not None:
                self._unclosed(opener)
            else:
                self._report(at_end, end, error)
        self._pop_to("MODEL")
        self.state.feed_token(self._error_token(end, ()))
        try:
            return self._tree(end)
        except UnexpectedToken:
            return None

    def _tree(self, end: Token) -> s.File:
        tree = self.state.feed_token(end, is_end=True)
        assert isinstance(tree, s.File), tree
        return tree

    # --- reporting

    def _report(self, span: Span, found: Token, error: UnexpectedToken) -> None:
        self.failed = True
        outside = _outside(error.expected) or _behind_item(error.expected)
        if (self.lost and outside) or (self.stumbled and _at_statement(error.expected)):
            return
        self.stumbled = True
        if len(self.problems) >= MOST_PROBLEMS:
            return
        expected = describe_expected(error.expected)
        label = habit(span) or (f"expected {expected}" if expected else "")
        self.problems.add(Diagnostic("DSK0001", describe_unexpected(found), span, label))

    def _unclosed(self, opener: Token) -> None:
        self.failed = True
        span = token_span(self.source, opener)
        closer = _CLOSERS[opener.type]
        self.problems.add(Diagnostic("DSK0003", f"this `{opener}` is never closed", span, f"its `{closer}` is missing"))

    # --- recovering

    def _recover(self, token: Token, error: UnexpectedToken, stream: _Stream) -> None:
        brackets = [b for b in self.layout.open_brackets if b is not token and b.line < token.line]
        new_line = stream.previous is not None and stream.previous.line < token.line
        column_one = token.type == "NEWLINE" and stream.peek_is_item()
        brace = self._open_brace() if column_one or (token.type in ITEM_KEYWORDS and token.column == 1) else None
        if brackets and (new_line or token.type in ("RBRACE", "NEWLINE")):
            self._unclosed(brackets[-1])
            self.layout.open_brackets.clear()
        elif brace is not None:
            self._unclosed(brace)
        else:
            new_line = False
            self._report(token_span(self.source, token), token, error)
        names = self._names_being_bound()
        self._pop_to("MODEL" if brace is not None else "ERROR")
        self.lost = self.lost or _outside(self.states[self.state.state_stack[-1]])
        self.state.feed_token(self._error_token(token, names))
        self._resume(token, stream, starts_line=new_line)

    def _resume(self, token: Token, stream: _Stream, starts_line: bool) -> None:
        """Feeds the first token from which the file makes sense again."""
        if starts_line and token.type not in ("RBRACE", "NEWLINE"):
            self._feed(token.standing_in("NEWLINE"))
            stream.push_back(token)
            return
        depth = 0
        found: Token | None = token
        while found is not None:
            kind = found.type
            at_item = kind in ITEM_KEYWORDS and found.column == 1
            if kind == "LBRACE":
                depth += 1
            elif kind == "RBRACE" and depth > 0:
                depth -= 1
            elif (kind in ("NEWLINE", "RBRACE") and depth == 0) or at_item:
                if at_item:
                    self._pop_to("ERROR", bottom=True)
                self.layout.open_brackets.clear()
                self._feed(found)
                return
            found = stream.take()

    def _feed(self, token: Token) -> None:
        try:
            self.state.feed_token(token)
        except UnexpectedToken:
            self._pop_to("MODEL")  # what stands here closes more than was open: go on with the next item
            self.state.feed_token(self._error_token(token, ()))

    def _pop_to(self, terminal: str, bottom: bool = False) -> None:
        stack = self.state.state_stack
        fits = [i for i, state in enumerate(stack) if terminal in self.states[state]]
        keep = (fits[0] if bottom or terminal == "MODEL" else fits[-1]) if fits else 0
        del stack[keep + 1 :]
        del self.state.value_stack[keep:]

    def _error_token(self, token: Token, names: tuple[str, ...]) -> Token:
        made = token.standing_in("ERROR")
        made.value = s.Bad(token_span(self.source, token), names)
        return made

    def _names_being_bound(self) -> tuple[str, ...]:
        """The names before the last `=` or `+=` on the stack: they are unknown now, but not misspelt."""
        values = self.state.value_stack
        for i in range(len(values) - 1, -1, -1):
            value = values[i]
            if isinstance(value, Token) and value.type in ("EQUAL", "PLUS_EQUAL") and i > 0:
                bound = values[i - 1]
                if isinstance(bound, s.Name | s.Path):
                    return (bound.text,)
                return tuple(n.text for n in bound if isinstance(n, s.Name)) if isinstance(bound, tuple) else ()
            if isinstance(value, Token) and value.type == "LBRACE":
                break
        return ()

    def _open_brace(self) -> Token | None:
        braces = [v for v in self.state.value_stack if isinstance(v, Token) and v.type == "LBRACE"]
        return braces[-1] if braces else None


def _outside(terminals: Container[str]) -> bool:
    """Whether an item may begin here. (In a section its keywords may too, as keys, but so may other names.)"""
    return "MODEL" in terminals and "NAME" not in terminals


def _behind_item(terminals: frozenset[str]) -> bool:
    return terminals <= {"NEWLINE", "$END"}


def _at_statement(terminals: Container[str]) -> bool:
    """Whether a statement may begin here."""
    return "RETURN" in terminals and "REPEAT" in terminals and "EQUAL" not in terminals


class _Stream:
    """Tokens with one step of looking back and of putting back."""

    def __init__(self, tokens: Iterator[Token]) -> None:
        self._tokens = tokens
        self._returned: list[Token] = []
        self.previous: Token | None = None
        self.last: Token | None = None

    def take(self) -> Token | None:
        self.previous = self.last
        token = self._returned.pop() if self._returned else next(self._tokens, None)
        self.last = token or self.last
        return token

    def push_back(self, token: Token) -> None:
        self._returned.append(token)

    def peek_is_item(self) -> bool:
        token = next(self._tokens, None)
        if token is None:
            return False
        self._returned.append(token)
        return token.type in ITEM_KEYWORDS and token.column == 1

    def __iter__(self) -> Iterator[Token]:
        while (token := self.take()) is not None:
            yield token


def _too_deep(tokens: list[Token]) -> Token | None:
    depth = 0
    for token in tokens:
        if token.type in _CLOSERS:
            depth += 1
            if depth > MAX_DEPTH:
                return token
        elif token.type in _ENDERS:
            depth = max(0, depth - 1)
    return None


def _too_many_levels(tree: s.File) -> s.Node | None:
    """A node that stands too deep in the tree for those that walk it by calling themselves."""
    waiting: list[tuple[s.Node, int]] = [(item, 1) for item in tree.items]
    while waiting:
        node, level = waiting.pop()
        if level > MAX_LEVELS:
            return node
        for value in vars(node).values():
            if isinstance(value, s.Node):
                waiting.append((value, level + 1))
            elif isinstance(value, tuple):
                waiting.extend((item, level + 1) for item in value if isinstance(item, s.Node))
    return None


def _documentation(tokens: list[Token]) -> tuple[dict[int, str], dict[int, str]]:
    """`///` texts: by the start of the token that they stand before, and by the line that they trail."""
    before: dict[int, str] = {}
    after: dict[int, str] = {}
    waiting: list[str] = []
    line = 0
    for token in tokens:
        if token.type == "DOC":
            text = str(token)[3:].strip()
            if line == token.line:
                after[line] = text
            else:
                waiting.append(text)
        elif token.type not in ("NEWLINE", "COMMENT"):
            if waiting:
                before[token.start_pos] = "\n".join(waiting)
                waiting = []
            line = token.line
    return before, after
