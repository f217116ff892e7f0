"""Shipped specs with one thing wrong: a seed gives a mutation, the same one everywhere and always."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from dskc.dsl.parser import tokenize
from dskc.dsl.source import MAX_BYTES
from dskc.dsl.token import Token

SPECS = Path(__file__).resolve().parents[2] / "specs"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SILENT = ("NEWLINE", "COMMENT", "DOC")
_WORDS = ("NAME", "DIM")
SHORTEST = 3  # letters of a word that is misspelt: of two, half may be wrong
KINDS = {"misspell": 40, "delete": 15, "duplicate": 10, "swap": 10, "bytes": 14, "nesting": 9, "size": 2}
SINGLE = ("misspell", "delete", "duplicate", "swap")  # one token is wrong, so there is one cause


@dataclass(frozen=True)
class Mutation:
    """A spec with one thing wrong, on `line` (from 1); `original` stands there as `written`, where that is a word."""

    seed: int
    kind: str
    spec: str
    data: bytes
    line: int
    original: str = ""
    written: str = ""

    def __str__(self) -> str:
        what = f": `{self.original}` is `{self.written}`" if self.original else ""
        shown = self.data[:3000].decode("utf-8", "replace") + ("..." if len(self.data) > 3000 else "")
        return (
            f"seed {self.seed}, {self.kind} in {self.spec}, line {self.line}{what}\n"
            f"again: python -m tests.fuzz {self.seed}\n{shown}"
        )


def mutation(seed: int) -> Mutation:
    """The mutation of a seed."""
    random = Random(seed)
    path = random.choice(specs())
    kind = random.choices(list(KINDS), list(KINDS.values()))[0]
    return _MAKERS[kind](seed, kind, path, random)


@cache
def specs() -> tuple[Path, ...]:
    return tuple(sorted(SPECS.glob("*.dsk")))


@cache
def _read(path: Path) -> tuple[str, tuple[Token, ...]]:
    text = path.read_text(encoding="utf-8")
    return text, tuple(token for token in tokenize(text) if token.type not in _SILENT)


def _replaced(seed: int, kind: str, path: Path, token: Token, new: str, end: int | None = None) -> Mutation:
    text, _ = _read(path)
    changed = text[: token.start_pos] + new + text[token.end_pos if end is None else end :]
    return Mutation(seed, kind, path.name, changed.encode(), token.line, str(token), new)


# --- one token


def _delete(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    return _replaced(seed, kind, path, random.choice(_read(path)[1]), "")


def _duplicate(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    token = random.choice(_read(path)[1])
    return _replaced(seed, kind, path, token, f"{token} {token}")


def _swap(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    text, tokens = _read(path)
    while True:
        at = random.randrange(len(tokens) - 1)
        first, second = tokens[at], tokens[at + 1]
        if str(first) != str(second) and first.line == second.line:
            between = text[first.end_pos : second.start_pos]
            return _replaced(seed, kind, path, first, f" {second}{between} {first} ", second.end_pos)


def _misspell(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    """A word with one letter dropped, doubled, changed or swapped, or a number with its unit so."""
    _, tokens = _read(path)
    candidates = [token for token in tokens if _misspellable(token)]
    taken = {str(token) for token in tokens}
    while True:
        token = random.choice(candidates)
        word = str(token)
        stem = len(word.rstrip(LETTERS + LETTERS.upper())) if token.type == "NUMBER" else 0
        new = word[:stem] + _typo(word[stem:], random)
        kinds = [t.type for t in tokenize(new)]
        if new != word and new not in taken and len(kinds) == 1 and (token.type == "NUMBER" or kinds[0] in _WORDS):
            return _replaced(seed, kind, path, token, new)


def _misspellable(token: Token) -> bool:
    word = str(token)
    if token.type == "NUMBER":
        return word[-1].isalpha()
    return word.isidentifier() and len(word) >= SHORTEST


def _typo(word: str, random: Random) -> str:
    at = random.randrange(len(word))
    how = random.choice(("drop", "double", "change", "swap")) if len(word) > 1 else "case"
    if how == "drop":
        return word[:at] + word[at + 1 :]
    if how == "double":
        return word[: at + 1] + word[at:]
    if how == "change":
        return word[:at] + random.choice(LETTERS) + word[at + 1 :]
    if how == "swap":
        at = min(at, len(word) - 2)
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word.swapcase()


# --- what no hand writes


def _bytes(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    """Some bytes anywhere, in place of some or between."""
    data = bytearray(path.read_bytes())
    at = random.randrange(len(data))
    line = data.count(b"\n", 0, at) + 1
    new = random.randbytes(random.randint(1, 8)) if random.random() < 0.5 else random.choice(_ODD_TEXTS).encode()
    data[at : at + random.choice((0, 0, len(new), random.randrange(200)))] = new
    return Mutation(seed, kind, path.name, bytes(data), line)


_ODD_TEXTS = (
    "\0", "\x1b[31m", "\ufeff", "\u202e", "\r", "\t\t", "\u2028", "é", "模型", "\U0001f600", "e\u0301", "\\", "'", '"',
    "`", "$", "@", ";", "//", "/*", "#", "///", "==", "->", "..", "...", "{", "}", "(", ")", "[", "]", "{}", "()",
)  # fmt: skip


def _nesting(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    """Something that opens, many times over, in the place of a token or before it."""
    text, tokens = _read(path)
    token = random.choice(tokens)
    depth = random.choice((2, 20, 99, 101, 300, 301, 5000))
    opening, closing = random.choice(_NESTS)
    inner = str(token) if random.random() < 0.7 else "x"
    new = opening * depth + inner + closing * (depth if random.random() < 0.7 else random.randrange(depth))
    changed = text[: token.start_pos] + new + text[token.end_pos :]
    return Mutation(seed, kind, path.name, changed.encode(), token.line)


_NESTS = (
    ("(", ")"), ("[", "]"), ("{", "}"), ("silu(", ")"), ("- ", ""), ("not ", ""), ("x + ", ""), ("2 * ", " * 2"),
    ("if true then ", " else x"), ("if true { ", " }\n"), ("group a { ", " }\n"), ("repeat 2 a { ", " }\n"),
    ("model m {", "}"), ("a.", ""), ("[x, ", "]"), ("split(x, [", "])"),
)  # fmt: skip


def _size(seed: int, kind: str, path: Path, random: Random) -> Mutation:
    """As large as a spec may be, or one byte over."""
    data = path.read_bytes()
    at = random.choice([0, len(data), *(i + 1 for i, byte in enumerate(data) if byte == 10)])
    room = MAX_BYTES + random.choice((0, 0, 0, 1)) - len(data)
    filler = random.choice(_FILLERS)
    new = (filler * (room // len(filler) + 1))[:room]
    return Mutation(seed, kind, path.name, data[:at] + new + data[at:], data.count(b"\n", 0, at) + 1)


_FILLERS = (
    b"# more\n", b"/// more\n", b"\n", b" ", b"x", b"9", b"(", b")", b"{", b"}", b'"', b"\xc3\xa9", b"$\n", b"a, ",
    b"a.", b"- ", b"1e9 ", b"x + ", b"x = x\n", b"x = = \n", b"= \n", b"x += silu(x)\n", b"D = 3\n", b"model m {\n",
    b"use std {", b"model m from n { }\n", b"block b(x: [.., D]) -> [.., D] { return x }\n",
    b"train t of m { a = 2 }\n",
)  # fmt: skip

_MAKERS = {
    "misspell": _misspell,
    "delete": _delete,
    "duplicate": _duplicate,
    "swap": _swap,
    "bytes": _bytes,
    "nesting": _nesting,
    "size": _size,
}
