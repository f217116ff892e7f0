"""The data of a run: what --data names, and what of it lies in the run's folder."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..data import (
    Corpus,
    Records,
    RecordSource,
    Source,
    TextSource,
    find_documents,
    load_tokenizer,
    open_tokens,
    prepare_tokens,
    read_records,
    text_digest,
    whole_weights,
)
from ..data.records import SUFFIX
from ..data.source import TEXT
from ..problem import Problem
from .folder import RunFolder
from .options import Options
from .recipe import Recipe

AGAIN = "name the data again with --data"


@dataclass(frozen=True)
class Given:
    """What --data names, seen to be what the model takes. names: of the sources, in the order they were named in; all
    text together is one, called `text`.
    """

    corpus: Corpus | None
    records: dict[Path, Records]
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of all of it, whatever its order. Of text alone, the text's."""
        text = text_digest(self.corpus.documents) if self.corpus is not None else ""
        return joint_digest(text, self.records.values())

    def summary(self) -> str:
        """What there is, a source a line."""
        lines = [self.corpus.summary()] if self.corpus is not None else []
        return "\n  ".join([*lines, *(records.summary() for records in self.records.values())])


def find_data(options: Options, recipe: Recipe) -> Given:
    """Look at everything that --data names. Raises Problem for what cannot be trained on, and for a --mix or
    --tokenizer that does not go with it.
    """
    files = [path for path in options.data if path.suffix == SUFFIX and not path.is_dir()]
    text = [path for path in options.data if path not in files]
    if text and (reason := recipe.fields.text) is not None:
        raise Problem(f"--data {text[0]}: {reason}", f"name {SUFFIX} files of records: {recipe.fields.describe()}")
    if options.tokenizer is not None:
        if not text:
            raise Problem("--tokenizer: there is no text among the data", "leave it out")
        load_tokenizer(options.tokenizer, recipe.vocabulary)
    corpus = find_documents(text, exclude=options.out) if text else None
    records = {path: read_records(path, recipe.fields) for path in dict.fromkeys(files)}
    by_path = {path: TEXT if path in text else records[path].name for path in options.data}
    names = tuple(dict.fromkeys(by_path.values()))
    named = [found.name for found in records.values()]
    if twice := {name for name in named if named.count(name) > 1 or (text and name == TEXT)}:
        raise Problem(
            f"--data: two sources would be called `{min(twice)}`", "a source is called as its file: rename one of them"
        )
    _require_shares(options.mix, names)
    return Given(corpus, records, names)


def prepare_sources(
    given: Given, folder: RunFolder, recipe: Recipe, tokenizer: Path | None, seed: int
) -> tuple[Source, ...]:
    """The sources, in their order, whose data lies in the run's folder from now on: tokens, and copies of records."""
    sources: dict[str, Source] = {}
    if given.corpus is not None:
        tokens = prepare_tokens(folder.data, folder.tokenizer, given.corpus, recipe.vocabulary, tokenizer)
        sources[TEXT] = TextSource(tokens, recipe.length, seed)
    for path, records in given.records.items():
        _copy(path, records_file(folder, records.name))
        sources[records.name] = RecordSource(records, seed)
    return tuple(sources[name] for name in given.names)


def open_sources(folder: RunFolder, names: Sequence[str], recipe: Recipe, seed: int) -> tuple[Source, ...]:
    """The sources that a run began with, out of its folder. Raises Problem when their files are missing or damaged."""
    sources: list[Source] = []
    for name in names:
        if name == TEXT:
            sources.append(TextSource(open_tokens(folder.data), recipe.length, seed))
        elif not records_file(folder, name).is_file():
            raise Problem(f"{records_file(folder, name)} is missing", AGAIN)
        else:
            sources.append(RecordSource(read_records(records_file(folder, name), recipe.fields), seed))
    return tuple(sources)


def digest_of(sources: Sequence[Source]) -> str:
    """The `Given.digest` of the data that these were made of."""
    text = next((source.tokens.manifest.text for source in sources if isinstance(source, TextSource)), "")
    return joint_digest(text, [source.records for source in sources if isinstance(source, RecordSource)])


def joint_digest(text: str, records: Iterable[Records]) -> str:
    """The text's hash by itself, or one with those of all records."""
    lines = sorted(f"{found.name}\0{found.sha256}\n" for found in records)
    return hashlib.sha256("".join([text, "\n", *lines]).encode()).hexdigest() if lines else text


def mix_of(sources: Sequence[Source], shares: Sequence[Fraction] | None) -> tuple[int, ...]:
    """Weights of the sources: the shares as given, or else as many as each has rows, so that their epochs take equally
    long.
    """
    if shares is not None:
        return whole_weights(shares)
    counts = [source.count for source in sources]
    common = math.gcd(*counts)
    return tuple(count // common for count in counts)


def records_file(folder: RunFolder, name: str) -> Path:
    """Where a run keeps its copy of a file of records."""
    return folder.data / f"{name}{SUFFIX}"


def _require_shares(mix: Sequence[Fraction] | None, names: Sequence[str]) -> None:
    if mix is not None and len(mix) != len(names):
        raise Problem(
            f"--mix has {len(mix)} shares, and --data names {len(names)} sources: {', '.join(names)}",
            "give one to each, in this order; all text together is one source",
        )


def _copy(path: Path, to: Path) -> None:
    """A copy, there whole or not at all; nothing to do when it is there."""
    if to.exists():
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(to.name + ".partial")
    shutil.copyfile(path, partial)
    os.replace(partial, to)
