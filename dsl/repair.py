"""One wrong token put right, so that what follows it is read as it was meant.

When a file does not parse, each item in it is tried again as if one token had been misspelt, left out, doubled or
swapped with its neighbour. The change that makes it readable is reported as the mistake, and parsing goes on with it;
where none does, the parser recovers by itself, which costs a statement.

After M. G. Burke and G. A. Fisher, "A practical method for LR and LL syntactic error diagnosis and recovery", TOPLAS
9(2), 1987, with whole items as the window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from .diagnostics import Diagnostic
from .layout import ITEM_KEYWORDS, Layout
from .source import Source, Span
from .suggest import edit_distance, typo_limit
from .tables import Tables, accepted, advance
from .token import Token
from .tree import token_span
from .wording import describe_expected, describe_unexpected, habit

FAR = 12  # tokens that must be read beyond a mistake, for a change to be believed; or all that there are
LONGEST_ITEM = 3000  # tokens; in a longer one a change takes too long to try
TRIES = 100  # changes that are tried for one mistake; most have some fifty
LONGEST_LINE = 50  # tokens before a mistake among which one may stand twice
MOST = 8  # changes to a file: one with more mistakes was not meant as a spec
_IN_HEADS = {word.upper(): word for word in ("of", "for", "on", "from")}
_ITEMS = {word.upper(): word for word in ("use", "model", "block", "train", "plan", "serve", "checkpoint", "dsk")}
_LIKELY = {"COLON": ":", "RARROW": "->", "COMMA": ",", "LPAR": "(", "AS": "as", "DOT": "."}
_BRACKETS = ("LPAR", "RPAR", "LSQB", "RSQB", "LBRACE", "RBRACE")
_ANYTHING = {"NAME": "a", "DIM": "A", "NUMBER": "1", "STRING": '""'}


@dataclass(frozen=True, slots=True)
class Fault:
    """Where an item cannot go on: the index of the token, the token as the parser got it, and what would fit."""

    index: int
    token: Token
    expected: frozenset[str]


@dataclass(frozen=True, slots=True)
class Change:
    """Tokens `start` up to `end` replaced by `new`, and how to report it.

    `doubtful`: it only makes the parser go on, and what the statement says is not to be believed.
    """

    start: int
    end: int
    new: tuple[Token, ...]
    report: Callable[[], Diagnostic]
    doubtful: bool = False

    def place(self, tokens: list[Token], source: Source) -> Span:
        """What is replaced, or where it goes in."""
        if self.start == self.end:
            return token_span(source, self.new[0])
        return token_span(source, tokens[self.start]).to(token_span(source, tokens[self.end - 1]))

    def keeps_brackets(self, tokens: list[Token]) -> bool:
        """Whether as many of each kind are opened and closed as before."""
        before = sorted(token.type for token in tokens[self.start : self.end] if token.type in _BRACKETS)
        return before == sorted(token.type for token in self.new if token.type in _BRACKETS)

    def applied(self, tokens: list[Token]) -> list[Token]:
        return [*tokens[: self.start], *self.new, *tokens[self.end :]]


@dataclass(slots=True)
class Repaired:
    """The tokens with what was changed, the mistakes that this puts right, and where statements stay in doubt."""

    tokens: list[Token]
    found: list[Diagnostic]
    doubts: list[Span]


def repair(tokens: list[Token], source: Source, tables: Tables) -> Repaired:
    """Tries to make every item of a file readable, with at most MOST changes."""
    repaired = Repaired([], [], [])
    for item in _items(tokens):
        current = item
        while len(item) <= LONGEST_ITEM and len(repaired.found) < MOST:
            change = _best(current, source, tables)
            if change is None:
                break
            diagnostic = change.report()
            repaired.found.append(diagnostic)
            if change.doubtful:
                repaired.doubts.append(change.place(current, source))
            current = change.applied(current)
        repaired.tokens += current
    return repaired


def _items(tokens: list[Token]) -> Iterator[list[Token]]:
    """Tokens from one keyword in column one to the next. Comments are nothing to the parser, and stay out."""
    item: list[Token] = []
    for token in tokens:
        if token.type in ("COMMENT", "DOC"):
            continue
        if token.type in ITEM_KEYWORDS and token.column == 1 and item:
            yield item
            item = []
        item.append(token)
    if item:
        yield item


def _best(tokens: list[Token], source: Source, tables: Tables) -> Change | None:
    """The first change after which the item can be read; else the one that leads furthest, when that is far enough."""
    fault = find_fault(tokens, tables)
    if fault is None:
        return None
    best, reached = None, fault.index + FAR
    for change in islice(_Changes(tokens, fault, source, tables).all(), TRIES):
        stopped = _stop(change.applied(tokens), tables)
        if stopped is None:
            return change
        index, token = stopped
        moved = index - len(change.new) + (change.end - change.start)
        if moved > reached and token.type != "$END" and change.keeps_brackets(tokens):
            best, reached = change, moved
    return best


def find_fault(tokens: list[Token], tables: Tables) -> Fault | None:
    """Where the parser would stop; None when the tokens are a whole number of items."""
    stopped = _stop(tokens, tables)
    if stopped is None:
        return None
    index, token = stopped
    stack = [tables.start]
    for before in Layout().process(tokens):
        if before is token:
            break
        advance(tables, stack, before.type)
    return Fault(index, token, accepted(tables, stack))


def _stop(tokens: list[Token], tables: Tables) -> tuple[int, Token] | None:
    """The token that the parser would stop at and its index, with nothing built on the way."""
    stack = [tables.start]
    for token in Layout().process(tokens):
        if not advance(tables, stack, token.type):
            return next(i for i, other in enumerate(tokens) if other is token), token
    return None if advance(tables, stack, "$END") else (len(tokens), Token("$END", ""))


class _Changes:
    """What may have been meant, from the likeliest on."""

    def __init__(self, tokens: list[Token], fault: Fault, source: Source, tables: Tables) -> None:
        self.tokens = tokens
        self.fault = fault
        self.source = source
        self.tables = tables
        self.near = self._near()
        self.outside = "MODEL" in fault.expected and "NAME" not in fault.expected  # an item should begin here
        self.in_head = all(token.type != "LBRACE" for token in tokens[: fault.index])

    def all(self) -> Iterator[Change]:
        yield from self._keywords()
        yield from self._capitals()
        yield from self._unclosed_brace()
        yield from self._inserted({"EQUAL": "="}, doubtful=False)
        yield from self._doubled()
        if self.outside:
            yield from self._inserted(_ITEMS, doubtful=False)
        if self.in_head:
            yield from self._inserted(_IN_HEADS, doubtful=False)
        yield from self._inserted({"LBRACE": "{"}, doubtful=False)
        yield from self._deleted_braces()
        yield from self._swapped()
        yield from self._inserted(_LIKELY, doubtful=True)
        if _ANYTHING.keys() <= self.fault.expected:  # a value is missing here, rather than that something is too many
            yield from self._inserted(_ANYTHING, doubtful=True)
        yield from self._deleted()
        yield from self._inserted(_ANYTHING, doubtful=True)

    def _near(self) -> list[int]:
        """Indices of the token at fault and of some before it, nearest first."""
        at = min(self.fault.index, len(self.tokens) - 1)
        found: list[int] = []
        while at >= 0 and len(found) < 8:
            if self.tokens[at].type != "NEWLINE":
                found.append(at)
            at -= 1
        return found

    def _keywords(self) -> Iterator[Change]:
        """A name that is a keyword misspelt."""
        tried: list[tuple[int, int, int, str]] = []
        for order, at in enumerate(self.near):
            token = self.tokens[at]
            limit = typo_limit(len(token))
            if token.type != "NAME" or not limit:
                continue
            for word in self.tables.keywords:
                distance = edit_distance(str(token), word, limit)
                if distance <= min(limit, len(word) - 1):
                    tried.append((distance, order, at, word))
        for _, _, at, word in sorted(tried):
            token = self.tokens[at]
            new = Token(self.tables.keywords[word], word, token.start_pos, token.line, token.column)
            new.end_pos = token.end_pos
            yield Change(at, at + 1, (new,), self._reporter(token, f"did you mean `{word}`?"))

    def _inserted(self, kinds: dict[str, str], doubtful: bool) -> Iterator[Change]:
        """A token that is missing before the one at fault, or one or two before that."""
        places = [self.fault.index, *(at for at in self.near[:3] if at < self.fault.index)]
        for at in places:
            before = next((t for t in reversed(self.tokens[:at]) if t.type != "NEWLINE"), None)
            if before is None:
                continue
            for kind, text in kinds.items():
                if at == self.fault.index and kind not in self.fault.expected:
                    continue
                new = Token(kind, text, before.end_pos, before.line, before.column + len(before))
                new.end_pos = before.end_pos
                found = self.fault.token if at >= self.fault.index else self.tokens[at]
                label = f"a `{text}` is missing before this"
                if (doubtful or kinds is _IN_HEADS) and at == self.fault.index:
                    label = f"expected {describe_expected(self.fault.expected)}"
                guess = doubtful or (self.in_head and kind == "EQUAL")
                yield Change(at, at, (new,), self._reporter(found, label), guess)

    def _swapped(self) -> Iterator[Change]:
        """Two neighbours in the wrong order."""
        index = self.fault.index
        for at in (index - 1, index, index - 2):
            if not 0 <= at < len(self.tokens) - 1:
                continue
            first, second = self.tokens[at : at + 2]
            if "NEWLINE" in (first.type, second.type):
                continue
            gap = self.source.text[first.end_pos : second.start_pos]
            moved = (_moved(second, first), _moved(first, second))
            label = f"did you mean `{second}{gap}{first}`?"
            yield Change(at, at + 2, moved, self._reporter(first, label), doubtful=True)

    def _doubled(self) -> Iterator[Change]:
        """A token that stands twice on the line."""
        line = self.tokens[self.near[0]].line
        last = min(self.fault.index, len(self.tokens) - 1)
        for at in range(last, max(0, last - LONGEST_LINE), -1):
            if self.tokens[at].line < line:
                break
            if self.tokens[at].type == "COMMA":
                continue  # rather is something missing between the two
            if str(self.tokens[at - 1]) == str(self.tokens[at]):
                yield Change(at, at + 1, (), self._reporter(self.tokens[at], "it stands here twice"))

    def _deleted(self) -> Iterator[Change]:
        """A token too many: the one at fault, or one before it."""
        for at in self.near[:3]:
            here = at == self.fault.index
            label = f"expected {describe_expected(self.fault.expected)}" if here else "it does not belong here"
            yield Change(at, at + 1, (), self._reporter(self.tokens[at], label), doubtful=True)

    def _deleted_braces(self) -> Iterator[Change]:
        """A `}` that closed too much, where what follows belongs inside."""
        if not self.outside:
            return
        closers = [i for i, token in enumerate(self.tokens[: self.fault.index + 1]) if token.type == "RBRACE"]
        for at in reversed(closers[-3:]):
            yield Change(at, at + 1, (), self._reporter(self.tokens[at], "what follows stands outside everything"))

    def _capitals(self) -> Iterator[Change]:
        """`AdamW(...)`: what is called has no capitals."""
        for at in self.near[:3]:
            token = self.tokens[at]
            if token.type == "DIM" and self.tokens[at + 1 : at + 2] and self.tokens[at + 1].type == "LPAR":
                small = _moved(Token("NAME", str(token).lower()), token)
                label = f"names start with a small letter: `{small}`"
                yield Change(at, at + 1, (small,), self._reporter(token, label), doubtful=True)

    def _unclosed_brace(self) -> Iterator[Change]:
        """A `{` whose line is followed by one that is indented no deeper, though it is not closed by then."""
        if sum((token.type == "LBRACE") - (token.type == "RBRACE") for token in self.tokens) <= 0:
            return
        opener, at = unclosed_brace(self.tokens, self.source)
        if opener is None:
            return
        before = self.tokens[at - 1]
        new = Token("RBRACE", "}", before.end_pos, before.line, before.column + len(before))
        new.end_pos = before.end_pos
        span = token_span(self.source, opener)
        diagnostic = Diagnostic("DSK0003", "this `{` is never closed", span, "its `}` is missing")
        yield Change(at, at, (new,), lambda: diagnostic)

    def _reporter(self, token: Token, label: str) -> Callable[[], Diagnostic]:
        def report() -> Diagnostic:
            span = self._end() if token.type == "$END" else token_span(self.source, token)
            return Diagnostic("DSK0001", describe_unexpected(token), span, habit(span) or label)

        return report

    def _end(self) -> Span:
        last = self.tokens[self.near[0]]
        return Span(self.source, last.end_pos - 1, last.end_pos)


def unclosed_brace(tokens: list[Token], source: Source) -> tuple[Token | None, int]:
    """The first brace that its indentation says is not closed, and the index where its `}` belongs."""
    open_braces: list[tuple[Token, int]] = []
    line, indent, behind = 0, 0, 0
    for at, token in enumerate(tokens):
        if token.type == "NEWLINE":
            continue
        if token.line != line:
            line = token.line
            text = source.line_text(line)
            indent = len(text) - len(text.lstrip())
            closes = token.type == "RBRACE"
            if open_braces and (indent < open_braces[-1][1] or (indent == open_braces[-1][1] and not closes)):
                return open_braces[-1][0], behind
        if token.type == "LBRACE":
            open_braces.append((token, indent))
        elif token.type == "RBRACE" and open_braces:
            open_braces.pop()
        behind = at + 1
    return (open_braces[-1][0], behind) if open_braces else (None, 0)


def _moved(token: Token, to: Token) -> Token:
    """A token in another's place, for the layout of lines; errors are reported where it stands."""
    made = Token(token.type, str(token), to.start_pos, to.line, to.column)
    made.end_pos = to.end_pos
    return made
