"""memory: what training holds, counted from the graph: parameters, what backward saves, what the loss takes.

Elements for one sequence of the recipe's length. The runtime turns them into bytes with the precision, microbatch and
recomputation that are chosen then; see `runtime/train/ledger.py`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

from dskc.dsl.dims import Dim

from ..ir import DType, Graph, Op, Region, Value, captures, walk
from ..ops.attend import Attend
from ..ops.base import Operation
from ..ops.experts import Experts
from ..ops.fused import Fused
from ..ops.kernels import saved_by_kernel
from ..ops.structure import Block, Extern, Keep, Repeat
from ..ops.weights import Weights
from ..parameters import total_parameters
from ..recipe import Term, TrainRecipe
from .groups import hidden_parameters, trained_and_frozen
from .lift import LastMap, last_maps, within_loss

_BYTES = {DType.INT64: 8, DType.BOOL: 1, DType.FP32: 4, DType.BF16: 2, DType.FP16: 2, DType.INT8: 1, DType.FP8: 1}


@dataclass(frozen=True, slots=True)
class Saved:
    """Kept from forward to backward: elements in the compute dtype, in fp32, and bytes of all else."""

    compute: int = 0
    fp32: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class RepeatMemory:
    """One copy of a repeat, the mean where copies differ."""

    name: str
    count: int
    saved: Saved
    unfused: Saved
    input: int
    params: int


@dataclass(frozen=True, slots=True)
class LossMemory:
    """Terms of one result, computed with its last linear map: elements of its logits, of what the map takes, and of
    the map's weight and bias.
    """

    logits: int
    input: int
    weight: int
    terms: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The first ledger: what one device must hold, before dtypes are known."""

    params: int  # that are trained
    frozen: int  # and the others
    repeats: tuple[RepeatMemory, ...]
    rest: Saved
    rest_unfused: Saved
    logits: int
    losses: tuple[LossMemory, ...]
    moments: int
    single_moment: int  # parameters that have one moment and not two
    flops_per_token: int  # forward; causal attention counted as the half that it needs
    flops_per_token_full: int  # forward; attention counted in full, as torch counts it


def memory(graph: Graph, recipe: TrainRecipe, terms: tuple[Term, ...] = ()) -> Memory:
    """Counts a graph for a recipe's sequence length. terms: of all recipes of the model, where there are others."""
    sizes = {**graph.sizes, **dict.fromkeys(_data(graph), 1), **recipe.data}
    taken = {term.result for term in recipe.objective}
    maps = tuple(one for one in last_maps(graph, (*recipe.objective, *terms)) if one.result in taken)
    top, unfused = _Count(sizes, within_loss=within_loss(maps)), _Count(sizes, fused=False)
    repeats = []
    for op in graph.body.ops:
        if isinstance(op.attributes, Repeat):
            repeats.append(_repeat(op, sizes))
        for count in (top, unfused):
            if isinstance(op.attributes, Repeat):
                count.save((*op.operands, *captures(op)))
            else:
                count.op(op)
    names = {term.result for term in recipe.objective if term.result}
    logits = sum(
        int(value.type.elements.evaluate(sizes))
        for name, value in zip(graph.results, graph.body.results, strict=False)
        if name in names
    )
    full, causal = flops(graph, recipe.length, lengths=recipe.lengths)
    length = positions(graph, recipe)
    partly = any(group.lora or group.frozen for group in recipe.groups)
    trained, frozen = trained_and_frozen(graph, recipe.groups) if partly else (total_parameters(graph), 0)
    return Memory(
        params=trained,
        frozen=frozen,
        repeats=tuple(repeats),
        rest=top.total(),
        rest_unfused=unfused.total(),
        logits=logits,
        losses=tuple(_loss(one, recipe, sizes) for one in maps),
        moments=1 if recipe.optimizer.name == "lion" else 2,
        single_moment=hidden_parameters(graph) if recipe.optimizer.name == "muon" else 0,
        flops_per_token=causal // length,
        flops_per_token_full=full // length,
    )


def _loss(last: LastMap, recipe: TrainRecipe, sizes: dict[str, int]) -> LossMemory:
    def elements(*values: Value) -> int:
        return sum(int(value.type.elements.evaluate(sizes)) for value in values)

    terms = sum(1 for term in recipe.objective if term.result == last.result)
    return LossMemory(elements(last.logits), elements(last.x), elements(*last.weights), terms)


def positions(graph: Graph, recipe: TrainRecipe) -> int:
    """How many positions a sequence has where every input is there: what it costs is counted for each of them."""
    if not graph.optional:
        return recipe.length
    sizes = {**graph.sizes, **dict.fromkeys(_data(graph), 1), **recipe.data}
    given = (v for n, v in zip(graph.inputs, graph.body.arguments, strict=True) if n != "documents")
    return sum(int(v.type.axes[1].size.evaluate(sizes)) for v in given if len(v.type.axes) > 1)


def flops(graph: Graph, length: int, sequences: int = 1, lengths: tuple[tuple[str, int], ...] = ()) -> tuple[int, int]:
    """Floating-point operations of all matrix products in one forward pass: attention in full, and counted causally.

    length: of S; lengths: of other dims of the data.
    """
    sizes = {**graph.sizes, **dict.fromkeys(_data(graph), sequences), "S": length, **dict(lengths)}
    full = causal = 0
    for op, times in walk(graph.body):
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        count = int(attributes.flops(op).evaluate(sizes)) * times
        full += count
        halved = isinstance(attributes, Attend) and attributes.mask is not None and "causal" in attributes.mask.names
        causal += count // 2 if halved else count
    return full, causal


def _data(graph: Graph) -> set[str]:
    return {s for v in graph.body.arguments for a in v.type.axes for s in a.size.symbols()} - graph.sizes.keys()


def _repeat(op: Op, sizes: dict[str, int]) -> RepeatMemory:
    attributes = op.attributes
    assert isinstance(attributes, Repeat)
    params = 0
    for region, count in zip(op.regions, attributes.region_counts, strict=True):
        params += count * sum(
            int(inner.attributes.elements.evaluate(sizes)) * times
            for inner, times in walk(region)
            if isinstance(inner.attributes, Weights)
        )
    n = attributes.count
    entering = sum(int(v.type.elements.evaluate(sizes)) for v in op.operands)
    saved, unfused = (_mean(op, sizes, fused) for fused in (True, False))
    return RepeatMemory(attributes.path, n, saved, unfused, entering, params // n)


def _mean(op: Op, sizes: dict[str, int], fused: bool) -> Saved:
    """What one copy of a repeat saves, on average."""
    attributes = op.attributes
    assert isinstance(attributes, Repeat)
    totals = []
    for region, count in zip(op.regions, attributes.region_counts, strict=True):
        one = _Count(sizes, fused)
        one.region(region)
        totals.append((one.total(), count))
    n = attributes.count
    return Saved(*(sum(getattr(s, f) * c for s, c in totals) // n for f in ("compute", "fp32", "bytes")))


@dataclass(slots=True)
class _Count:
    """What the operations of a region save, each tensor once, whatever it is called in the blocks that it passes."""

    sizes: dict[str, int]
    fused: bool = True  # by kernels, or by the operations that these stand for
    within_loss: frozenset[Op] = frozenset()  # what the kernels of a loss compute as they go
    saved: dict[Value, None] = field(default_factory=dict)
    same: dict[Value, Value] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    outer: set[Value] = field(default_factory=set)

    def region(self, region: Region) -> None:
        inner = [v for op, _ in walk(region) for r in op.regions for v in r.arguments]  # such as the rows of experts
        defined = {v for op, _ in walk(region) for v in op.results} | set(region.arguments) | set(inner)
        for op in region.ops:
            self.op(op)
        self.outer |= {value for value in self.saved if value not in defined and self._original(value) not in defined}

    def op(self, op: Op) -> None:
        attributes = op.attributes
        assert isinstance(attributes, Operation)
        if op in self.within_loss:
            return
        kept = saved_by_kernel(op, self.sizes) if self.fused else None
        if isinstance(attributes, Keep):
            self.same.update(zip(op.results, op.operands, strict=True))
            return
        if isinstance(attributes, Block) or (isinstance(attributes, Fused) and not self.fused):
            (region,) = op.regions
            self.same.update(zip(region.arguments, op.operands, strict=True))
            for inner in region.ops:
                self.op(inner)
            self.same.update(zip(op.results, region.results, strict=True))
            if isinstance(attributes, Fused):
                return
        elif isinstance(attributes, Repeat):
            self.save((*op.operands, *captures(op)))
            for region, count in zip(op.regions, attributes.region_counts, strict=True):
                one = _Count(self.sizes, self.fused)
                one.region(region)
                for kind, amount in zip(("compute", "fp32", "int8"), astuple(one.total()), strict=True):
                    self.extra[kind] = self.extra.get(kind, 0) + count * amount
        elif isinstance(attributes, Experts):
            for inner in op.regions[0].ops if kept is None else ():
                self.op(inner)
        elif isinstance(attributes, Extern):
            self._more("compute", attributes.stated_saved)
        saved = kept or attributes.saved(op)
        self.save(saved.values)
        for size, kind in saved.extra:
            self._more(kind, size)

    def save(self, values: tuple[Value, ...]) -> None:
        for value in values:
            if value.type.dtype is not DType.PARAMS:
                self.saved[self._original(value)] = None

    def _original(self, value: Value) -> Value:
        while value in self.same:
            value = self.same[value]
        return value

    def _more(self, kind: str, size: Dim) -> None:
        self.extra[kind] = self.extra.get(kind, 0) + int(size.evaluate(self.sizes))

    def total(self) -> Saved:
        compute = self.extra.get("compute", 0)
        fp32 = self.extra.get("fp32", 0)
        other = self.extra.get("int64", 0) * 8 + self.extra.get("bool", 0) + self.extra.get("int8", 0)
        for value in self.saved:
            if value in self.outer:
                continue
            elements = int(value.type.elements.evaluate(self.sizes))
            if value.type.dtype is DType.COMPUTE:
                compute += elements
            elif value.type.dtype is DType.FP32:
                fp32 += elements
            else:
                other += elements * _BYTES[value.type.dtype]
        return Saved(compute, fp32, other)
