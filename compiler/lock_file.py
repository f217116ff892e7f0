"""The shape of dskc.lock, which pydantic checks as it comes in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

_Hash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SpecPart(_Part):
    compiler: Annotated[str, StringConstraints(pattern=r"^\S+ sha256:[0-9a-f]{64}$")]
    imports: dict[str, _Hash] = {}
    library: dict[str, _Hash] = {}


class LockFile(_Part):
    version: Literal[1]
    specs: dict[str, SpecPart] = {}
