"""What one can choose about tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

INSTALL = 'pip install "dskc[eval]" brings lm-eval and what it needs; files of questions do without'


@dataclass(frozen=True)
class Settings:
    """limit: questions of each task, the first. few_shot: examples before each. shots: file to take them from. style:
    of questions with choices, `letters` or `text`. until: texts that end an answer. extract: regular expression for
    what counts of it. overlap: context tokens that windows of a text repeat at least. allow_code: whether programs
    that a model writes may run, for up to `code_seconds`. model: what was chosen of it besides its checkpoint.
    """

    limit: int | None = None
    few_shot: int = 0
    shots: Path | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    style: str | None = None
    until: tuple[str, ...] = ()
    extract: str | None = None
    max_tokens: int | None = None
    overlap: int = 1
    data: tuple[Path, ...] = ()
    allow_code: bool = False
    code_seconds: float = 10.0
    model: Mapping[str, object] = field(default_factory=dict)
