"""How a checkpoint does not fit a model, told so that each tensor and parameter is named."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..problem import Problem


@dataclass
class Faults:
    """What does not fit, by kind. Parameters are the model's, tensors the checkpoint's."""

    missing: list[str] = field(default_factory=list)  # tensors that a rule asks for and are not there
    extra: list[str] = field(default_factory=list)  # tensors that nobody asked for
    shapes: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)  # parameters without a rule
    twice: list[str] = field(default_factory=list)  # parameters with two
    used: list[str] = field(default_factory=list)  # tensors used in part, or more than once
    differ: list[str] = field(default_factory=list)  # tensors that should be copies, and are not
    wanted_at: list[str] = field(default_factory=list)  # lines of the spec whose weights are missing
    places: Mapping[str, str] = field(default_factory=dict)  # the line of each parameter, by its name with `*`

    def __bool__(self) -> bool:
        kinds = (self.missing, self.extra, self.shapes, self.unmapped, self.twice, self.used, self.differ)
        return any(kinds)

    def shape(self, parameter: str, fault: str) -> None:
        """A parameter whose shape is not that of what it is made of."""
        where = self._place(parameter)
        self.shapes.append(f"{parameter} {fault}" + (f" ({where})" if where else ""))

    def lack(self, parameter: str, tensors: Sequence[str]) -> None:
        """Tensors that a parameter is made of, and that are not there."""
        self.missing += tensors
        where = self._place(parameter)
        if where and where not in self.wanted_at:
            self.wanted_at.append(where)

    def _place(self, parameter: str) -> str | None:
        return self.places.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", parameter))

    def problem(self, path: Path) -> Problem:
        asking = [f"(asked for at {', '.join(self.wanted_at[:4])})"] if self.wanted_at else []
        kinds = [
            ("missing in the checkpoint", [*fold(self.missing), *asking]),
            ("in the checkpoint, and not asked for by the model", fold(self.extra)),
            ("of another shape", self.shapes),
            ("parameters that no rule of the map fills", fold(self.unmapped)),
            ("parameters that more than one rule of the map fills", fold(self.twice)),
            ("used in part, or more than once", self.used),
            ("not the copy that it should be", self.differ),
        ]
        lines = [f"{path} does not fit this model"]
        for title, entries in kinds:
            if entries:
                lines += [f"  {title}:", *[f"    {entry}" for entry in entries]]
        return Problem("\n".join(lines), help=self._way_out())

    def _way_out(self) -> str:
        if self.shapes:
            return "the spec's dims are not the checkpoint's: compare with its config.json, and set them in the spec"
        if self.differ:
            return "the checkpoint has a head of its own: give the spec one, too (a linear of D -> V)"
        if self.unmapped or self.twice or self.used:
            return "the spec's `checkpoint` map must give each parameter one value, and use each tensor once"
        if self.missing and self.extra:
            return "another architecture, or another map: choose it with `weights` in the spec"
        if self.missing:
            return "the model has more than the checkpoint: take from the spec what needs these tensors"
        return "the model has less than the checkpoint: add what is named to the spec, or `ignore` it in its map"


def fold(found: Sequence[str]) -> list[str]:
    """Names, those that differ in their numbers alone as one line: `layers.*.q.bias (0 to 29)`."""
    groups: dict[str, list[str]] = {}
    for name in found:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    lines = []
    for pattern, members in groups.items():
        if len(members) == 1:
            lines.append(members[0])
            continue
        columns = list(zip(*(map(int, re.findall(r"\d+", name)) for name in members), strict=True))
        varying = [column for column in columns if len(set(column)) > 1]
        of_each = [str(column[0]) if len(set(column)) == 1 else "*" for column in columns]
        shown = "".join(a + b for a, b in zip(pattern.split("*"), [*of_each, ""], strict=True))
        count = ranges(varying[0]) if len(varying) == 1 else f"{len(members)}: {members[0]} to {members[-1]}"
        lines.append(f"{shown} ({count})")
    return lines


def ranges(numbers: Sequence[int]) -> str:
    """`0 to 3, 7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs)
