"""How --data is read: what the user may choose once, when a run begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSettings:
    """text_field: the field of a row that holds its text. join: a template of several fields instead,
    such as "{title} [SEP] {content}".

    max_rows: of each data set that is streamed, only so many from its beginning.

    What is left out: texts of fewer characters than min_chars or more than max_chars, those of which control characters
    are more than a share of max_control, repeated ones unless keep_duplicates, and those that are as similar to an
    earlier one as near_duplicates, a share of the runs of five words that either has.

    packing: of texts into sequences, "bestfit" or "stream", as Loader has it.
    """

    text_field: str = "text"
    join: str | None = None
    max_rows: int | None = None
    min_chars: int = 0
    max_chars: int | None = None
    max_control: float = 0.1
    keep_duplicates: bool = False
    near_duplicates: float | None = None
    packing: str = "bestfit"

    @classmethod
    def from_json(cls, fields: dict[str, Any] | None) -> DataSettings:
        """What `dataclasses.asdict` and JSON made of them; None of a run that was begun when there were none. Raises
        TypeError for what is neither.
        """
        return cls(**fields) if fields is not None else cls(max_control=1.0, keep_duplicates=True, packing="stream")
