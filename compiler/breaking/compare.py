"""Two versions of a spec, model by model."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir import Graph
from .fold import Change, folded
from .meaning import Meaning, compare_meaning
from .tensors import compare_tensors, tensors


@dataclass(frozen=True, slots=True)
class Report:
    """What happens to the checkpoints of one model."""

    model: str  # as the new spec calls it
    was: str  # as the old one did
    changes: dict[str, list[Change]] = field(default_factory=dict)  # renamed, reshaped, added, removed
    meaning: list[Meaning] = field(default_factory=list)
    gone: bool = False  # the new spec has no such model

    @property
    def moves(self) -> bool:
        """Whether a checkpoint no longer loads."""
        return self.gone or any(self.changes.values())

    @property
    def breaks(self) -> bool:
        """Whether a checkpoint no longer loads, or no longer gives what it gave."""
        return self.moves or bool(self.meaning)


def compare(old: dict[str, Graph], new: dict[str, Graph]) -> list[Report]:
    """Models of the same name; where each side has one alone, these two. Checked graphs, not lowered."""
    if len(old) == len(new) == 1:
        ((was, a),), ((name, b),) = old.items(), new.items()
        return [_compare(was, a, name, b)]
    return [
        _compare(name, graph, name, new[name]) if name in new else Report(name, name, gone=True)
        for name, graph in old.items()
    ]


def _compare(was: str, old: Graph, name: str, new: Graph) -> Report:
    before, after = tensors(old), tensors(new)
    found = compare_tensors(before, after)
    return Report(name, was, folded(found, before, after), compare_meaning(old, new, found))
