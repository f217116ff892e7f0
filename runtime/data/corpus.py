"""Finding the documents: every file of text, and every row of a table, under the paths that the user named."""

from __future__ import annotations

import builtins
import codecs
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..problem import Problem
from .cleaning import Cleaner, Measure
from .hub import PREFIX, Fetched, fetch
from .jsonl import SUFFIXES, Jsonl
from .near_duplicates import near_duplicates, sign
from .parquet import SUFFIX, Parquet
from .progress import progress
from .settings import DataSettings
from .table import Row, Table, read_texts, row_of
from .template import Template, Unfit, template_of

PIECE = 1 << 20  # characters (or bytes) read at a time
EXAMPLES = 5  # of what was left out, named for each reason


@dataclass(frozen=True)
class Document:
    """A UTF-8 text file, or the part of one between two byte offsets.

    path: where it lies. name: how it is known in manifests, relative to what the user named. sha256: of the whole file.
    start, stop: the bytes that belong to it; both are at the boundary of a character.
    """

    path: Path
    name: str
    sha256: str
    start: int
    stop: int
    table: ClassVar[None] = None  # it is a file by itself, and no row of one

    @property
    def bytes(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> builtins.bytes:
        """These bytes of the file."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def pieces(self) -> Iterator[str]:
        """Its text in order, in pieces of about a million characters that end with a line where lines are that short.

        Raises Problem when the file has gone, or is not the text that it was when it was found.
        """
        left = self.bytes
        decoder = codecs.getincrementaldecoder("utf-8")()
        carried = ""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                while left:
                    read = file.read(min(PIECE, left))
                    if not read:
                        raise EOFError
                    left -= len(read)
                    text = carried + decoder.decode(read, final=not left)
                    cut = text.rfind("\n") + 1 if left else len(text)
                    cut = cut or len(text)
                    carried = text[cut:]
                    if cut:
                        yield text[:cut]
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise Problem(f"{self.path}: changed while it was read ({str(error) or 'it got shorter'})") from error


@dataclass(frozen=True)
class Corpus:
    """The documents, in the order of their paths, and how many files and rows were left out for what reason.

    examples: the first few of these by reason, with what more there is to say.
    """

    documents: tuple[Document | Row, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(document.bytes for document in self.documents)

    def report(self) -> dict[str, object]:
        """For cleaning.json."""
        return {
            "documents": len(self.documents),
            "bytes": self.bytes,
            "skipped": dict(sorted(self.skipped.items())),
            "examples": dict(sorted(self.examples.items())),
        }

    def skip(self, name: str, unfit: Unfit) -> None:
        """Count something that is left out."""
        self.skipped[unfit.reason] += 1
        if len(named := self.examples.setdefault(unfit.reason, [])) < EXAMPLES:
            named.append(f"{name}: {unfit.detail}" if unfit.detail else name)

    def summary(self) -> str:
        """`812 documents, 14.1 MB; skipped 3 binary, 1 empty`."""
        text = f"{len(self.documents):,} document{'s' * (len(self.documents) != 1)}, {self.bytes / 1e6:,.1f} MB"
        if self.skipped:
            text += "; skipped " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        return text


def find_documents(paths: Sequence[Path], exclude: Path | None = None, settings: DataSettings | None = None) -> Corpus:
    """Every regular file under the paths that is UTF-8 text, each once, folders in sorted order; of a table (JSON
    lines, Parquet, a data set `hf:NAME`) every row.

    Hidden files and folders and `__pycache__` are passed over, and so is `exclude` (the run's own folder). Files that
    are empty, binary, not UTF-8 or unreadable, rows that are no text, and what the settings leave out are counted by
    reason. Raises Problem when a path does not exist, when a file named itself is no text or has none, and when there
    is no text at all.
    """
    settings = settings or DataSettings()
    template, cleaner = template_of(settings), Cleaner(settings)
    documents: list[Document | Row] = []
    left_out = Corpus(())
    files = [(file, _table(file, template, settings)) for file in _files(paths, exclude)]
    sizes = [_size(file.path if table is None else table.path) for file, table in files]
    with progress("reading", sum(sizes), "B") as done:
        for (file, table), left in zip(files, sizes, strict=True):
            if table is not None:
                for row in _rows(table, cleaner, left_out, file.named):
                    documents.append(row)
                    left -= row.size  # about what it takes of the file
                    done(row.size)
            elif (document := _document(file, cleaner, left_out)) is not None:
                documents.append(document)
            done(left)
    if not documents:
        where = ", ".join(str(path) for path in paths)
        counted = left_out.summary().partition("; ")[2]
        raise Problem(
            f"--data {where}: no text found" + (f" ({counted})" if counted else ""),
            "name files of UTF-8 text, or folders of them; hidden files are passed over",
        )
    if settings.near_duplicates is not None:
        documents = _without_near_duplicates(documents, settings.near_duplicates, left_out)
    return Corpus(tuple(documents), left_out.skipped, left_out.examples)


@dataclass(frozen=True)
class _File:
    """name: as Document has it. named: the user named the file itself, and not a folder that it is in."""

    path: Path
    name: str
    named: bool


def _files(paths: Sequence[Path], exclude: Path | None) -> list[_File]:
    """Every file once. Raises Problem for a path that does not exist."""
    found: dict[Path, _File] = {}
    for path in paths:
        if _is_data_set(path):
            found.setdefault(path, _File(path, str(path), True))
        elif not path.exists():
            raise Problem(f"--data {path}: there is no such file or folder")
        elif path.is_dir():
            for file in _walk(path, exclude):
                found.setdefault(file.resolve(), _File(file, file.relative_to(path).as_posix(), False))
        else:
            found.setdefault(path.resolve(), _File(path, path.name, True))
    return list(found.values())


def _is_data_set(path: Path) -> bool:
    return str(path).startswith(PREFIX) and not path.exists()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _table(file: _File, template: Template, settings: DataSettings) -> Table | None:
    """The file as one of rows, or None when it is plain text. A data set is fetched."""
    if _is_data_set(file.path):
        return fetch(file.name, template, settings.max_rows)
    if file.name.endswith(SUFFIXES):
        return Jsonl(file.path, file.name, template)
    return Parquet(file.path, file.name, template) if file.name.endswith(SUFFIX) else None


def _rows(table: Table, cleaner: Cleaner, left_out: Corpus, named: bool) -> Iterator[Row]:
    """The rows that are text and stay; the others are counted. Raises Problem when a file named itself has no text."""
    first, some = "", False
    for number, text in table.rows():
        row = row_of(table, number, text) if isinstance(text, str) else text
        if isinstance(row, Row) and isinstance(text, str):
            measure = Measure()
            measure.add(text.encode(), text)
            some = some or not measure.blank
            row = cleaner.unfit(row.name, row.digest, measure) or row
        if isinstance(row, Row):
            yield row
            continue
        first = first or f"; row {number} is one {row}"
        left_out.skip(f"{table.name}:{number}", row)
    if named and not some:
        raise Problem(
            f"--data {table.name if isinstance(table, Fetched) else table.path}: there is no text in it{first}",
            "--text-field names the field that holds the text, and --join joins several",
        )


def _document(file: _File, cleaner: Cleaner, left_out: Corpus) -> Document | None:
    """The file as a document, or None when it is none or does not stay, which is counted. Raises Problem when a file
    named itself is no text.
    """
    found, measure = _read(file.path, file.name)
    if isinstance(found, Document):
        unfit = cleaner.unfit(file.name, bytes.fromhex(found.sha256), measure)
        if unfit is None:
            return found
        found = unfit
    if file.named and measure.blank:
        raise Problem(f"--data {file.path}: this file is {found}", "name files of UTF-8 text, or folders of them")
    left_out.skip(file.name, found)
    return None


def _without_near_duplicates(
    documents: list[Document | Row], threshold: float, left_out: Corpus
) -> list[Document | Row]:
    with progress("comparing documents", len(documents), "documents") as done:
        signatures = sign((pieces for _, pieces in read_texts(documents)), len(documents), done)
    dropped = near_duplicates(signatures, threshold)
    for n, (first, share) in dropped.items():
        left_out.skip(documents[n].name, Unfit("near-duplicate", f"{share:.2f} of {documents[first].name}"))
    return [document for n, document in enumerate(documents) if n not in dropped]


def _walk(folder: Path, exclude: Path | None) -> Iterator[Path]:
    excluded = exclude.resolve() if exclude is not None else None
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__" and (here / name).resolve() != excluded
        )
        for name in sorted(files):
            if not name.startswith(".") and (here / name).is_file():
                yield here / name


def _read(path: Path, name: str) -> tuple[Document | Unfit, Measure]:
    """The document, or why it is none, with what there is to measure of it."""
    digest, size, measure = hashlib.sha256(), 0, Measure()
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while read := file.read(PIECE):
                if b"\0" in read:
                    return Unfit("binary"), Measure()
                digest.update(read)
                size += len(read)
                measure.add(read, decoder.decode(read))
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return Unfit("not UTF-8"), Measure()
    except OSError:
        return Unfit("unreadable"), Measure()
    return Document(path, name, digest.hexdigest(), 0, size), measure
