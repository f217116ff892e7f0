"""How a call is checked against what it calls: parameters with kinds, defaults, and what they are for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction


class Kind(StrEnum):
    """What an argument may be."""

    TENSOR = "a tensor"
    TENSORS = "a tensor or a list of tensors"
    ARROW = "axes such as `D -> F`"
    SIZE = "a dim"
    SIZES = "a list of dims"
    INT = "an integer"
    FLOAT = "a number"
    BOOL = "true or false"
    MASK = "a mask"
    BLOCK = "a block"
    DTYPE = "a dtype"
    SYMBOL = "one of a few words"
    RECORD = "one of a few calls"
    NUMBERS = "a list of numbers"
    NAMES = "names"


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()
DTYPES = ("fp32", "bf16", "fp16")
Default = bool | int | float | str | None | _Required


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a primitive or of a constructor such as `adamw(...)`."""

    name: str
    kind: Kind
    default: Default = REQUIRED
    choices: tuple[str, ...] = ()
    records: tuple[Signature, ...] = ()
    variadic: bool = False  # `concat(a, b, c)` says the same as `concat([a, b, c])`
    doc: str = ""

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def is_tensor(self) -> bool:
        return self.kind in (Kind.TENSOR, Kind.TENSORS)


@dataclass(frozen=True, slots=True)
class Signature:
    """A name with its parameters."""

    name: str
    parameters: tuple[Parameter, ...] = ()
    doc: str = ""

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)

    @property
    def defaults(self) -> dict[str, bool | Fraction | str | None]:
        """What is taken for parameters that are not given, as the language has values: numbers are exact."""
        found: dict[str, bool | Fraction | str | None] = {}
        for p in self.parameters:
            if isinstance(p.default, bool | str | None):
                found[p.name] = p.default
            elif not isinstance(p.default, _Required):
                found[p.name] = Fraction(str(p.default))
        return found

    def __str__(self) -> str:
        shown = (p.name if p.required else f"{p.name}?" for p in self.parameters)
        return f"{self.name}({', '.join(shown)})"


@dataclass(frozen=True, slots=True)
class Record:
    """A constructor applied: `yarn(factor: 40)`. Arguments hold every parameter, defaults filled in."""

    name: str
    arguments: tuple[tuple[str, object], ...]

    def __getitem__(self, name: str) -> object:
        return dict(self.arguments)[name]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}: {v}' for k, v in self.arguments if v is not None)})"
