"""Parquet: a table by columns, one document a row (https://parquet.apache.org/docs/file-format/)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..problem import Problem
from .template import Template, Unfit

SUFFIX = ".parquet"
ROWS = 1024  # read at a time
EXTRA = "pip install 'dskc[data]'"  # brings pyarrow and datasets


@dataclass(frozen=True)
class Parquet:
    """A Table of the rows of a file, numbered from 1. Only the columns that the template names are read, and only the
    row groups with wanted rows. Takes the package pyarrow.
    """

    path: Path
    name: str
    template: Template

    def rows(self, wanted: Iterable[int] | None = None) -> Iterator[tuple[int, str | Unfit]]:
        """See Table. Raises Problem when the file cannot be read, and without pyarrow."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise Problem(f"--data {self.path}: reading Parquet takes the package pyarrow", EXTRA) from None
        chosen = None if wanted is None else set(wanted)
        try:
            with parquet.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                columns = [name for name in self.template.fields if name in names]
                lacking = len(columns) < len(self.template.fields)
                unread = dict.fromkeys(names)  # what the other fields hold is of no interest
                start = 1
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    if lacking:
                        yield from ((n, self.template.fill(unread)) for n in range(start, stop) if _in(n, chosen))
                    elif chosen is None or not chosen.isdisjoint(range(start, stop)):
                        at = start
                        for batch in file.iter_batches(ROWS, [group], columns):
                            yield from self._texts(batch, at, chosen)
                            at += len(batch)
                    start = stop
        except (OSError, pyarrow.ArrowException) as error:
            raise Problem(f"--data {self.path}: it cannot be read: {str(error).splitlines()[0]}") from error

    def _texts(self, batch: Any, start: int, chosen: set[int] | None) -> Iterator[tuple[int, str | Unfit]]:
        columns = {name: batch.column(name) for name in self.template.fields}
        for n in range(len(batch)):
            if not _in(start + n, chosen):
                continue
            try:
                yield start + n, self.template.fill({name: values[n].as_py() for name, values in columns.items()})
            except UnicodeDecodeError as error:
                yield start + n, Unfit("not UTF-8", f"its byte {error.start} is 0x{error.object[error.start]:02x}")


def _in(number: int, chosen: set[int] | None) -> bool:
    return chosen is None or number in chosen
