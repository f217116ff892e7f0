"""What becomes of each parameter: it stays, it is renamed, it takes another shape, it comes or goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dskc.dsl.source import Span

from ..ir import Axis, Graph, Region
from ..ops.structure import Repeat
from ..ops.weights import Weights

_MOST_PAIRS = 4_000_000  # of patterns to align: beyond, only names count


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a state dict, and the line of the spec that makes it."""

    pattern: str  # its name with `*` for the indices
    indices: tuple[int, ...]
    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    module: str
    span: Span

    @property
    def name(self) -> str:
        name = self.pattern
        for index in self.indices:
            name = name.replace("*", str(index), 1)
        return name


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor before and after, or only one of them."""

    old: Tensor | None
    new: Tensor | None


@dataclass(slots=True)
class Tensors:
    """All parameters of a model in their order, by what becomes of them."""

    kept: list[Pair] = field(default_factory=list)
    renamed: list[Pair] = field(default_factory=list)
    reshaped: list[Pair] = field(default_factory=list)
    added: list[Pair] = field(default_factory=list)
    removed: list[Pair] = field(default_factory=list)

    @property
    def patterns(self) -> dict[str, str]:
        """Old patterns to new ones, of those that are there before and after."""
        pairs = (*self.kept, *self.reshaped, *self.renamed)
        return {pair.old.pattern: pair.new.pattern for pair in pairs if pair.old and pair.new}


def tensors(graph: Graph) -> list[Tensor]:
    """Every parameter once, in the order of the graph."""
    found: dict[str, Tensor] = {}
    for tensor in _walk(graph.body, (), graph.sizes):
        found.setdefault(tensor.name, tensor)
    return list(found.values())


def user_span(span: Span, site: Span | None) -> Span:
    """A place in the user's own files: that of the call, for what stands in the library."""
    return site if span.source.library and site is not None else span


def _walk(
    region: Region, indices: tuple[int, ...], sizes: dict[str, int], site: Span | None = None
) -> Iterator[Tensor]:
    for op in region.ops:
        attributes, span = op.attributes, user_span(op.span, site)
        if isinstance(attributes, Weights):
            for weight in attributes.weights:
                if weight.state == "counted":
                    continue
                axes = weight.type.axes
                shape = tuple(int(axis.size.evaluate(sizes)) for axis in axes)
                yield Tensor(f"{attributes.path}.{weight.name}", indices, shape, axes, attributes.module, span)
        elif isinstance(attributes, Repeat):
            for i, variant in enumerate(attributes.variants):
                yield from _walk(op.regions[variant], (*indices, i), sizes, span)
        else:
            for inner in op.regions:
                yield from _walk(inner, indices, sizes, span)


def compare_tensors(old: list[Tensor], new: list[Tensor]) -> Tensors:
    """Parameters by name; of those that have no counterpart, renamed ones are found by shape and position."""
    before, after = {t.name: t for t in old}, {t.name: t for t in new}
    found = Tensors()
    for tensor in old:
        same = after.get(tensor.name)
        if same is not None:
            (found.kept if same.shape == tensor.shape else found.reshaped).append(Pair(tensor, same))
    gone = [t for t in old if t.name not in after]
    come = [t for t in new if t.name not in before]
    renamed = _renamed(_by_pattern(old), _by_pattern(new), _by_pattern(gone), _by_pattern(come))
    found.renamed = [Pair(a, b) for a, b in renamed]
    olds, news = {a.name for a, _ in renamed}, {b.name for _, b in renamed}
    found.removed = [Pair(t, None) for t in gone if t.name not in olds]
    found.added = [Pair(None, t) for t in come if t.name not in news]
    return found


Patterns = dict[str, dict[tuple[int, ...], Tensor]]


def _by_pattern(found: list[Tensor]) -> Patterns:
    patterns: Patterns = {}
    for tensor in found:
        patterns.setdefault(tensor.pattern, {})[tensor.indices] = tensor
    return patterns


def _renamed(old: Patterns, new: Patterns, gone: Patterns, come: Patterns) -> list[tuple[Tensor, Tensor]]:
    """The best alignment of both orders in which equal names meet, and else what has gone meets what has come."""
    if not gone or not come or len(old) * len(new) > _MOST_PAIRS:
        return []
    a, b = list(old), list(new)
    best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            score = _score(a[i], b[j], gone, come)
            paired = best[i + 1][j + 1] + score if score else 0
            best[i][j] = max(paired, best[i + 1][j], best[i][j + 1])
    found: list[tuple[Tensor, Tensor]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        score = _score(a[i], b[j], gone, come)
        if score and best[i][j] == best[i + 1][j + 1] + score:
            if a[i] != b[j]:
                common = [index for index in gone[a[i]] if index in come[b[j]]]
                found += [(gone[a[i]][index], come[b[j]][index]) for index in common]
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    return found


def _score(a: str, b: str, gone: Patterns, come: Patterns) -> int:
    """How well two patterns fit; 0: not at all. The same name before anything, then the same end of a name."""
    if a == b:
        return 1000
    if a not in gone or b not in come:
        return 0
    common = gone[a].keys() & come[b].keys()
    if not common or a.rsplit(".", 1)[-1] != b.rsplit(".", 1)[-1]:
        return 0
    if any((gone[a][i].shape, gone[a][i].module) != (come[b][i].shape, come[b][i].module) for i in common):
        return 0
    same = 0
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        same += 1
    return 10 + same
