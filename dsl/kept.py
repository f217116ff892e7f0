"""Syntax trees of the standard library's files, kept beside the parse tables: most of a check would be reading them.

A tree is kept as plain values: a node as `(class, start, end, *fields)`, a tuple as a list, a fraction as
`(FRACTION, numerator, denominator)`. What is kept answers to the text and to the code that made the tree of it.
"""

from __future__ import annotations

import hashlib
import marshal
import sys
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from . import syntax as s
from .source import Source, Span
from .tables import keep

_FRACTION = -1
_MAKERS = ("grammar.lark", "kept.py", "layout.py", "numbers.py", "parser.py", "syntax.py", "tables.py", "tree.py")
_CLASSES = [value for value in vars(s).values() if isinstance(value, type) and issubclass(value, s.Node)]
_NUMBERS = {node: number for number, node in enumerate(_CLASSES)}


def kept_tree(source: Source, folder: Path) -> s.File | None:
    """The tree of `source`, where it was read before."""
    try:
        plain = marshal.loads(_place(source, folder).read_bytes())
        return s.File(source, tuple(_node(item, source) for item in plain), complete=True)
    except (OSError, EOFError, ValueError, TypeError, LookupError):
        return None


def keep_tree(tree: s.File, folder: Path) -> None:
    """Keeps a tree that was read without problems. Where it cannot be written, it is read again next time."""
    keep(_place(tree.source, folder), marshal.dumps([_plain(item) for item in tree.items]))


def _place(source: Source, folder: Path) -> Path:
    key = hashlib.sha256(f"{_code()} {source.text}".encode()).hexdigest()[:16]
    return folder / f"{Path(source.path).stem}-{key}.tree"


@cache
def _code() -> str:
    made = hashlib.sha256(str(sys.version_info[:2]).encode())
    for name in _MAKERS:
        made.update((Path(__file__).parent / name).read_bytes())
    return made.hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, s.Node):
        fields = (_plain(getattr(value, name)) for name in value.fields[1:])
        return (_NUMBERS[type(value)], value.span.start, value.span.end, *fields)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Fraction):
        return (_FRACTION, value.numerator, value.denominator)
    assert value is None or isinstance(value, str | bool), value
    return value


def _node(plain: tuple, source: Source) -> Any:
    node = _CLASSES[plain[0]]
    made = object.__new__(node)
    told = made.__dict__
    told["span"] = Span(source, plain[1], plain[2])
    for name, value in zip(node.fields[1:], plain[3:], strict=True):
        if type(value) is tuple:
            told[name] = Fraction(value[1], value[2]) if value[0] == _FRACTION else _node(value, source)
        elif type(value) is list:
            told[name] = tuple(_node(item, source) if type(item) is tuple else item for item in value)
        else:
            told[name] = value
    return made
