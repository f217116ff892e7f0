"""The token files of a run: text encoded once, written to disk, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from ..problem import Problem
from .bins import Tokens
from .corpus import Corpus, Document
from .progress import progress
from .split import split_held_out
from .table import Row, read_texts
from .tokenizer import encode, end_of_text, load_tokenizer, train_tokenizer

FORMAT = 1  # of these files; another number is rebuilt
MANIFEST = "manifest.json"
BATCH = 1 << 22  # characters of text encoded at a time, on all cores


@dataclass(frozen=True)
class Manifest:
    """What the token files were made of. They are used again when all of this is the same.

    text: hash of names and contents of all documents. given_tokenizer: hash of the user's file, None when one was
    trained. tokenizer: hash of the tokenizer used. end: id that closes a document. dtype: of the token files.
    """

    format: int
    text: str
    documents: int
    bytes: int
    skipped: dict[str, int]
    vocabulary: int
    given_tokenizer: str | None
    tokenizer: str
    end: int
    dtype: str
    train_tokens: int
    held_tokens: int


@dataclass(frozen=True)
class TokenData:
    """Tokens mapped from disk: documents one after another, each closed by `manifest.end`."""

    train: Tokens
    held: Tokens
    manifest: Manifest


def text_digest(documents: Sequence[Document | Row]) -> str:
    """A hash of the documents' names and contents, in their order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.sha256}\n".encode())
    return digest.hexdigest()


def prepare_tokens(
    folder: Path, tokenizer_file: Path, corpus: Corpus, vocabulary: int, given: Path | None = None
) -> TokenData:
    """The tokens of the corpus in `folder`, and their tokenizer in `tokenizer_file`: as they lie there when they were
    made of the same text and tokenizer, made anew otherwise.

    given: the user's tokenizer; without one, a byte-level BPE is trained on the text that is not held out. Everything
    is written under temporary names and then renamed, the manifest last, so a folder with a manifest is whole.
    """
    kept = _read_manifest(folder)
    if (
        kept is not None
        and kept.text == text_digest(corpus.documents)
        and kept.vocabulary == vocabulary
        and kept.given_tokenizer == (None if given is None else _file_hash(given))
        and tokenizer_file.is_file()
        and kept.tokenizer == _file_hash(tokenizer_file)
    ):
        return open_tokens(folder)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    training, held = split_held_out(corpus.documents)
    tokenizer = train_tokenizer(training, vocabulary) if given is None else load_tokenizer(given, vocabulary)
    text = given.read_text(encoding="utf-8") if given is not None else tokenizer.to_str(pretty=True)
    _write(tokenizer_file, text)

    end = end_of_text(tokenizer)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    dtype = np.dtype(np.uint16 if largest < 2**16 else np.uint32)
    counts = [
        _encode_to(folder / f"{name}.tokens", documents, tokenizer, end, dtype, f"tokenizing, {what}")
        for name, documents, what in (("train", training, "to train on"), ("held", held, "held out"))
    ]
    manifest = Manifest(
        format=FORMAT,
        text=text_digest(corpus.documents),
        documents=len(corpus.documents),
        bytes=corpus.bytes,
        skipped=dict(sorted(corpus.skipped.items())),
        vocabulary=vocabulary,
        given_tokenizer=None if given is None else _file_hash(given),
        tokenizer=_file_hash(tokenizer_file),
        end=end,
        dtype=dtype.name,
        train_tokens=counts[0],
        held_tokens=counts[1],
    )
    _write(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
    return open_tokens(folder)


def open_tokens(folder: Path) -> TokenData:
    """The token files of a folder. Raises Problem when they are missing, damaged, or of another version."""
    manifest = _read_manifest(folder)
    if manifest is None:
        raise Problem(
            f"{folder}: there are no tokens here that this version can read", "name the text again with --data"
        )
    arrays = []
    for name, count in (("train", manifest.train_tokens), ("held", manifest.held_tokens)):
        path = folder / f"{name}.tokens"
        dtype = np.dtype(manifest.dtype)
        size = path.stat().st_size if path.exists() else 0
        if size != count * dtype.itemsize:
            raise Problem(
                f"{path}: {size:,} bytes, but {count:,} tokens take {count * dtype.itemsize:,}",
                f"remove {folder} and name the text again with --data",
            )
        arrays.append(np.memmap(path, dtype, mode="r") if count else np.empty(0, dtype))
    return TokenData(arrays[0], arrays[1], manifest)


def _encode_to(
    path: Path, documents: Sequence[Document | Row], tokenizer: Tokenizer, end: int, dtype: np.dtype, what: str
) -> int:
    """Write the documents' ids, each closed by `end`; how many they are.

    While all cores encode a batch of pieces, the one before is written and the one after is read.
    """
    count = 0
    partial = path.with_name(path.name + ".partial")
    size = sum(document.bytes for document in documents)
    with partial.open("wb") as file, ThreadPoolExecutor(1) as pool, progress(what, size, "B") as done:

        def write(pieces: list[tuple[str, bool]], encoded: list[list[int]]) -> int:
            joined = [each for (_, last), ids in zip(pieces, encoded, strict=True) for each in (*ids, *[end] * last)]
            np.asarray(joined, dtype).tofile(file)
            done(sum(len(text.encode()) for text, _ in pieces))
            return len(joined)

        waiting: tuple[list[tuple[str, bool]], Future[list[list[int]]]] | None = None
        for pieces in _batches(documents):
            coming = pool.submit(encode, tokenizer, [text for text, _ in pieces])
            if waiting is not None:
                count += write(waiting[0], waiting[1].result())
            waiting = pieces, coming
        if waiting is not None:
            count += write(waiting[0], waiting[1].result())
    os.replace(partial, path)
    return count


def _batches(documents: Sequence[Document | Row]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of the documents, some at a time; each with whether it is the last of its document."""
    batch: list[tuple[str, bool]] = []
    chars = 0
    for _, pieces in read_texts(documents):
        ahead = ""
        for piece in pieces:
            if ahead:
                batch.append((ahead, False))
            ahead = piece
            chars += len(piece)
            if chars >= BATCH:
                yield batch
                batch, chars = [], 0
        batch.append((ahead, True))
    if batch:
        yield batch


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        fields = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Manifest(**fields) if fields["format"] == FORMAT else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _file_hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
