"""How --data is read: what the user may choose once, when a run begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSettings:
    """text_field: the field of a row (a line of JSON) that holds its text. join: a template of several fields instead,
    such as "{title} [SEP] {content}".
    """

    text_field: str = "text"
    join: str | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any] | None) -> DataSettings:
        """What `dataclasses.asdict` and JSON made of them; None of a run that was begun when there were none. Raises
        TypeError for what is neither.
        """
        return cls(**fields) if fields is not None else cls()
