"""Each way of attention by name on a GPU, in bf16 and fp16, against the reference in float64."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from dskc.compiler.values import Mask
from dskc.runtime.kernels import use_kernels
from dskc.runtime.kernels.attention import hopper as attention_hopper
from dskc.runtime.kernels.attention import kernel as attention
from dskc.runtime.kernels.attention import ways as attention_ways
from dskc.runtime.kernels.attention.kernel import AttentionKernel
from dskc.runtime.kernels.tuning import Unfit, forget

from .attention_calls import Given, Shape, compare, drawn, expected, run
from .drawn_masks import CAUSAL, DOCUMENTS, EVERYTHING, blocks, both, either, window, written

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
LIMITS = ("OutOfResources", "PTXASError")
WIDTHS = ((64, 64), (128, 128), (192, 128), (256, 256), (80, 80))
MASKS = {
    "causal": CAUSAL,
    "window": both(CAUSAL, window(100)),
    "both sides": window(70),
    "everything": EVERYTHING,
    "documents": both(CAUSAL, DOCUMENTS),
    "blocks": both(CAUSAL, blocks(32, 3, 1, 2)),
    "prefix": either(CAUSAL, both(DOCUMENTS, window(40))),
}


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    forget()
    with use_kernels("triton"):
        yield


def tensors_of(mask: Mask, widths: tuple[int, int], dtype: torch.dtype, sinks: bool = False) -> Given:
    shape = Shape(389, 500, 2, 4, 2, *widths)
    return drawn(shape, dtype, "packed" if "documents" in mask.names else "", sinks)


def checked(mask: Mask, given: Given, **options: float | None) -> None:
    """Skips, with what was said, where a tile is larger than this GPU or cuDNN takes no such widths."""
    try:
        made = run(written(mask).kernel(**options), given)
    except Exception as error:
        if not isinstance(error, Unfit) and type(error).__name__ not in LIMITS:
            raise
        pytest.skip(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    compare(made, expected(mask, given, **options), given.q.dtype)


def numbered(i: int) -> tuple[Mask, torch.dtype]:
    """A mask and a dtype for the i-th case: all of both come for each width and each way before long."""
    return list(MASKS.values())[i % len(MASKS)], (torch.bfloat16, torch.float16)[i % 2]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("way", range(len(attention_ways.FORWARD)), ids=lambda i: attention_ways.FORWARD[i].name)
def test_each_tile_forward(way: int, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    mask, dtype = numbered(way * len(WIDTHS) + WIDTHS.index(widths))
    monkeypatch.setattr(attention, "forward_ways", lambda: (attention_ways.FORWARD[way],))
    monkeypatch.setattr(attention, "hopper_ways", lambda *_: [])
    monkeypatch.setattr(AttentionKernel, "_plain", lambda *_: False)
    checked(mask, tensors_of(mask, widths, dtype))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("way", range(len(attention_ways.TOGETHER) + len(attention_ways.APART_KEYS)))
def test_each_way_backward(way: int, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    mask, dtype = numbered(way * len(WIDTHS) + WIDTHS.index(widths))
    only = attention_ways.backward_ways()[way]
    monkeypatch.setattr(attention, "backward_ways", lambda: [only])
    monkeypatch.setattr(attention.torch, "are_deterministic_algorithms_enabled", lambda: False)
    monkeypatch.setattr(AttentionKernel, "_plain", lambda *_: False)
    checked(mask, tensors_of(mask, widths, dtype, sinks=way % 3 == 0))


@pytest.mark.parametrize(("widths", "mask"), [
    (widths, mask) for widths in (*WIDTHS[:4], (64, 128), (96, 64)) for mask in MASKS
    if mask != "blocks" and (widths in WIDTHS[:2] or mask in ("causal", "documents"))
], ids=str)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.skipif(importlib.util.find_spec("triton.experimental.gluon") is None, reason="this Triton has no Gluon")
def test_each_tile_by_hand(place: int, widths: tuple[int, int], mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a GPU of compute capability 9")
    tiles = attention_hopper.TILES[widths[1]]
    if place >= len(tiles):
        pytest.skip(f"there is one tile for values {widths[1]} wide")
    given = tensors_of(MASKS[mask], widths, numbered(place + len(mask))[1], sinks=mask == "window")
    ways = attention_hopper.hopper_ways(given.q, given.k, given.v)
    assert len(ways) == len(tiles)
    monkeypatch.setattr(attention, "forward_ways", lambda: ())
    monkeypatch.setattr(attention, "hopper_ways", lambda *_: [ways[place]])
    monkeypatch.setattr(AttentionKernel, "_plain", lambda *_: False)
    checked(MASKS[mask], given, softcap=20.0 if mask == "documents" else None)


@pytest.mark.parametrize("keys", [1, 63, 64, 65, 127, 128, 129, 257])
@pytest.mark.skipif(importlib.util.find_spec("triton.experimental.gluon") is None, reason="this Triton has no Gluon")
def test_lengths_around_a_tile_by_hand(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a GPU of compute capability 9")
    monkeypatch.setattr(attention, "forward_ways", lambda: ())
    monkeypatch.setattr(AttentionKernel, "_plain", lambda *_: False)
    for queries in {1, keys // 2 + 1, keys}:
        for mask in (CAUSAL, EVERYTHING, both(CAUSAL, window(50)), both(CAUSAL, DOCUMENTS)):
            documents = "mixed" if "documents" in mask.names else ""
            checked(mask, drawn(Shape(queries, keys, 2, 2, 1, 64, 64), torch.bfloat16, documents))


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("mask", ["causal", "everything"])
def test_cudnn(mask: str, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    given = drawn(Shape(389, 389, 2, 4, 2, *widths), torch.bfloat16)
    assert (
        written(MASKS[mask])
        .kernel()
        ._plain(written(MASKS[mask]).kernel()._call(given.q, given.k, given.v, None), None, None)
    )
    monkeypatch.setattr(attention, "forward_ways", lambda: ())
    monkeypatch.setattr(attention, "backward_ways", lambda: ())
    monkeypatch.setattr(attention, "hopper_ways", lambda *_: [])
    monkeypatch.setattr(attention.torch, "are_deterministic_algorithms_enabled", lambda: False)
    checked(MASKS[mask], given)


@pytest.mark.parametrize(("dtype", "widths", "mask"), [
    (dtype, widths, mask) for widths in (*WIDTHS, (40, 24), (33, 33)) for mask in MASKS
    for dtype in (torch.bfloat16, torch.float16)
    if (widths == (128, 128) if dtype == torch.bfloat16 else widths == (64, 64))
    or (dtype == torch.bfloat16 and mask in ("causal", "documents"))
], ids=str)  # fmt: skip
def test_what_is_taken_without_being_asked(dtype: torch.dtype, widths: tuple[int, int], mask: str) -> None:
    given = tensors_of(MASKS[mask], widths, dtype, sinks=mask == "window")
    softcap = 20.0 if mask == "everything" else None
    compare(
        run(written(MASKS[mask]).kernel(softcap=softcap), given), expected(MASKS[mask], given, softcap=softcap), dtype
    )


@pytest.mark.parametrize("deterministic", [True, False])
def test_torch_compile_sees_one_graph(deterministic: bool) -> None:
    kernel, given = written(CAUSAL).kernel(), tensors_of(CAUSAL, (64, 64), torch.bfloat16, sinks=True)
    compiled = torch.compile(lambda q, k, v: kernel(q * 2, k, v, sinks_H=given.sinks).sin(), fullgraph=True)
    torch.use_deterministic_algorithms(deterministic)
    try:
        found = []
        for function in (compiled, lambda q, k, v: kernel(q * 2, k, v, sinks_H=given.sinks).sin()):
            q, k, v = (t.clone().requires_grad_() for t in (given.q, given.k, given.v))
            o = function(q, k, v)
            found.append((o, *torch.autograd.grad(o, (q, k, v), given.grad_o)))
    finally:
        torch.use_deterministic_algorithms(False)
    for made, wanted in zip(*found, strict=True):
        assert (made - wanted).abs().max() <= 2e-2 * wanted.abs().max()


def test_a_captured_graph_is_replayed_for_other_documents() -> None:
    kernel, given = written(both(CAUSAL, DOCUMENTS)).kernel(), tensors_of(DOCUMENTS, (64, 64), torch.bfloat16)
    assert given.documents is not None
    ids, other = given.documents, given.documents.flip(1).contiguous()
    held = ids.clone()
    with torch.no_grad():
        wanted = [kernel(given.q, given.k, given.v, documents) for documents in (ids, other)]
        kernel(given.q, given.k, given.v, held)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = kernel(given.q, given.k, given.v, held)
        for documents, good in zip((ids, other), wanted, strict=True):
            held.copy_(documents)
            graph.replay()
            assert torch.equal(made, good)


def test_more_heads_than_a_grid_is_high() -> None:
    given = drawn(Shape(1, 1, 70_000, 1, 1, 16, 16), torch.bfloat16, sinks=True)
    compare(run(written(CAUSAL).kernel(), given), expected(CAUSAL, given), torch.bfloat16)
