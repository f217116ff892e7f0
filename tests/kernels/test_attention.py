"""Attention of drawn masks against the reference in float64, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskc.compiler.values import Mask
from dskc.runtime import reference
from dskc.runtime.kernels import use_kernels
from dskc.runtime.kernels.attention.kernel import AttentionKernel
from dskc.runtime.kernels.attention.tiles import Grid, seen
from dskc.runtime.kernels.tuning import forget

from .attention_calls import (
    QUIET,
    WIDE,
    Results,
    Shape,
    compare,
    device,
    drawn,
    expected,
    one_way,
    run,
    scores,
)
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


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    forget()
    with use_kernels("triton"):
        yield


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
        "from dskc.runtime.kernels.attention.forward import kept\n"
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


@pytest.mark.parametrize("way", ["apart", "together"])
def test_scores_far_below_that_of_a_key_that_is_not_there(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_way(monkeypatch, way)
    for mask in (CAUSAL, EVERYTHING):
        tensors = drawn(Shape(33, 40), size=0.1)
        tensors = replace(tensors, q=tensors.q + 5, k=tensors.k - 5)
        made, wanted = run(written(mask).kernel(), tensors), expected(mask, tensors)
        assert made.lse.max() < -80
        compare(made, wanted, WIDE, least=0.1 if torch.float32 == WIDE else 10)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 5, 7), (2, 0, 7), (2, 0, 0)])
def test_no_queries(batch: int, queries: int, keys: int) -> None:
    tensors = drawn(Shape(queries, keys, batch), sinks=True)
    made = run(written(CAUSAL).kernel(), tensors)
    assert made.o.shape == tensors.grad_o.shape and made.lse.shape == (batch, 2, queries)
    assert made.sinks is not None and not any(t.any() for t in (made.q, made.k, made.v, made.sinks))
