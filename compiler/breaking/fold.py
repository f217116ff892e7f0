"""Changes of parameters with repeats folded: one line for all layers that change alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .tensors import Pair, Tensor, Tensors

Indices = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What happens alike to some copies of a tensor; `tensors` of them in each copy where a whole layer goes."""

    old: Tensor | None
    new: Tensor | None
    name: str  # folded, by what it is called after the change where it still is
    was: str | None  # folded, before a renaming
    indices: Indices
    tensors: int = 1

    @property
    def either(self) -> Tensor:
        found = self.new or self.old
        assert found is not None
        return found


def fold(pairs: list[Pair], all_old: list[Tensor], all_new: list[Tensor]) -> list[Change]:
    """Pairs with the same patterns and shapes as one change each, in their order."""
    groups: dict[object, list[Pair]] = {}
    for pair in pairs:
        key = tuple((t.pattern, t.shape) if t else None for t in (pair.old, pair.new))
        groups.setdefault(key, []).append(pair)
    copies_old, copies_new = _copies(all_old), _copies(all_new)
    found = []
    for group in groups.values():
        old, new = group[0].old, group[0].new
        indices = tuple(t.indices for pair in group for t in (pair.new or pair.old,) if t)
        name = _folded((new or old), indices, copies_new if new else copies_old)
        was = _folded(old, indices, copies_old) if old and new and old.pattern != new.pattern else None
        found.append(Change(old, new, name, was, indices))
    return found


def fold_layers(changes: list[Change], everything: list[Tensor]) -> list[Change]:
    """Of what comes or goes: a whole layer as one line. `everything`: the tensors of the side that has it."""
    whole: dict[tuple[str, Indices], list[Change]] = {}
    for change in changes:
        head, star, _ = change.either.pattern.partition(".*.")
        if star and change.either.pattern.count("*") == 1:
            whole.setdefault((head, change.indices), []).append(change)
    found, done = [], set()
    for change in changes:
        head = change.either.pattern.partition(".*.")[0]
        group = whole.get((head, change.indices), [])
        below = {t.pattern for t in everything if t.pattern.startswith(f"{head}.*.") and t.indices in change.indices}
        if len(group) < 2 or {c.either.pattern for c in group} != below:
            found.append(change)
        elif (head, change.indices) not in done:
            done.add((head, change.indices))
            name = f"{head}.{_braced([i[0] for i in change.indices])}.*"
            found.append(Change(change.old, change.new, name, None, change.indices, len(group)))
    return found


def fold_paths(changes: list[Change], old: list[Tensor]) -> list[Change]:
    """Of what is renamed: all below a path that is called otherwise as one line, `layers.* -> blocks.*`."""
    groups: dict[object, list[Change]] = {}
    for change in changes:
        groups.setdefault((_paths(change), change.indices), []).append(change)
    found = []
    for group in groups.values():
        (was, name), first = _paths(group[0]), group[0]
        below = {t.pattern for t in old if t.pattern.startswith(f"{was}.")}
        if len(group) > 1 and below == {c.old.pattern for c in group if c.old} and first.name == first.either.pattern:
            found.append(Change(first.old, first.new, f"{name}.*", f"{was}.*", first.indices, len(group)))
        else:
            found += group
    return found


def _paths(change: Change) -> tuple[str, str]:
    """What is left of the old and the new pattern without their common end."""
    assert change.old is not None and change.new is not None
    old, new = change.old.pattern.split("."), change.new.pattern.split(".")
    while len(old) > 1 and len(new) > 1 and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return ".".join(old), ".".join(new)


def folded(found: Tensors, old: list[Tensor], new: list[Tensor]) -> dict[str, list[Change]]:
    """All changes by kind."""
    return {
        "renamed": fold_paths(fold(found.renamed, old, new), old),
        "reshaped": fold(found.reshaped, old, new),
        "added": fold_layers(fold(found.added, old, new), new),
        "removed": fold_layers(fold(found.removed, old, new), old),
    }


def _copies(tensors: list[Tensor]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.pattern] = counts.get(tensor.pattern, 0) + 1
    return counts


def _folded(tensor: Tensor | None, indices: Indices, copies: dict[str, int]) -> str:
    """`layers.*.q` when it is all of them, else `layers.{0-2}.q`; a list where no such pattern says it."""
    assert tensor is not None
    if len(indices) == copies[tensor.pattern] and len(indices) > 1:
        return tensor.pattern
    places = [sorted(set(place)) for place in zip(*indices, strict=True)]
    if prod(len(place) for place in places) != len(indices):
        return ", ".join(_filled(tensor.pattern, [str(i) for i in each]) for each in indices[:3]) + ", ..."
    return _filled(tensor.pattern, [_braced(place) for place in places])


def _filled(pattern: str, indices: Sequence[str]) -> str:
    for index in indices:
        pattern = pattern.replace("*", index, 1)
    return pattern


def _braced(numbers: Sequence[int]) -> str:
    text = ranges(numbers)
    return text if text.isdigit() else f"{{{text}}}"


def ranges(numbers: Sequence[int]) -> str:
    """`0-2, 5`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
