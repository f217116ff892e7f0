"""Attention of drawn masks against the reference in float64, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.values import Mask
from dskc.runtime import reference
from dskc.runtime.kernels import KernelError, attention, attention_ways, use_kernels
from dskc.runtime.kernels.attention import AttentionKernel
from dskc.runtime.kernels.attention_tiles import Grid, seen
from dskc.runtime.kernels.tuning import Way, forget

from .drawn_masks import (
    CAUSAL,
    DOCUMENTS,
    EVERYTHING,
    blocks,
    both,
    dense,
    either,
    expressions,
    imported,
    window,
    written,
)

# Interpreted, shrinking an example takes minutes.
QUIET = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
}
TOLERANCE = {torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 2e-2}
device = "cuda" if torch.cuda.is_available() else "cpu"
WIDE = torch.float16 if torch.cuda.is_available() else torch.float32  # kernels on a GPU take no float32


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    forget()
    with use_kernels("triton"):
        yield


@dataclass(frozen=True)
class Shape:
    queries: int = 33
    keys: int = 40
    batch: int = 1
    heads: int = 2
    groups: int = 1
    width: int = 16
    value_width: int = 16


@dataclass(frozen=True)
class Given:
    """Random tensors of a call, and what flows back into its result."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_o: Tensor
    documents: Tensor | None = None
    sinks: Tensor | None = None

    def of_row(self, b: int) -> Given:
        ids = None if self.documents is None else self.documents[b : b + 1]
        return Given(*(t[b : b + 1] for t in (self.q, self.k, self.v, self.grad_o)), ids, self.sinks)


@dataclass(frozen=True)
class Results:
    """What comes of a call. `lse` is [B, H, S]; `sinks` is a gradient."""

    o: Tensor
    lse: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: t for name, t in vars(self).items() if t is not None}


def drawn(
    shape: Shape, dtype: torch.dtype = WIDE, documents: str = "", sinks: bool = False, size: float = 1.0, seed: int = 0
) -> Given:
    """documents: "" for none, "packed" for one after another, "mixed" for ids in any order."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*lengths: int) -> Tensor:
        return (torch.randn(lengths, generator=generator) * size).to(dtype).to(device)

    q = normal(shape.batch, shape.queries, shape.heads, shape.width)
    k = normal(shape.batch, shape.keys, shape.groups, shape.width)
    v = normal(shape.batch, shape.keys, shape.groups, shape.value_width)
    grad_o = normal(shape.batch, shape.queries, shape.heads, shape.value_width)
    ids = None
    if documents:
        ids = torch.randint(0, 3, (shape.batch, shape.keys), generator=generator).to(device)
        ids = (torch.where(ids == 0, 1, 0).cumsum(1) // 5 if documents == "packed" else ids) - 1
    sink = torch.randn(shape.heads, generator=generator).to(dtype).to(device) if sinks else None
    return Given(q, k, v, grad_o, ids, sink)


def run(kernel: AttentionKernel, given: Given, training: bool = False) -> Results:
    """The kernel's results. What it allocates and does not write is not a number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        q, k, v = (t.detach().requires_grad_() for t in (given.q, given.k, given.v))
        sinks = None if given.sinks is None else given.sinks.detach().requires_grad_()
        o, lse = kernel.with_log_sum_exp(q, k, v, given.documents, sinks, training)
        wanted = [q, k, v, *([] if sinks is None else [sinks])]
        dq, dk, dv, *rest = torch.autograd.grad(o, wanted, given.grad_o)
    finally:
        torch.use_deterministic_algorithms(False)
    return Results(o.detach(), lse, dq, dk, dv, rest[0] if rest else None)


def scores(given: Given, allowed: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """[B, H, S, T] in float64, minus infinity where nothing is seen."""
    repeated = given.q.shape[2] // given.k.shape[2]
    q, k = given.q.double(), given.k.double().repeat_interleave(repeated, 2)
    s = torch.einsum("bshe,bthe->bhst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = s if softcap is None else softcap * torch.tanh(s / softcap)
    return s.masked_fill(~allowed[:, None], -torch.inf)


def expected(
    mask: Mask, given: Given, scale: float | None = None, softcap: float | None = None, at: str = device
) -> Results:
    """The reference's results in float64, and log-sum-exp by its definition."""
    q, k, v = (t.detach().double().requires_grad_() for t in (given.q, given.k, given.v))
    sinks = None if given.sinks is None else given.sinks.detach().double().requires_grad_()
    o = reference.attention(
        q, k, v, mask=written(mask).mask(given.documents), scale=scale, softcap=softcap, sinks=sinks
    )
    wanted = [q, k, v, *([] if sinks is None else [sinks])]
    dq, dk, dv, *rest = torch.autograd.grad(o, wanted, given.grad_o.double())
    s = scores(given, dense(mask, q.shape[1], k.shape[1], given.documents, at), scale, softcap)
    if sinks is not None:
        s = torch.cat((s, sinks.detach()[None, :, None, None].expand(*s.shape[:3], 1)), -1)
    return Results(o.detach(), s.logsumexp(-1), dq, dk, dv, rest[0] if rest else None)


def compare(made: Results, wanted: Results, dtype: torch.dtype, least: float = 1.0) -> None:
    """least: what errors are measured by where everything is smaller, as gradients that cancel."""
    assert made.tensors.keys() == wanted.tensors.keys()
    for name, tensor in made.tensors.items():
        good = wanted.tensors[name]
        assert tensor.shape == good.shape, name
        assert tensor.dtype == (torch.float32 if name == "lse" else dtype), name
        assert torch.isfinite(tensor).all(), name
        error = (tensor.double() - good).abs().max().item() if good.numel() else 0.0
        most = good.abs().max().item() if good.numel() else 0.0
        assert error <= TOLERANCE[dtype] * max(most, least), f"{name}: {error} of {most}"


def one_way(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Gradients by the ways whose names start so, though algorithms are deterministic where memory is poisoned."""
    ways = [way for way in attention_ways.backward_ways() if way.name.startswith(name)]
    assert ways
    monkeypatch.setattr(attention, "backward_ways", lambda: ways)
    monkeypatch.setattr(attention.torch, "are_deterministic_algorithms_enabled", lambda: False)


WIDTHS = ((16, 16), (24, 16), (20, 24), (40, 16), (32, 48), (48, 20), (17, 33), (8, 3))


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    keys = draw(st.integers(1, 70))
    queries = draw(st.one_of(st.just(keys), st.integers(1, keys)))
    heads, groups = draw(st.sampled_from(((1, 1), (2, 1), (2, 2), (4, 2))))
    return Shape(queries, keys, draw(st.integers(1, 2)), heads, groups, *draw(st.sampled_from(WIDTHS)))


@pytest.mark.parametrize("way", ["apart", "together"])
@settings(max_examples=7, **QUIET)
@given(
    mask=expressions(),
    shape=shapes(),
    dtype=st.sampled_from((torch.float32, torch.float16)),
    options=st.fixed_dictionaries(
        {"scale": st.sampled_from((None, None, 0.3)), "softcap": st.sampled_from((None, None, 2.0))}
    ),
    sinks=st.booleans(),
    documents=st.sampled_from(("", "packed", "mixed")),
)
@example(either(CAUSAL, window(5)), Shape(), torch.float32, {}, False, "")
@example(both(CAUSAL, window(16)), Shape(48, 48), torch.float32, {}, False, "")
@example(both(window(5), either(CAUSAL, DOCUMENTS)), Shape(), torch.float32, {}, False, "mixed")
@example(both(CAUSAL, blocks(3, 1, 1, 2)), Shape(50, 70), torch.float32, {}, False, "")
@example(EVERYTHING, Shape(1, 1, 1, 1, 1, 17, 5), torch.float16, {}, True, "")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's widths and dtypes; test_attention_on_gpu.py")
def test_drawn_masks(
    way: str,
    mask: Mask,
    shape: Shape,
    dtype: torch.dtype,
    options: dict[str, float | None],
    sinks: bool,
    documents: str,
) -> None:
    tensors = drawn(shape, dtype, documents if "documents" in mask.names else "", sinks)
    with pytest.MonkeyPatch.context() as patch:
        one_way(patch, way)
        made = run(written(mask).kernel(**options), tensors)
    compare(made, expected(mask, tensors, **options), dtype)


# --- what else a call may bring


@pytest.mark.parametrize("way", ["apart", "together"])
def test_dropped_probabilities_are_the_same_forward_and_backward(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mask, tensors = both(CAUSAL, window(20)), drawn(Shape(20, 33, batch=2, value_width=24))
    one_way(monkeypatch, way)
    torch.manual_seed(3)
    kernel = written(mask).kernel(dropout=0.4)
    made = run(kernel, tensors, training=True)
    torch.manual_seed(3)
    seed = torch.randint(1 << 31, (1,), device=device)
    kept = kept_places(seed, 4, 20, 33, 0.4).view(2, 2, 20, 33)
    assert 0.3 < (kept == 0).double().mean().item() < 0.5
    q, k, v = (t.double().requires_grad_() for t in (tensors.q, tensors.k, tensors.v))
    s = scores(replace(tensors, q=q, k=k), dense(mask, 20, 33, None, device), None, None)
    o = torch.einsum("bhst,bthv->bshv", s.softmax(-1) * kept, v.repeat_interleave(2, 2))
    gradients = torch.autograd.grad(o, (q, k, v), tensors.grad_o.double())
    compare(made, Results(o.detach(), s.logsumexp(-1).detach(), *gradients, None), WIDE)
    assert torch.equal(run(kernel, tensors, training=False).o, run(written(mask).kernel(), tensors).o)


def kept_places(seed: Tensor, heads: int, queries: int, keys: int, p: float) -> Tensor:
    """What each place is multiplied by: [heads, queries, keys] (fp64), as kernels draw it."""
    made = torch.full((heads, queries, keys), torch.nan, device=device)
    draws = imported(
        "from dskc.runtime.kernels.attend_forward import kept\n"
        "from dskc.runtime.kernels.language import tl, triton\n\n\n"
        "@triton.jit\n"
        "def draw_all(seed, made, queries, keys, P: tl.constexpr, M: tl.constexpr, N: tl.constexpr):\n"
        "    row, key = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]\n"
        "    head = tl.program_id(0)\n"
        "    drawn = kept(tl.load(seed), head, row + keys - queries, key, keys, P)\n"
        "    tl.store(made + (head * queries + row) * keys + key, drawn, (row < queries) & (key < keys))\n"
    )
    draws.draw_all[(heads,)](seed, made, queries, keys, p, 64, 64)
    assert torch.isfinite(made).all()
    return made.double()


def test_tensors_that_do_not_lie_one_after_another() -> None:
    mask, whole = both(CAUSAL, DOCUMENTS), drawn(Shape(batch=2, width=24), documents="mixed", sinks=True)
    assert whole.documents is not None and whole.sinks is not None
    good = run(written(mask).kernel(), whole)
    fused = torch.cat((whole.q.flatten(2), whole.q.flatten(2)), -1)
    wide_ids, wide_sinks = whole.documents.repeat_interleave(2, 1), whole.sinks.repeat_interleave(2)
    for name, changed in {
        "slices of one tensor": replace(whole, q=fused[..., 48:].unflatten(-1, (2, 24)), k=pieces(whole.k)),
        "heads first": replace(whole, q=heads_first(whole.q), v=heads_first(whole.v), grad_o=heads_first(whole.grad_o)),
        "columns apart": replace(whole, q=columns_apart(whole.q), k=columns_apart(whole.k), v=columns_apart(whole.v)),
        "gradients' columns apart": replace(whole, grad_o=columns_apart(whole.grad_o)),
        "every other document": replace(whole, documents=wide_ids[:, ::2]),
        "every other sink": replace(whole, sinks=wide_sinks[::2]),
    }.items():
        made = run(written(mask).kernel(), changed)
        for field, tensor in made.tensors.items():
            assert torch.equal(tensor, good.tensors[field]), (name, field)
            assert tensor.is_contiguous(), (name, field)


def pieces(t: Tensor) -> Tensor:
    """Equal, at an address and with strides that no copy engine takes."""
    return torch.cat((t[..., :1], t, t[..., :2]), -1)[..., 1:-2]


def heads_first(t: Tensor) -> Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def columns_apart(t: Tensor) -> Tensor:
    return t.transpose(1, 3).contiguous().transpose(1, 3)


def test_a_gradient_that_is_the_same_everywhere() -> None:
    mask, tensors = CAUSAL, drawn(Shape(20, 20))
    same = replace(tensors, grad_o=torch.ones((), dtype=WIDE, device=device).expand(tensors.grad_o.shape))
    compare(run(written(mask).kernel(), same), expected(mask, same), WIDE)


NEVER = """
from dskc.runtime.kernels.language import tl, triton


@triton.jit
def allows(query, key, query_document, key_document):
    return (query >= 20) & (key <= query)


@triton.jit
def of_queries(first, last):
    return 0, tl.where(last >= 20, last + 1, 0), 0, tl.where(first >= 20, first + 1, 0)


@triton.jit
def of_keys(first, last):
    return tl.maximum(first, 20), 1 << 30, tl.maximum(last, 20), 1 << 30
"""


class _FromTwenty(reference.mask.Mask):
    """Queries from position 20 on see what comes before them, and others nothing."""

    def allowed(self, queries: int, keys: int, device: torch.device) -> Tensor:
        query_S1 = torch.arange(keys - queries, keys, device=device)[:, None]
        return (query_S1 >= 20) & (torch.arange(keys, device=device) <= query_S1)


@seen.register
def _(mask: _FromTwenty, grid: Grid) -> tuple[Tensor, Tensor]:
    some, every = seen(reference.causal, grid)
    return some & (grid.rows.last >= 20), every & (grid.rows.first >= 20)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "lists"])
@pytest.mark.parametrize("way", ["apart", "together"])
def test_queries_that_see_nothing(way: str, ranges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, tensors = imported(NEVER), drawn(Shape(40, 40, value_width=24))
    one_way(monkeypatch, way)
    monkeypatch.setattr(AttentionKernel, "_plain", lambda *_: False)
    kernel = AttentionKernel(
        "drawn::never", "drawn.dsk:7", lambda _: _FromTwenty(), module.allows,
        module.of_queries if ranges else None, module.of_keys if ranges else None,
    )  # fmt: skip
    made = run(kernel, tensors)
    assert not made.o[:, :20].any() and not made.q[:, :20].any()
    assert (made.lse[:, :, :20] == torch.inf).all()
    seen = replace(tensors, q=tensors.q[:, 20:], grad_o=tensors.grad_o[:, 20:])
    rest = replace(made, o=made.o[:, 20:], lse=made.lse[:, :, 20:], q=made.q[:, 20:])
    compare(rest, expected(CAUSAL, seen), WIDE)


@pytest.mark.parametrize("size", [1e-3, 30.0])
@pytest.mark.parametrize("dtype", [WIDE, torch.float16])
def test_large_and_small_numbers(size: float, dtype: torch.dtype) -> None:
    mask, tensors = both(CAUSAL, window(17)), drawn(Shape(), dtype, size=size)
    made, wanted = run(written(mask).kernel(), tensors), expected(mask, tensors)
    # Gradients of scores are differences of products of two numbers, a thousandth of which is what is known of them.
    compare(
        made, wanted, dtype, least=max(size**3, 1e-5 if dtype == torch.float16 else 0.0)
    )  # as far as there are digits


def test_scores_beyond_the_exponential_of_float32() -> None:
    tensors = drawn(Shape(), size=1.0)
    tensors = replace(tensors, q=tensors.q * 100, k=tensors.k * 100)
    for softcap in (None, 50.0):
        made = run(written(CAUSAL).kernel(softcap=softcap), tensors)
        assert all(torch.isfinite(t).all() for t in made.tensors.values())
        wanted = expected(CAUSAL, tensors, softcap=softcap)
        assert (made.o.double() - wanted.o).abs().max() < 0.02 * wanted.o.abs().max()


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 7), (2, 0, 7), (2, 0, 0)])
def test_no_queries(batch: int, queries: int, keys: int) -> None:
    tensors = drawn(Shape(queries, keys, batch), sinks=True)
    made = run(written(CAUSAL).kernel(), tensors)
    assert made.o.shape == tensors.grad_o.shape and made.lse.shape == (batch, 2, queries)
    assert made.sinks is not None and not any(t.any() for t in (made.q, made.k, made.v, made.sinks))


# --- the same bits


MASKS = {
    "causal": CAUSAL,
    "window": both(CAUSAL, window(9)),
    "documents": both(CAUSAL, DOCUMENTS),
    "blocks": both(CAUSAL, blocks(3, 1, 1, 2)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_the_same_bits_again_and_for_each_sequence_alone(mask: Mask) -> None:
    tensors = drawn(Shape(20, 37, batch=3, width=24), documents="packed" if "documents" in mask.names else "")
    kernel = written(mask).kernel()
    torch.use_deterministic_algorithms(True)
    try:
        assert all(way.name.startswith("apart") for way in attention_ways.backward_ways()[:1]) or device == "cuda"
        made, again = run(kernel, tensors), run(kernel, tensors)
        alone = [run(kernel, tensors.of_row(b)) for b in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in made.tensors.items():
        assert torch.equal(tensor, again.tensors[name]), name
        for b in range(3):
            assert torch.equal(tensor[b : b + 1], alone[b].tensors[name]), name


def test_what_is_not_seen_changes_no_bit() -> None:
    tensors = drawn(Shape(40, 40))
    later = replace(tensors, k=tensors.k.clone(), v=tensors.v.clone())
    later.k[:, 23:] *= 100
    later.v[:, 23:] = 7
    kernel = written(CAUSAL).kernel()
    made, other = run(kernel, tensors), run(kernel, later)
    assert torch.equal(made.o[:, :23], other.o[:, :23]) and torch.equal(made.lse[..., :23], other.lse[..., :23])
    assert torch.equal(made.q[:, :23], other.q[:, :23]) and not torch.equal(made.o[:, 23:], other.o[:, 23:])


def test_deterministic_algorithms_add_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def run_first(operation: str, key: object, ways: list[Way], run: object) -> object:
        taken.extend(way.name for way in ways if operation == "attention.backward")
        return run(ways[0])  # type: ignore[operator]

    monkeypatch.setattr(attention, "run_best", run_first)
    run(written(CAUSAL).kernel(), drawn(Shape(5, 5)))  # asks for deterministic algorithms
    assert taken and all(name.startswith("apart") for name in taken)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_programs_are_ordered_by_what_the_cache_holds(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "together", lambda *_: together)
    tensors = drawn(Shape(20, 33, batch=2, heads=4, groups=2))
    compare(run(written(CAUSAL).kernel(), tensors), expected(CAUSAL, tensors), WIDE)


def test_checkpoints_draw_the_same_again() -> None:
    kernel, tensors = written(CAUSAL).kernel(dropout=0.5), drawn(Shape(20, 20))
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        q, k, v = (t.clone().requires_grad_() for t in (tensors.q, tensors.k, tensors.v))
        if checkpointed:
            o = torch.utils.checkpoint.checkpoint(kernel, q, k, v, training=True, use_reentrant=False)
        else:
            o = kernel(q, k, v, training=True)
        found.append(torch.autograd.grad(o, (q, k, v), tensors.grad_o))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) or device == "cuda"


def test_documents_that_are_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, tensors = written(both(CAUSAL, DOCUMENTS)).kernel(), drawn(Shape(batch=2), documents="packed")
    assert tensors.documents is not None
    with torch.inference_mode():
        inside = kernel(tensors.q, tensors.k, tensors.v, tensors.documents.clone())
    before = kernel(tensors.q, tensors.k, tensors.v, tensors.documents)
    assert torch.equal(inside, before)
    tensors.documents.zero_()
    after = kernel(tensors.q, tensors.k, tensors.v, tensors.documents)
    assert not torch.equal(before, after) and torch.equal(
        after, written(CAUSAL).kernel()(tensors.q, tensors.k, tensors.v)
    )


# --- what is chosen and refused


def test_where_kernels_are_not_in_use_it_is_the_reference() -> None:
    kernel, tensors = written(CAUSAL).kernel(softcap=3.0), drawn(Shape(), torch.float64)
    wanted = reference.attention(tensors.q, tensors.k, tensors.v, mask=reference.causal, softcap=3.0)
    assert torch.equal(kernel(tensors.q, tensors.k, tensors.v), wanted)
    with use_kernels("reference"):
        narrow = drawn(Shape(), torch.float16)
        made = kernel(narrow.q, narrow.k, narrow.v)
        assert torch.equal(made, reference.attention(narrow.q, narrow.k, narrow.v, mask=reference.causal, softcap=3.0))


def test_shapes_without_numbers() -> None:
    kernel, tensors = (
        written(both(CAUSAL, DOCUMENTS)).kernel(),
        drawn(Shape(value_width=24), documents="mixed", sinks=True),
    )
    given = [t.to("meta") for t in (tensors.q, tensors.k, tensors.v)]
    assert tensors.documents is not None and tensors.sinks is not None
    q = given[0].requires_grad_()
    o, lse = kernel._operation(q, *given[1:], tensors.documents.to("meta"), tensors.sinks.to("meta"), None)
    assert o.shape == (1, 33, 2, 24) and o.dtype == WIDE and lse.shape == (1, 2, 33) and lse.dtype == torch.float32
    (grad_q,) = torch.autograd.grad(o, q, torch.empty_like(o))
    assert grad_q.shape == q.shape
    real = (tensors.q, tensors.k, tensors.v, tensors.documents, tensors.sinks, None)
    torch.library.opcheck(kernel._operation, real, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("way", ["apart", "together"])
def test_what_torch_is_told_of_backward(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_way(monkeypatch, way)
    kernel, tensors = written(CAUSAL).kernel(), drawn(Shape(20, 20), sinks=True)
    o, lse = kernel._operation(tensors.q, tensors.k, tensors.v, None, tensors.sinks, None)
    real = (tensors.grad_o, tensors.q, tensors.k, tensors.v, o, lse, None, tensors.sinks, None)
    torch.library.opcheck(kernel._backward, real, test_utils=("test_schema", "test_faketensor"))


def test_what_a_kernel_cannot_take_is_said_with_its_line() -> None:
    kernel, tensors = written(both(CAUSAL, DOCUMENTS)).kernel(), drawn(Shape(), documents="mixed", sinks=True)
    good = (tensors.q, tensors.k, tensors.v, tensors.documents, tensors.sinks)
    wide = drawn(Shape(3, 3, width=264))
    q, k, v, documents, sinks = good
    assert documents is not None and sinks is not None
    for tensors_given, what in (
        ((q, k.double(), v, documents, sinks), "`k` is torch.float64, and `q` is"),
        ((q, k, v.to("meta"), documents, sinks), "`v` is on meta"),
        ((q, k, v, documents.to("meta"), sinks), "`documents` is on meta"),
        ((q, k[0], v, documents, sinks), r"takes q \[B, S, H, E\]"),
        ((q, k, v[:, :-1], documents, sinks), r"takes q \[B, S, H, E\]"),
        ((q[..., :-1], k, v, documents, sinks), "do not go with keys"),
        ((q, k[:, :3], v[:, :3], documents, sinks), "do not go with keys"),
        ((wide.q, wide.k, wide.v, None, None), "heads are to 256 wide, not 264"),
        ((q, k, v, documents[:, :-1], sinks), "documents are"),
        ((q, k, v, documents, sinks[:-1]), "a sink for each of 2 heads"),
    ):
        with pytest.raises(KernelError, match=what) as caught:
            kernel(*tensors_given)
        assert str(caught.value).startswith("attention_") and "(drawn.dsk:7): " in str(caught.value)
