"""The data of a run: what --data names, and what of it lies in the run's folder."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..data import (
    Corpus,
    DataSettings,
    Fields,
    Records,
    RecordSource,
    Source,
    TextSource,
    TokenData,
    find_documents,
    load_tokenizer,
    open_tokens,
    prepare_tokens,
    read_records,
    text_digest,
    whole_weights,
)
from ..data.records import SUFFIX, TOKENS
from ..data.source import TEXT
from ..problem import Problem
from .folder import RunFolder, write_json
from .options import Options
from .recipe import Recipe

AGAIN = "name the data again with --data"


@dataclass(frozen=True)
class Given:
    """What --data names, seen to be what the model takes. text, records: by the names of their sources. names: of all
    sources, in the order they were named in. Text for `tokens` is one source, called `text`; text for another input of
    ids is one, called as the input.
    """

    text: dict[str, Corpus]
    records: dict[str, tuple[Path, Records]]
    names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A hash of all of it, whatever its order. Of text alone, the text's."""
        found = {name: text_digest(corpus.documents) for name, corpus in self.text.items()}
        return joint_digest(found | {name: records.sha256 for name, (_, records) in self.records.items()})

    def summary(self) -> str:
        """What there is, a source a line."""
        lines = [
            corpus.summary() if name == TEXT else f"{name}: {corpus.summary()}" for name, corpus in self.text.items()
        ]
        return "\n  ".join([*lines, *(records.summary() for _, records in self.records.values())])


def find_data(options: Options, recipe: Recipe, settings: DataSettings) -> Given:
    """Look at everything that --data names. Raises Problem for what cannot be trained on, and for a --mix or
    --tokenizer that does not go with it.
    """
    paths: dict[str, list[Path]] = {}
    records: dict[str, tuple[Path, Records]] = {}
    names: list[str] = []
    for named in dict.fromkeys(options.data):
        if named.suffix == SUFFIX and not named.is_dir():
            found = read_records(named, recipe.fields)
            if found.name in names:
                raise _twice(found.name)
            records[found.name] = (named, found)
            names.append(found.name)
            continue
        entry, path = _text_input(named, recipe.fields)
        name = TEXT if entry == TOKENS else entry
        if name in records:
            raise _twice(name)
        paths.setdefault(name, []).append(path)
        names += [name] if name not in names else []
    if options.tokenizer is not None:
        if not paths:
            raise Problem("--tokenizer: there is no text among the data", "leave it out")
        load_tokenizer(options.tokenizer, recipe.vocabulary)
    text = {name: find_documents(some, options.out, settings) for name, some in paths.items()}
    _require_shares(options.mix, names)
    return Given(text, records, tuple(names))


def require_same_settings(options: Options, before: DataSettings) -> None:
    """Raises Problem when a run that goes on is told to read its data in another way."""
    for name, said in options.settings.items():
        if (had := getattr(before, name)) != said:
            raise Problem(
                f"--{name.replace('_', '-')}: {said} now, and {had} when this run was begun, which cannot change",
                "leave it out, or begin another run",
            )


def prepare_sources(
    given: Given, folder: RunFolder, recipe: Recipe, tokenizer: Path | None, seed: int, packing: str
) -> tuple[Source, ...]:
    """The sources, in their order, whose data lies in the run's folder from now on: tokens, and copies of records.

    A tokenizer that is trained is trained on the text that is named first; other text uses it, too.
    """
    sources: dict[str, Source] = {}
    for name, corpus in given.text.items():
        tokens = prepare_tokens(_tokens_folder(folder, name), folder.tokenizer, corpus, recipe.vocabulary, tokenizer)
        sources[name] = _text_source(name, tokens, recipe, seed, packing)
        tokenizer = folder.tokenizer
    if given.text:
        write_json(folder.data / "cleaning.json", {name: corpus.report() for name, corpus in given.text.items()})
    for name, (path, records) in given.records.items():
        _copy(path, records_file(folder, name))
        sources[name] = RecordSource(records, seed)
    return tuple(sources[name] for name in given.names)


def open_sources(
    folder: RunFolder, names: Sequence[str], recipe: Recipe, seed: int, packing: str
) -> tuple[Source, ...]:
    """The sources that a run began with, out of its folder. Raises Problem when their files are missing or damaged."""
    sources: list[Source] = []
    for name in names:
        if name == TEXT or name in recipe.fields.inputs:
            tokens = open_tokens(_tokens_folder(folder, name))
            sources.append(_text_source(name, tokens, recipe, seed, packing))
        elif not records_file(folder, name).is_file():
            raise Problem(f"{records_file(folder, name)} is missing", AGAIN)
        else:
            sources.append(RecordSource(read_records(records_file(folder, name), recipe.fields), seed))
    return tuple(sources)


def digest_of(sources: Sequence[Source]) -> str:
    """The `Given.digest` of the data that these were made of."""
    found = {source.name: source.tokens.manifest.text for source in sources if isinstance(source, TextSource)}
    records = {source.name: source.records.sha256 for source in sources if isinstance(source, RecordSource)}
    return joint_digest(found | records)


def joint_digest(digests: Mapping[str, str]) -> str:
    """The text's hash where there is nothing else, or one of all hashes with the names of their sources."""
    if list(digests) == [TEXT]:
        return digests[TEXT]
    return hashlib.sha256(
        "".join(sorted(f"{name}\0{digest}\n" for name, digest in digests.items())).encode()
    ).hexdigest()


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


def _tokens_folder(folder: RunFolder, name: str) -> Path:
    return folder.data if name == TEXT else folder.data / name


def _text_source(name: str, tokens: TokenData, recipe: Recipe, seed: int, packing: str) -> TextSource:
    entry = TOKENS if name == TEXT else name
    return TextSource(tokens, recipe.fields.inputs[entry].shape[0], seed, name, entry, packing)


def _text_input(named: Path, fields: Fields) -> tuple[str, Path]:
    """(the input that this text is for, its path) of `PATH` and `INPUT=PATH`. Raises Problem where there is no such
    input, or text by itself does not do for the model.
    """
    name, equals, rest = str(named).partition("=")
    entry, path = (name, Path(rest)) if equals and not named.exists() else (TOKENS, named)
    of_ids = [known for known, one in fields.inputs.items() if one.ids]
    if entry != TOKENS and entry not in of_ids:
        raise Problem(f"--data {named}: the model takes no text as `{entry}`", f"it does as {', '.join(of_ids)}")
    if (reason := fields.refuses_text(entry)) is not None:
        raise Problem(f"--data {named}: {reason}", f"name {SUFFIX} files of records: {fields.describe()}")
    return entry, path


def _twice(name: str) -> Problem:
    return Problem(
        f"--data: two sources would be called `{name}`", "a file of records is called as its file: rename it"
    )


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
