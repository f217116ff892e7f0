"""Data sets of the Hugging Face hub, or in folders as it has them, streamed by the package `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..problem import Problem
from .jsonl import Jsonl
from .parquet import EXTRA
from .progress import progress
from .template import Template

PREFIX = "hf:"
SPLIT = "train"


@dataclass(frozen=True)
class Fetched(Jsonl):
    """The rows that were fetched, as JSON lines in a folder that goes when nothing refers to it any more.

    What comes over a network is read just once, while documents are looked at several times.
    """

    folder: TemporaryDirectory[str]


def fetch(name: str, template: Template, most: int | None) -> Fetched:
    """The rows of `hf:NAME[:SPLIT[:CONFIG]]`, the first `most` of them.

    Only fields that the template names are kept. Raises Problem when the data set cannot be had, and without the
    package.
    """
    folder = TemporaryDirectory(prefix="dskc-")
    path = Path(folder.name) / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file, progress(f"fetching {name}", most, "rows") as done:
        for row in islice(_stream(name), most):
            kept = {key: row[key] if isinstance(row[key], str) else None for key in template.fields if key in row}
            file.write(json.dumps(kept if kept.keys() == set(template.fields) else dict.fromkeys(row) | kept) + "\n")
            done(1)
    return Fetched(path, name, template, folder)


def _stream(name: str) -> Iterator[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise Problem(f"--data {name}: it takes the package datasets", EXTRA) from None
    what, _, rest = name.removeprefix(PREFIX).partition(":")
    split, _, config = rest.partition(":")
    try:
        yield from datasets.load_dataset(what, config or None, split=split or SPLIT, streaming=True)
    except Exception as error:  # of the package, of the network and of all formats that it reads
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Problem(
            f"--data {name}: it cannot be had: {reason}", f"it is {PREFIX}NAME, {PREFIX}NAME:SPLIT or with :CONFIG, too"
        ) from error
