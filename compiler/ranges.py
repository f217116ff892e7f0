"""Between what the numbers of optimizers, schedules and the like must lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, Diagnostics
from dskc.dsl.numbers import show_number
from dskc.dsl.source import Span

from .program import Said
from .signature import Record


@dataclass(frozen=True, slots=True)
class Range:
    """`text` says what `holds` asks."""

    text: str
    holds: Callable[[Fraction], bool]


_ABOVE_ZERO = Range("over 0", lambda x: x > 0)
_FROM_ZERO = Range("0 or more", lambda x: x >= 0)
_FROM_ONE = Range("1 or more", lambda x: x >= 1)
_SHARE = Range("from 0 to 1", lambda x: 0 <= x <= 1)
_BELOW_ONE = Range("from 0 to under 1", lambda x: 0 <= x < 1)
_WITHIN = Range("between 0 and 1", lambda x: 0 < x < 1)

_OPTIMIZER = {"lr": _ABOVE_ZERO, "decay": _FROM_ZERO, "clip": _ABOVE_ZERO}
_BETAS = {"betas": _BELOW_ONE}
RANGES: dict[str, dict[str, Range]] = {
    "adamw": {**_OPTIMIZER, **_BETAS, "eps": _ABOVE_ZERO},
    "lion": {**_OPTIMIZER, **_BETAS},
    "muon": {**_OPTIMIZER, "momentum": _BELOW_ONE},
    "lora": {"rank": _FROM_ONE, "alpha": _ABOVE_ZERO, "dropout": _BELOW_ONE},
    "ramp": {"start": _FROM_ONE, "by": _FROM_ONE, "over": _WITHIN},
    "steps": {"warmup": _FROM_ZERO, "at": _WITHIN, "factor": _FROM_ZERO},
    "cosine": {"warmup": _FROM_ZERO, "floor": _SHARE},
    "constant": {"warmup": _FROM_ZERO, "decay": _SHARE, "floor": _SHARE},
    "normal": {"std": _FROM_ZERO, "width": _FROM_ONE},
    "interleaved": {"stages": _FROM_ONE},
    "paged": {"block": _FROM_ONE},
}


def check_ranges(record: Record, said: Said, problems: Diagnostics) -> None:
    """Reports every argument of `record` that is out of its range, where `said` says it."""

    def report(option: str, title: str, label: str) -> None:
        problems.add(Diagnostic("DSK0131", title, _place(said, option), label))

    given = dict(record.arguments)
    for option, value in given.items():
        if isinstance(value, Record):
            check_ranges(value, _inner(said, option), problems)
    for option, range_ in RANGES.get(record.name, {}).items():
        value = given.get(option)
        numbers = value if isinstance(value, tuple) else (value,)
        outside = [x for x in numbers if isinstance(x, Fraction) and not range_.holds(x)]
        if outside:
            report(option, f"`{option}` must be {range_.text}", f"this is {show_number(outside[0])}")
    if isinstance(betas := given.get("betas"), tuple) and len(betas) != 2:
        report("betas", "`betas` must be two numbers", f"these are {len(betas)}")
    if record.name == "steps":
        at, factor = record["at"], record["factor"]
        if isinstance(at, tuple) and isinstance(factor, tuple):
            if len(at) != len(factor):
                report("at", "`at` and `factor` must go in pairs", f"{len(at)} places and {len(factor)} factors")
            elif list(at) != sorted(at):
                report("at", "`at` must grow from one to the next", "")


def _inner(said: Said, option: str) -> Said:
    """Where an option got its value, by the last that changed it or in the call, as something that is said itself."""
    arguments = [argument for argument, _ in reversed(said.patches)]
    if isinstance(said.value, s.Call):
        arguments += said.value.arguments
    value = next((a.value for a in arguments if a.label and a.label.text == option), said.value)
    return replace(said, value=value, patches=())


def _place(said: Said, option: str) -> Span:
    return _inner(said, option).value.span
