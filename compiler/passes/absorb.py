"""absorb: in the serving graph, linear maps between what a cache keeps and attention move to its queries and behind it.

Where an attention's keys and values are linear maps, one a head, of a latent c that a cache keeps, `k = A c` and
`v = B c`, then `q · k = (Aᵀ q) · c` and `Σ p v = B Σ p c`: all heads can read the latent itself as their one key and
value (arXiv:2405.04434, section 2.1.2), and no key or value of the positions before is made. Parts of a key that heads
share, such as a rotary one, stand beside the latent. What is recognised is this pattern, whoever wrote it:

    keep c, s  ->  linear (no bias) to [heads, ..]  ->  split  ->  attend([q, r], [k, s], v)

It is left as it was where the maps have biases or fewer heads than the queries, where something else reads the keys or
values, and where what is mapped is not itself kept.

Neither form is always less work. With S new positions of T, the plain one maps T - S more latents, and in the other
each of the S T scores and sums is over latents, which are wider than the keys and values of a head. So both are kept,
as the bodies of one `choose`, which compares the two; a prompt takes the plain form, decoding the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from dskc.dsl.dims import Dim
from dskc.dsl.source import Span

from ..ir import Axis, Graph, Op, Region, Value, captures, walk
from ..ops.arrange import Concat, Expand, Split
from ..ops.attend import Attend
from ..ops.base import Operation
from ..ops.heads import Choose, HeadMaps, MapHeads
from ..ops.linear import Linear
from ..ops.structure import Keep
from ..ops.weights import Weights

ONE = Axis("1", Dim.of(1))  # the one key head that all query heads read
Owners = Mapping[Value, Weights]


def absorb(graph: Graph) -> Graph:
    """The graph with both forms wherever the pattern is."""
    owners = {v: op.attributes for op, _ in walk(graph.body) if isinstance(op.attributes, Weights) for v in op.results}
    return replace(graph, body=_within(graph.body, owners, graph.sizes))


def _within(region: Region, owners: Owners, sizes: Mapping[str, int]) -> Region:
    ops = tuple(
        Op(op.attributes, op.operands, op.results, op.span, tuple(_within(r, owners, sizes) for r in op.regions))
        for op in region.ops
    )
    return absorb_region(Region(region.arguments, ops, region.results), owners, sizes)


def absorb_region(region: Region, owners: Owners, sizes: Mapping[str, int]) -> Region:
    """One body with both forms of its attentions, but not of those in bodies within it."""
    for op in region.ops:
        if isinstance(op.attributes, Attend):
            choice = _Pattern(region, op, owners, sizes).choice()
            if choice is not None:
                moved = set(choice.regions[1].ops)
                ops = (choice if other is op else other for other in region.ops if other not in moved)
                region = Region(region.arguments, tuple(ops), region.results)
    return region


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A part of the keys, or the values: part `index` of what a linear layer makes of a latent for each head."""

    layer: Op
    into: tuple[Axis, ...]
    index: int

    @property
    def latent(self) -> Value:
        return self.layer.operands[0]

    @property
    def rank(self) -> Dim:
        return self.latent.type.axes[-1].size

    @property
    def width(self) -> Dim:
        return self.into[self.index].size


@dataclass(slots=True)
class _Body:
    """The body of the absorbed form, growing."""

    span: Span
    ops: list[Op] = field(default_factory=list)

    def add(
        self, attributes: Operation, *operands: Value, names: tuple[str | None, ...] = (None,)
    ) -> tuple[Value, ...]:
        types = attributes.infer(*(value.type for value in operands))
        results = tuple(Value(kind, name) for kind, name in zip(types, names, strict=True))
        self.ops.append(Op(attributes, operands, results, self.span))
        return results

    def join(self, parts: tuple[Value, ...]) -> Value:
        return self.add(Concat(), *parts)[0] if len(parts) > 1 else parts[0]


class _Pattern:
    """One attention in its body, and what leads to it."""

    def __init__(self, region: Region, attend: Op, owners: Owners, sizes: Mapping[str, int]) -> None:
        self.region, self.attend, self.owners, self.sizes = region, attend, owners, sizes
        self.made = {value: op for op in region.ops for value in op.results}
        self.moved = {attend}  # what the plain form alone needs

    def choice(self) -> Op | None:
        """What takes the attention's place; None where the pattern is not there. Its second body is the plain form."""
        q, k, v = self.attend.operands[:3]
        keys, values = self._keys(k), self._mapped(v)
        if keys is None or values is None or not any(isinstance(part, _Mapped) for part in keys):
            return None
        mapped = [part for part in (*keys, values) if isinstance(part, _Mapped)]
        heads = q.type.axes[2].size
        try:
            pair = sum(self._number(part.rank - part.width) for part in mapped)
            position = sum(self._number(part.rank * part.width) for part in mapped)
            scale = self._scale(k)
        except KeyError:  # a size that data brings
            return None
        queries = self._queries(q, keys)
        if any(_layer(part).target[0].size != heads for part in mapped) or not self._apart():
            return None
        absorbed = self._absorbed(queries, keys, values, scale)
        layers = dict.fromkeys(self.owners[part.layer.operands[1]].name for part in mapped)
        attributes = Choose(pair, position, " and ".join(layers))
        given = (q if queries is None else queries[0], values.latent)
        return Op(attributes, given, self.attend.results, self.attend.span, (absorbed, self._plain()))

    def _number(self, size: Dim) -> int:
        return int(size.evaluate(self.sizes))

    def _scale(self, k: Value) -> float:
        attributes = self.attend.attributes
        assert isinstance(attributes, Attend)
        return self._number(k.type.axes[-1].size) ** -0.5 if attributes.scale is None else attributes.scale

    # --- what there is

    def _keys(self, k: Value) -> tuple[_Mapped | Value, ...] | None:
        """The parts of a key: those that are mapped, and the values of those that heads share."""
        found: list[_Mapped | Value] = []
        for part in self._joined(k):
            maker = self.made.get(part)
            mapped = self._mapped(part)
            if mapped is not None:
                found.append(mapped)
            elif maker is not None and isinstance(maker.attributes, Expand):
                self.moved.add(maker)
                found.append(maker.operands[0])
            else:
                return None
        return tuple(found)

    def _joined(self, value: Value) -> tuple[Value, ...]:
        maker = self.made.get(value)
        if maker is None or not isinstance(maker.attributes, Concat):
            return (value,)
        self.moved.add(maker)
        return maker.operands

    def _mapped(self, value: Value) -> _Mapped | None:
        """A value as a linear map, one a head, of something kept; None where it is not, or not plainly."""
        split, maker = None, self.made.get(value)
        if maker is not None and isinstance(maker.attributes, Split):
            split, maker = maker, self.made.get(maker.operands[0])
        if maker is None or not isinstance(maker.attributes, Linear):
            return None
        layer, kept = maker.attributes, self.made.get(maker.operands[0])
        if kept is None or not isinstance(kept.attributes, Keep) or len(maker.operands[0].type.axes) != 3:
            return None
        plain = len(layer.source) == 1 and len(layer.target) == 2 and len(maker.operands) == 2 and not layer.compute
        if not plain or self.owners[maker.operands[1]].module != "Linear":
            return None
        self.moved |= {maker} if split is None else {maker, split}
        if split is None:
            return _Mapped(maker, layer.target[1:], 0)
        assert isinstance(split.attributes, Split)
        return _Mapped(maker, split.attributes.into, split.results.index(value))

    def _queries(self, q: Value, keys: tuple[_Mapped | Value, ...]) -> tuple[Value, ...] | None:
        """The parts of a query, where it is joined of such as the keys have; None: it is to be cut."""
        maker = self.made.get(q)
        if (
            maker is None
            or not isinstance(maker.attributes, Concat)
            or any(q in other.operands for other in self._others())
        ):
            return None
        if [part.type.axes[-1].size for part in maker.operands] != [_width(part) for part in keys]:
            return None
        self.moved.add(maker)
        return maker.operands

    def _others(self) -> Iterator[Op]:
        return (op for op in self.region.ops if op not in self.moved)

    def _apart(self) -> bool:
        """Whether nothing else reads what the plain form computes on its way."""
        inner = {value for op in self.moved if op is not self.attend for value in op.results}
        seen = {value for op in self._others() for value in (*op.operands, *captures(op))}
        return not inner & (seen | set(self.region.results))

    # --- what is made of it

    def _absorbed(
        self, queries: tuple[Value, ...] | None, keys: tuple[_Mapped | Value, ...], values: _Mapped, scale: float
    ) -> Region:
        body, attributes = _Body(self.attend.span), self.attend.attributes
        assert isinstance(attributes, Attend)
        q, _, _, *rest = self.attend.operands
        if queries is None:
            axes = tuple(self._axis(part) for part in keys)
            queries = body.add(Split(axes), q, names=(None,) * len(axes)) if len(axes) > 1 else (q,)
        maps: dict[Op, tuple[Value, ...]] = {}
        for part in (*keys, values):
            if isinstance(part, _Mapped) and part.layer not in maps:
                maps[part.layer] = self._maps(body, part)
        mapped = []
        for query, key in zip(queries, keys, strict=True):
            if isinstance(key, _Mapped):
                weight = maps[key.layer][key.index]
                (query,) = body.add(MapHeads(turned=True), query, weight, names=(query.name,))
            mapped.append(query)
        latents = body.join(tuple(key.latent if isinstance(key, _Mapped) else key for key in keys))
        (k,) = body.add(Expand(ONE), latents)
        (v,) = body.add(Expand(ONE), values.latent)
        (z,) = body.add(replace(attributes, scale=scale), body.join(tuple(mapped)), k, v, *rest, names=("z",))
        (o,) = body.add(MapHeads(), z, maps[values.layer][values.index], names=(self.attend.result.name,))
        return Region((), tuple(body.ops), (o,))

    def _maps(self, body: _Body, part: _Mapped) -> tuple[Value, ...]:
        """The maps of a layer's parts, each named after what the plain form makes with it."""
        split = next((op for op in self.moved if op.operands == part.layer.results), None)
        made = split.results if split is not None and isinstance(split.attributes, Split) else part.layer.results
        names = tuple(f"{value.name or 'part'}_map" for value in made)
        layer = _layer(part)
        return body.add(HeadMaps(layer.target[0], part.into, layer.source[0]), part.layer.operands[1], names=names)

    def _axis(self, part: _Mapped | Value) -> Axis:
        return part.into[part.index] if isinstance(part, _Mapped) else part.type.axes[-1]

    def _plain(self) -> Region:
        """What was there, its result a value of its own."""
        attend = self.attend
        result = Value(attend.result.type, attend.result.name)
        last = Op(attend.attributes, attend.operands, (result,), attend.span)
        return Region((), (*(op for op in self.region.ops if op in self.moved and op is not attend), last), (result,))


def _layer(part: _Mapped) -> Linear:
    attributes = part.layer.attributes
    assert isinstance(attributes, Linear)
    return attributes


def _width(part: _Mapped | Value) -> Dim:
    return part.width if isinstance(part, _Mapped) else part.type.axes[-1].size
