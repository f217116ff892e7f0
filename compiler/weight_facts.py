"""What a model says of itself that the configuration beside a checkpoint says too, and where in the spec it says it.

Shapes are compared tensor by tensor; these are the numbers that no shape shows: a wrong one loads, and answers wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from dskc.dsl.dims import Dim
from dskc.dsl.source import Span

from .ir import Graph, Op, Region
from .ops.attend import Attend
from .ops.elementwise import Softcap
from .ops.experts import Experts
from .ops.linear import Embed
from .ops.norm import RmsNorm
from .ops.position import RopeTable
from .ops.routing import GroupedTopK, TopK
from .ops.structure import Repeat
from .ops.weights import Weights
from .signature import Record
from .values import Mask

Facts = dict[str, dict[str, str]]  # by key of a config.json: each value, as text, and the line that says it


def weight_facts(graph: Graph) -> Facts:
    """The facts of a model under the names that transformers' configurations give them."""
    facts: Facts = {}
    for op, site in _walk(graph.body, graph.span):
        for key, value in _of(op, graph):
            shown = str(int(value)) if float(value).is_integer() else repr(float(value))
            facts.setdefault(key, {}).setdefault(shown, place(site))
    repeats = [(op.attributes, op.span) for op in graph.body.ops if isinstance(op.attributes, Repeat)]
    if len(repeats) == 1:  # layers in several repeats are counted by nobody
        ((attributes, span),) = repeats
        facts["num_hidden_layers"] = {str(attributes.count): place(span)}
    return facts


def weight_places(graph: Graph) -> dict[str, str]:
    """The line of the spec that each parameter comes from, by its name with `*` for indices."""
    found: dict[str, str] = {}
    for op, site in _walk(graph.body, graph.span):
        if isinstance(op.attributes, Weights):
            found.update((f"{op.attributes.path}.{weight.name}", place(site)) for weight in op.attributes.weights)
    return found


def place(span: Span) -> str:
    """`specs/deepseek_7b.dsk:17`."""
    return f"{span.source.path}:{span.line}"


def _walk(region: Region, site: Span) -> Iterator[tuple[Op, Span]]:
    """Every operation with the place in the user's own files that led to it."""
    for op in region.ops:
        here = site if op.span.source.library else op.span
        yield op, here
        for inner in op.regions:
            yield from _walk(inner, here)


def _of(op: Op, graph: Graph) -> Iterator[tuple[str, float]]:
    def size(dim: Dim) -> float:
        return float(dim.evaluate(graph.sizes))

    match op.attributes:
        case RmsNorm(eps=eps):
            yield "rms_norm_eps", eps
        case Embed():
            vocabulary, width = op.operands[1].type.axes
            yield "vocab_size", size(vocabulary.size)
            yield "hidden_size", size(width.size)
        case TopK(k=best) | GroupedTopK(k=best):
            yield "num_experts_per_tok", best
        case Experts(count=count):
            for key in ("num_experts", "num_local_experts", "n_routed_experts"):
                yield key, size(count.size)
        case Softcap(cap=cap):
            yield "final_logit_softcapping", cap
        case Attend(mask=mask, softcap=softcap):
            if softcap is not None:
                yield "attn_logit_softcapping", softcap
            q, k, v = (value.type for value in op.operands[:3])
            yield "num_attention_heads", size(q.axes[2].size)
            yield "num_key_value_heads", size(k.axes[2].size)
            yield "head_dim", size(q.axes[3].size)
            yield "head_dim", size(v.axes[3].size)
            for window in _windows(mask):
                yield "sliding_window", window
        case RopeTable(theta=theta, width=width, scaling=scaling):
            yield "rope_theta", theta
            yield "head_dim", size(width.size)  # DeepSeek's configurations call the rotary part so
            factor = scaling["factor"] if isinstance(scaling, Record) else None
            if isinstance(factor, Fraction):
                yield "rope_scaling.factor", float(factor)


def _windows(mask: Mask | None) -> Iterator[int]:
    for operand in mask.operands if mask else ():
        yield from _windows(operand)
    if mask is not None and mask.operator == "window":
        yield dict(mask.arguments)["size"]
