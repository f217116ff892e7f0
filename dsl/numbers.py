"""Numbers as specs write them: exact, with digits grouped by underscores and a unit glued on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from .suggest import did_you_mean

MAX_EXPONENT = 300
MAX_DIGITS = 300

_COUNT = "count"
_BYTES = "bytes"
_TIME = "time"

# Lower-case `k` is left out on purpose: half the field reads 32k as 32_000, the other half as 32_768.
UNITS: dict[str, tuple[str, Fraction]] = {
    "K": (_COUNT, Fraction(10**3)),
    "M": (_COUNT, Fraction(10**6)),
    "B": (_COUNT, Fraction(10**9)),
    "T": (_COUNT, Fraction(10**12)),
    "KiB": (_BYTES, Fraction(2**10)),
    "MiB": (_BYTES, Fraction(2**20)),
    "GiB": (_BYTES, Fraction(2**30)),
    "TiB": (_BYTES, Fraction(2**40)),
    "KB": (_BYTES, Fraction(10**3)),
    "MB": (_BYTES, Fraction(10**6)),
    "GB": (_BYTES, Fraction(10**9)),
    "TB": (_BYTES, Fraction(10**12)),
    "us": (_TIME, Fraction(1, 10**6)),
    "ms": (_TIME, Fraction(1, 1000)),
    "s": (_TIME, Fraction(1)),
    "min": (_TIME, Fraction(60)),
    "h": (_TIME, Fraction(3600)),
    "d": (_TIME, Fraction(86_400)),
}

_SHAPE = re.compile(r"([0-9][0-9_]*)(?:\.([0-9][0-9_]*))?(?:[eE]([+-]?[0-9]+))?([A-Za-z]*)")
_GROUPED = re.compile(r"[0-9]+(?:_[0-9]+)*")


@dataclass(frozen=True, slots=True)
class Number:
    """`value` has the unit worked in: bytes, seconds, or a plain count."""

    value: Fraction
    unit: str | None
    text: str

    @property
    def kind(self) -> str | None:
        """`count` (4M), `bytes` (72GiB), `time` (30min), or None when no unit is written."""
        return None if self.unit is None else UNITS[self.unit][0]


def parse_number(text: str) -> Number:
    """`72GiB`, `4.2e-4`, `102_400`, `2T`. Raises ValueError that says what is wrong and the way out."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise ValueError(f"`{text}` is not a number")
    whole, decimals, exponent, unit = match.groups()
    if not _GROUPED.fullmatch(whole) or (decimals is not None and not _GROUPED.fullmatch(decimals)):
        raise ValueError(f"in `{text}` an underscore does not stand between two digits")
    if len(text) > MAX_DIGITS:
        raise ValueError(f"this number has over {MAX_DIGITS} digits")
    power = int(exponent) if exponent else 0
    if abs(power) > MAX_EXPONENT:
        raise ValueError(f"the exponent of `{text}` is over {MAX_EXPONENT}")
    if unit and unit not in UNITS:
        raise ValueError(_unknown_unit(text, unit))
    if decimals is None and power == 0:
        value = Fraction(int(whole))
    else:
        digits = int(whole + (decimals or ""))
        power -= len(decimals.replace("_", "")) if decimals else 0
        value = Fraction(digits * 10**power) if power >= 0 else Fraction(digits, 10**-power)
    if unit:
        value *= UNITS[unit][1]
    return Number(value, unit or None, text)


def _unknown_unit(text: str, unit: str) -> str:
    stem = text[: -len(unit)]
    same = [known for known in UNITS if known.lower() == unit.lower()]
    near = same[0] if same else did_you_mean(unit, UNITS)
    if near is not None:
        return f"`{text}` has no unit that is known: did you mean `{stem}{near}`?"
    return f"`{text}` has no unit that is known: units are {', '.join(UNITS)}"


def show_number(value: Fraction | int) -> str:
    """The number as a spec writes it: `4096`, `11_008`, `0.4`, `16_384.5`, `1 / 3`. Nothing is rounded.

    Digits are grouped from five on. (Where figures stand in columns, group from four on: `f"{value:_}"`.)
    """
    if value < 0:
        return f"-{show_number(-value)}"
    if isinstance(value, int) or value.denominator == 1:
        return _group(int(value))
    places = _decimal_places(value.denominator)
    if places is None:
        return f"{_group(value.numerator)} / {_group(value.denominator)}"
    whole, rest = divmod(value.numerator * 10**places // value.denominator, 10**places)
    return f"{_group(whole)}.{rest:0{places}d}"


def _group(value: int) -> str:
    return f"{value:_}" if value >= 10_000 else str(value)


def _decimal_places(denominator: int, most: int = 12) -> int | None:
    """How many decimals a fraction with this denominator ends after; None when it never ends, or only after `most`."""
    for places in range(1, most + 1):
        if 10**places % denominator == 0:
            return places
    return None


def show_bytes(value: Fraction | int) -> str:
    """A size to read, rounded to a tenth, in the unit that fits: `512 bytes`, `1.5KiB`, `72GiB`."""
    if value < 0:
        return f"-{show_bytes(-value)}"
    amount = Fraction(value)
    if round(amount) < 1024:
        rounded = round(amount)
        return f"{rounded} byte{'' if rounded == 1 else 's'}"
    counted = [(unit, round(amount / UNITS[unit][1] * 10)) for unit in ("KiB", "MiB", "GiB", "TiB")]
    unit, tenths = next((found for found in counted if found[1] < 10_240), counted[-1])
    whole, tenth = divmod(tenths, 10)
    return f"{_group(whole)}.{tenth}{unit}" if tenth else f"{_group(whole)}{unit}"
