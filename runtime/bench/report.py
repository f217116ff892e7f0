"""What a benchmark found: rows, the machine, and the file that they are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..problem import Problem
from .case import OURS


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one who does a case: the median, and the tenth and ninetieth of a hundred."""

    name: str
    median: float
    low: float
    high: float
    rate: float  # in the case's unit
    gib: float = 0.0  # at its peak beside what is there before it


@dataclass(frozen=True)
class Row:
    """A case with everyone's times, ours first; `missing` are those that could not, with the reason."""

    kernel: str
    shape: str
    unit: str
    ceiling: str
    flops: float
    bytes: float
    times: tuple[Timed, ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> Timed | None:
        return next((t for t in self.times if t.name == OURS), None)

    @property
    def best_peer(self) -> Timed | None:
        return min((t for t in self.times if not t.name.startswith(OURS)), key=lambda t: t.median, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer."""
        return self.best_peer.median / self.ours.median if self.ours and self.best_peer else None

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / max(self.bytes, 1)

    def share(self, timed: Timed, ceilings: Mapping[str, float]) -> float | None:
        """Of the ceiling that bounds the case; None where that is not in its unit or was not measured."""
        comparable = (self.unit == "GB/s") == (self.ceiling == "copy")
        return timed.rate / ceilings[self.ceiling] if comparable and self.ceiling in ceilings else None

    def floor(self, ceilings: Mapping[str, float]) -> float | None:
        """Milliseconds that nothing can be faster than: bytes at the rate of copying, FLOPs at that of products."""
        if "copy" not in ceilings:
            return None
        products = ceilings.get(self.ceiling) if self.ceiling != "copy" else None
        return max(self.bytes / ceilings["copy"] / 1e6, self.flops / products / 1e9 if products else 0.0)


@dataclass(frozen=True)
class Machine:
    """Where a run was: the GPU's name, versions by package, the commit of the code where git tells."""

    gpu: str
    versions: Mapping[str, str]
    commit: str | None = None


@dataclass(frozen=True)
class Report:
    """One run. ceilings: what the GPU did at most then, GB/s of "copy" and TFLOP/s of products in each dtype.

    began: when, in UTC to the second, which tells runs apart.
    """

    began: str
    machine: Machine
    ceilings: Mapping[str, float]
    rows: tuple[Row, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [asdict(row) for row in self.rows]}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Report:
        """What `to_json` made of one. Raises KeyError or TypeError when it is none."""
        rows = tuple(Row(**(row | {"times": tuple(Timed(**t) for t in row["times"])})) for row in found["rows"])
        return cls(found["began"], Machine(**found["machine"]), found["ceilings"], rows)


def read_reports(path: Path) -> list[Report]:
    """The runs in a file, oldest first; none where there is no file. Raises Problem where it holds something else."""
    if not path.exists():
        return []
    try:
        return [Report.from_json(run) for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Problem(f"{path} holds no runs of a benchmark", "name another folder with --out") from None


def write_reports(path: Path, reports: Iterable[Report]) -> None:
    """Runs side by side in one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({"runs": [r.to_json() for r in reports]}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def joined(rows: Sequence[Row], into: Sequence[Row]) -> tuple[Row, ...]:
    """`into` with each of `rows` in the place of the one of the same kernel and shape, or behind."""
    found = {(row.kernel, row.shape): row for row in (*into, *rows)}
    return tuple(found.values())
