"""Files of many documents: each is a row, and its text is what a template makes of the row's fields."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..problem import Problem
from .template import Template, Unfit

if TYPE_CHECKING:
    from .corpus import Document

PIECE = 1 << 20  # characters of a text given at a time


class Table(Protocol):
    """name: as documents are called after it, followed by `:` and the row's number."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def template(self) -> Template: ...

    def rows(self, wanted: Iterable[int] | None = None) -> Iterator[tuple[int, str | Unfit]]:
        """(number, text or why there is none) of each row in order; of those in `wanted` alone, which grows.

        Numbers are such as people count them: of lines, from 1. Raises Problem when the file cannot be read to its end.
        """
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """A document that is a row of a table, or a part of it.

    digest: sha256 of its text as UTF-8, the same as that of a file with this text. size: of that, in bytes. start and
    stop: which of these bytes belong to the document, at boundaries of characters.
    """

    table: Table
    number: int
    digest: bytes
    size: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.table.name}:{self.number}"

    @property
    def sha256(self) -> str:
        return self.digest.hex()

    @property
    def bytes(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> builtins.bytes:
        """These bytes of its text."""
        for _, text in self.table.rows([self.number]):
            return self.require(text)[start:stop]
        raise self.changed()

    def require(self, text: str | Unfit) -> builtins.bytes:
        """The text as UTF-8. Raises Problem when it is not the one that was found."""
        if isinstance(text, Unfit):
            raise self.changed()
        encoded = text.encode()
        if hashlib.sha256(encoded).digest() != self.digest:
            raise self.changed()
        return encoded

    def changed(self) -> Problem:
        return Problem(f"{self.table.path}: changed while it was read (row {self.number} is another)")


def row_of(table: Table, number: int, text: str) -> Row | Unfit:
    """The document with this text. What JSON can write and UTF-8 cannot (half of a surrogate pair) is unfit."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        return Unfit("not UTF-8", f"it has a lone surrogate, {error.object[error.start]!a}")
    return Row(table, number, hashlib.sha256(encoded).digest(), len(encoded), 0, len(encoded))


def read_texts(documents: Iterable[Document | Row]) -> Iterator[tuple[Document | Row, Iterator[str]]]:
    """Each document with its text in pieces of about a million characters; rows of one table in a single reading.

    Documents come in the order in which they were found. Raises Problem when a file has changed since.
    """
    for table, group in groupby(documents, key=lambda document: document.table):
        if table is None:
            for document in group:
                assert not isinstance(document, Row), document
                yield document, document.pieces()
            continue
        rows = [document for document in group if isinstance(document, Row)]
        found = table.rows(list(dict.fromkeys(row.number for row in rows)))
        number, encoded = -1, b""
        for row in rows:
            if row.number != number:  # a table that is held out in part has its last row twice
                number, text = next(found, (-1, Unfit("gone")))
                if number != row.number:
                    raise row.changed()
                encoded = row.require(text)
            yield row, _pieces(encoded[row.start : row.stop].decode())


def _pieces(text: str) -> Iterator[str]:
    """Cut where a line ends, if lines are that short."""
    at = 0
    while at < len(text):
        stop = at + PIECE
        cut = text.rfind("\n", at, stop) + 1 if stop < len(text) else len(text)
        cut = cut or stop
        yield text[at:cut]
        at = cut
